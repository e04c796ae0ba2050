//! `vmgenie run` and `vmgenie api`: this process is the VMM.

use std::io::stdin;
use std::os::fd::AsFd;

use super::args::{ApiArgs, RestoreArgs, RunArgs};
use super::client_commands::load_request;
use super::data::instance_data;
use super::{Failure, devices};
use crate::api::BODY_LIMIT;
use crate::config::{self, BootSource, Cmdline, MachineConfig};
use crate::controller::command::{Command, LoadSnapshot};
use crate::controller::{Outcome, RunOptions};
use crate::{controller, terminal};

pub(super) fn run(args: RunArgs) -> Result<(), Failure> {
    let devices = devices::of_run(&args)?;
    let data = args.data.as_deref().map(instance_data).transpose()?;
    let machine = MachineConfig::new(args.cpus, args.memory)?;
    let source = BootSource {
        kernel: args.kernel,
        initrd: args.initrd,
        cmdline: Cmdline::new(&args.cmdline)?,
    };
    become_vmm(RunOptions {
        api_socket: args.api_sock,
        body_limit: BODY_LIMIT,
        first: data.into_iter().map(Command::SetInstanceData).collect(),
        on_reboot: args.on_reboot.into(),
        machine: Some((machine, source, devices)),
        restore: None,
        console_input: terminal::may_read(stdin().as_fd()),
        id: args.id,
        boot_timer: false,
    })
}

pub(super) fn api(args: ApiArgs) -> Result<(), Failure> {
    become_vmm(RunOptions {
        api_socket: Some(args.api_sock),
        body_limit: BODY_LIMIT,
        first: Vec::new(),
        on_reboot: args.on_reboot.into(),
        machine: None,
        restore: None,
        console_input: terminal::may_read(stdin().as_fd()),
        id: args.id,
        boot_timer: false,
    })
}

/// `vmgenie restore` without an empty VMM: this process becomes the machine.
pub(super) fn restore(args: RestoreArgs) -> Result<(), Failure> {
    let mut request = load_request(&args.dir, args.generation.into(), !args.no_resume)?;
    devices::override_devices(&mut request, &args.overrides, None)?;
    become_vmm(RunOptions {
        api_socket: args.serve,
        body_limit: BODY_LIMIT,
        first: Vec::new(),
        on_reboot: config::OnReboot::Exit,
        machine: None,
        restore: Some(LoadSnapshot::try_from(request)?),
        console_input: terminal::may_read(stdin().as_fd()),
        id: args.id,
        boot_timer: false,
    })
}

pub(super) fn become_vmm(options: RunOptions) -> Result<(), Failure> {
    let outcome = controller::run(options);
    // Whatever the VMM has done to the terminal, what is printed from here on is for people.
    terminal::restore();
    match outcome {
        Ok(Outcome::PoweredOff | Outcome::Rebooted | Outcome::Quit) => Ok(()),
        Err(error) => Err(Failure {
            status: error.exit_code(),
            error: error.into(),
        }),
    }
}
