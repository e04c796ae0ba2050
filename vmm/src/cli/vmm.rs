//! `vmgenie run`, `vmgenie api` and `vmgenie restore`: this process is the VMM.

use std::io::stdin;
use std::os::fd::AsFd;

use vmgenie_api::limits::BODY_LIMIT;
use vmgenie_api::wire::SelfSnapshot;
use vmgenie_machine::config::{BootSource, Cmdline, MachineConfig};
use vmgenie_snapshot::own_files;

use super::args::{ApiArgs, LifelineArgs, RestoreArgs, RunArgs};
use super::client_commands::load_request;
use super::data::instance_data;
use super::{Failure, host_things, requests};
use crate::api::convert::{Checked, WireError};
use crate::controller::Outcome;
use crate::controller::command::Command;
use crate::process::{self, ProcessError, RunOptions};
use crate::temporary::SharedDir;
use crate::terminal;

/// The memory of a machine that is told no other, in MiB: Firecracker's for a kernel that was named, and what a
/// distribution is at ease with for one of its own.
const KERNEL_MEMORY_MIB: u64 = 128;
const IMAGE_MEMORY_MIB: u64 = 512;

pub(super) fn run(args: RunArgs) -> Result<(), Failure> {
    let devices = args.devices.devices()?;
    let data = args.data.as_deref().map(instance_data).transpose()?;
    let own = args.self_snapshot.map(self_snapshots).transpose()?;
    let image = args
        .devices
        .drives
        .disk
        .as_ref()
        .map(|disk| disk.path().to_owned());
    let default = match args.kernel {
        Some(_) => KERNEL_MEMORY_MIB,
        None => IMAGE_MEMORY_MIB,
    };
    let machine = MachineConfig::new(args.cpus, args.memory.unwrap_or(default))?;
    let source = BootSource {
        // The parser has seen to it that there is one of the two.
        kernel: args.kernel.or(image).unwrap_or_default(),
        initrd: args.initrd,
        cmdline: Cmdline::new(&args.cmdline)?,
    };
    become_vmm(RunOptions {
        api_socket: args.api_sock,
        body_limit: BODY_LIMIT,
        first: data
            .into_iter()
            .map(Command::SetInstanceData)
            .chain(own)
            .collect(),
        on_reboot: args.on_reboot.into(),
        machine: Some((machine, source, devices)),
        restore: None,
        console_input: terminal::may_read(stdin().as_fd()),
        id: args.id,
        boot_timer: false,
        lifeline: None,
    })
    .map_err(ended_badly)
}

pub(super) fn api(args: ApiArgs) -> Result<(), Failure> {
    let LifelineArgs {
        lifeline,
        doomed,
        rotate,
        shared_dir,
    } = args.lifeline;
    // It goes when this machine has ended: its socket and its log are in it.
    let _shared = shared_dir.and_then(|dir| {
        let joined = SharedDir::join(&dir);
        joined
            .inspect_err(|error| tracing::warn!(?dir, %error, "this directory will stay"))
            .ok()
    });
    if let Some(log) = rotate {
        own_files::rotate_output(&log);
    }
    become_vmm(RunOptions {
        api_socket: Some(args.api_sock),
        body_limit: BODY_LIMIT,
        first: Vec::new(),
        on_reboot: args.on_reboot.into(),
        machine: None,
        restore: None,
        console_input: !lifeline && terminal::may_read(stdin().as_fd()),
        id: args.id,
        boot_timer: false,
        lifeline: lifeline.then_some(doomed),
    })
    .map_err(ended_badly)
}

/// `vmgenie restore` without an empty VMM: this process becomes the machine.
pub(super) fn restore(args: RestoreArgs) -> Result<(), Failure> {
    let mut request = load_request(&args.dir, args.generation.into(), !args.no_resume)?;
    requests::override_devices(&mut request, &args.overrides, None)?;
    host_things::tell_if_allowed(&request);
    let own = args.self_snapshot.map(self_snapshots).transpose()?;
    become_vmm(RunOptions {
        api_socket: args.serve,
        body_limit: BODY_LIMIT,
        first: own.into_iter().collect(),
        on_reboot: args.overrides.on_reboot.into(),
        machine: None,
        restore: Some(request.checked()?),
        console_input: terminal::may_read(stdin().as_fd()),
        id: args.id,
        boot_timer: false,
        lifeline: None,
    })
    .map_err(ended_badly)
}

/// Lets the guest ask for snapshots of itself.
fn self_snapshots(own: SelfSnapshot) -> Result<Command, WireError> {
    own.checked().map(Command::SetSelfSnapshot)
}

/// Is the VMM until its end.
pub(super) fn become_vmm(options: RunOptions) -> Result<(), ProcessError> {
    let outcome = process::run(options);
    // Whatever the VMM has done to the terminal, what is printed from here on is for people.
    terminal::restore();
    let why = match outcome? {
        Outcome::PoweredOff => "the guest powered off",
        Outcome::Rebooted => "the guest rebooted",
        Outcome::Quit => "the user ended it",
    };
    tracing::info!("ending: {why}");
    Ok(())
}

/// What a VMM that ended badly tells whoever started it.
pub(super) fn ended_badly(error: ProcessError) -> Failure {
    Failure {
        status: error.exit_code(),
        error: error.into(),
    }
}
