//! Turns of the event loop, without threads.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::oneshot::Receiver as Answer;
use tokio::sync::{Semaphore, oneshot};
use vmgenie_machine::events::EventSender;
use vmgenie_machine::request::CreateSnapshot;
use vmgenie_machine::virtio::VirtioEvents;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

use super::*;

/// An event loop without a machine, and who sends it commands and events.
struct Scene {
    event_loop: EventLoop,
    commands: std::sync::mpsc::Sender<Envelope>,
    events: EventSender,
}

impl Scene {
    fn new() -> Self {
        let (events, machine_events) = EventSender::new().unwrap();
        let virtio = VirtioEvents::new().unwrap();
        let controller = Controller::new(events.try_clone().unwrap(), virtio, String::new());
        let (sender, commands) = std::sync::mpsc::channel();
        let event_loop = EventLoop {
            controller: controller.unwrap(),
            commands,
            command_wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap(),
            machine_events,
            signals: EndSignals::block().unwrap(),
            pm_timer: TimerFd::new().unwrap(),
            pm_complaints: Throttle::default(),
            metrics_timer: TimerFd::new().unwrap(),
            writes_metrics: false,
            input: None,
            attached: AttachedInput::default(),
            lifeline: None,
            on_reboot: OnReboot::default(),
            restarting: false,
            waits_for_start: None,
            console_behind: false,
            ended: None,
        };
        Self {
            event_loop,
            commands: sender,
            events,
        }
    }

    fn send(&self, command: Command) -> Answer<CommandResult> {
        let (answer, answered) = oneshot::channel();
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let sent = self.commands.send(Envelope {
            command,
            answer,
            place,
        });
        sent.unwrap();
        answered
    }
}

/// Clients that always have another command leave room for signals and for the guest's devices.
#[test]
fn a_turn_has_so_many_commands_and_the_loop_is_called_for_the_others() {
    let mut scene = Scene::new();
    let mut answers: Vec<_> = (0..2 * MAX_COMMANDS + 1)
        .map(|_| scene.send(Command::State))
        .collect();
    let mut turns = Vec::new();
    while !answers.is_empty() {
        scene.event_loop.run_commands();
        let before = answers.len();
        answers.retain_mut(|answer| answer.try_recv().is_err());
        turns.push(before - answers.len());
        let is_called = scene.event_loop.command_wake.read().is_ok();
        assert!(is_called || answers.is_empty());
    }
    assert_eq!(turns, [MAX_COMMANDS, MAX_COMMANDS, 1]);
}

/// What would be restored has asked for its end already, and waits for it for ever.
#[test]
fn no_snapshot_is_taken_of_a_guest_that_has_just_ended() {
    for end in [MachineEvent::PowerOff, MachineEvent::Reset] {
        let mut scene = Scene::new();
        let create = || {
            Command::CreateSnapshot(CreateSnapshot {
                state: Path::new("state").to_owned(),
                memory: Path::new("memory").to_owned(),
                resume: false,
                pause: false,
                copy_drives: false,
                cooperative: None,
            })
        };
        let told = |scene: &mut Scene| {
            let mut answer = scene.send(create());
            scene.event_loop.run_commands();
            answer.try_recv().unwrap().unwrap_err().to_string()
        };
        let before = told(&mut scene);
        assert!(before.contains("Cannot take a snapshot of the microVM: there is none yet"));
        // The loop has not looked at it yet.
        scene.events.send(end.clone());
        let text = told(&mut scene);
        assert!(text.ends_with(&end.to_string()), "{text}");
    }
}
