//! `vmgenie run` and `vmgenie api`: this process is the VMM.

use std::io::stdin;
use std::os::fd::AsFd;

use super::Failure;
use super::args::{ApiArgs, RunArgs};
use crate::api::BODY_LIMIT;
use crate::config::{BootSource, Cmdline, DevicesConfig, MachineConfig};
use crate::controller::{Outcome, RunOptions};
use crate::{controller, terminal};

pub(super) fn run(args: RunArgs) -> Result<(), Failure> {
    let machine = MachineConfig::new(args.cpus, args.memory)?;
    let source = BootSource {
        kernel: args.kernel,
        initrd: args.initrd,
        cmdline: Cmdline::new(&args.cmdline)?,
    };
    become_vmm(RunOptions {
        api_socket: args.api_sock,
        body_limit: BODY_LIMIT,
        first: Vec::new(),
        on_reboot: args.on_reboot.into(),
        machine: Some((machine, source, DevicesConfig::default())),
        restore: None,
        console_input: terminal::may_read(stdin().as_fd()),
        id: args.id,
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
