//! A controller that answers by script, for the tests of routes, server and client.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use vmgenie_devices::sgen::DriverReport;
use vmgenie_devices::vmgenid::GenerationId;
use vmgenie_machine::config::{BootSource, Cmdline, InstanceData, MachineConfig};
use vmgenie_machine::request::Generation;
use vmgenie_machine::virtio::kinds::DevicesConfig;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use crate::controller::command::{
    Command, CommandError, CommandResult, ControllerHandle, Cooperation, Envelope, How, Reply,
    SnapshotCreated, VmConfig, VmState, WaitedFor,
};
use crate::controller::command::{SelfSnapshot, SelfSnapshotConfig};

/// The commands that a scripted controller was sent.
pub(crate) type Seen = Arc<Mutex<Vec<Command>>>;

/// A controller in a thread of its own that answers every command with `script`. It ends with the
/// handle.
pub(crate) fn controller(
    script: impl FnMut(&Command) -> CommandResult + Send + 'static,
) -> (ControllerHandle, Seen) {
    let (handle, commands) = controller_handle();
    (handle, answer_by(commands, script))
}

/// Answers `commands` in a thread of its own.
pub(crate) fn answer_by(
    commands: Receiver<Envelope>,
    mut script: impl FnMut(&Command) -> CommandResult + Send + 'static,
) -> Seen {
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    std::thread::spawn(move || {
        for envelope in commands {
            let answer = script(&envelope.command);
            log.lock().unwrap().push(envelope.command);
            let _ = envelope.answer.send(answer);
        }
    });
    seen
}

/// A handle, the receiving end of its commands; reports have ended.
pub(crate) fn controller_handle() -> (ControllerHandle, Receiver<Envelope>) {
    controller_handle_of(watch::channel(DriverReport::default()).1)
}

/// A handle with these reports, and the receiving end of its commands.
pub(crate) fn controller_handle_of(
    reports: watch::Receiver<DriverReport>,
) -> (ControllerHandle, Receiver<Envelope>) {
    ControllerHandle::new(EventFd::new(EFD_CLOEXEC).unwrap(), reports, Arc::default())
}

/// Says yes to everything.
pub(crate) fn agreeable(command: &Command) -> CommandResult {
    Ok(match command {
        Command::State => Reply::State(VmState::Running),
        Command::Config => Reply::Config(VmConfig {
            machine: MachineConfig::new(2, 256).unwrap(),
            boot_source: Some(BootSource {
                kernel: "/vmlinux".into(),
                initrd: None,
                cmdline: Cmdline::default(),
            }),
            devices: DevicesConfig::default(),
        }),
        Command::Generation => Reply::Generation(generation(0)),
        Command::InstanceData => Reply::InstanceData(InstanceData::new("web-1").unwrap()),
        Command::NewGeneration => Reply::Generation(generation(1)),
        Command::SelfSnapshots => Reply::SelfSnapshots(
            Some(SelfSnapshotConfig {
                directory: "/s".into(),
                count: 2,
                interval: Duration::from_secs(3),
                quiesce: Duration::from_millis(4),
            }),
            vec![SelfSnapshot { number: 1, tag: 7 }],
        ),
        Command::CreateSnapshot(request) => Reply::SnapshotCreated(SnapshotCreated {
            standstill: Duration::from_micros(1234),
            total: Duration::from_millis(56),
            memory_bytes: 7 << 20,
            cooperation: request.cooperative.map(|_| Cooperation {
                how: How::ForkPoint,
                why_plain: None,
                heard_after: Some(Duration::from_micros(300)),
                stopped_after: Some(Duration::from_millis(20)),
                waited_for: WaitedFor {
                    agent: true,
                    hooks: true,
                    ..WaitedFor::default()
                },
            }),
        }),
        _ => Reply::Done,
    })
}

/// Says no to everything.
pub(crate) fn refusing(_: &Command) -> CommandResult {
    Err(CommandError(
        "the microVM has been started: this is possible before the start only".into(),
    ))
}

pub(crate) fn generation(changes: u64) -> Generation {
    let id = std::array::from_fn(|index| u8::try_from(index).unwrap() * 0x11);
    Generation {
        id: GenerationId::from_bytes(id),
        ancestors: vec![GenerationId::from_bytes([0x11; 16])],
        changes,
        since: Duration::from_millis(1_700_000_000_123),
        counter: 7,
        driver: DriverReport::default(),
    }
}
