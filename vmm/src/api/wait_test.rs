use std::os::unix::net::UnixStream;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use vmgenie_api::wire::{Missing, Watchers};
use vmgenie_devices::sgen::DriverReport;

use super::*;
use crate::api::testing::{agreeable, answer_by, controller_handle_of, refusing};
use crate::controller::command::CommandResult;

const LONG: Duration = Duration::from_secs(600);

fn report(reached: bool, reseeded: bool, outdated: u32) -> DriverReport {
    DriverReport {
        version: 1,
        reached,
        reseeded,
        outdated,
        required: outdated,
        ..DriverReport::default()
    }
}

fn wanted(timeout: Duration) -> GenerationWait {
    GenerationWait {
        timeout_ms: timeout.as_millis() as u64,
        ..GenerationWait::default()
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn handle_of(
    reports: &watch::Sender<DriverReport>,
    script: impl FnMut(&Command) -> CommandResult + Send + 'static,
) -> ControllerHandle {
    let (handle, commands) = controller_handle_of(reports.subscribe());
    answer_by(commands, script);
    handle
}

/// Waits; `meanwhile` happens as soon as the wait is under way.
fn wait_while(
    handle: &ControllerHandle,
    timeout: Duration,
    peer: Option<&Peer>,
    meanwhile: impl FnOnce() + Send + 'static,
) -> Result<GenerationWaited, ApiFault> {
    let places = Semaphore::new(1);
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        meanwhile();
    });
    let wanted = wanted(timeout);
    let waited = runtime().block_on(wait(handle, &places, &wanted, peer));
    thread.join().unwrap();
    assert_eq!(places.available_permits(), 1);
    waited
}

#[test]
fn a_wait_ends_when_the_guest_has_adapted() {
    let reports = watch::Sender::new(report(false, false, 0));
    let handle = handle_of(&reports, agreeable);
    let waited = wait_while(&handle, LONG, None, move || {
        reports.send_replace(report(true, true, 1));
        std::thread::sleep(Duration::from_millis(20));
        reports.send_replace(report(true, true, 0));
    });
    let waited = waited.unwrap();
    assert!(waited.adapted && waited.missing.is_empty());
    assert!((50_000..LONG.as_micros() as u64).contains(&waited.waited_us));
}

#[test]
fn at_the_deadline_a_wait_says_what_is_missing() {
    for (report, missing) in [
        (DriverReport::default(), vec![Missing::Driver]),
        (
            report(false, false, 2),
            vec![Missing::Reseeded, Missing::Reached, Missing::Watchers],
        ),
        (report(false, true, 0), vec![Missing::Reached]),
        (report(true, true, 7), vec![Missing::Watchers]),
    ] {
        let reports = watch::Sender::new(report);
        let handle = handle_of(&reports, agreeable);
        for ms in [0, 20] {
            let waited = wait_while(&handle, Duration::from_millis(ms), None, || {}).unwrap();
            assert_eq!((waited.adapted, waited.missing), (false, missing.clone()));
            assert_eq!(waited.driver.outdated_watchers, report.outdated);
        }
    }
}

#[test]
fn a_wait_ends_with_the_machine() {
    let reports = watch::Sender::new(report(false, false, 0));
    let handle = handle_of(&reports, agreeable);
    let waited = wait_while(&handle, LONG, None, move || drop(reports));
    assert!(matches!(waited, Err(ApiFault::MachineGone)), "{waited:?}");
}

#[test]
fn a_wait_ends_when_its_client_is_gone_but_not_when_it_has_said_all() {
    let reports = watch::Sender::new(report(false, false, 0));
    let handle = handle_of(&reports, agreeable);
    let (ours, client) = UnixStream::pair().unwrap();
    let peer = Peer::of(&ours);
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let short = Duration::from_millis(300);
    assert!(wait_while(&handle, short, peer.as_ref(), || {}).is_ok());
    let waited = wait_while(&handle, LONG, peer.as_ref(), move || drop(client));
    assert!(matches!(waited, Err(ApiFault::ClientGone)), "{waited:?}");
}

#[test]
fn a_paused_machine_and_none_at_all_are_refused_at_once() {
    let reports = watch::Sender::new(report(false, false, 0));
    let handle = handle_of(&reports, |command| match command {
        Command::State => Ok(Reply::State(VmState::Paused)),
        other => agreeable(other),
    });
    let waited = wait_while(&handle, LONG, None, || {});
    assert!(matches!(waited, Err(ApiFault::WaitWhilePaused)));
    let waited = wait_while(&handle_of(&reports, refusing), LONG, None, || {});
    assert!(matches!(waited, Err(ApiFault::Command(_))));
}

#[test]
fn one_wait_too_many_is_refused() {
    let reports = watch::Sender::new(report(false, false, 0));
    let handle = handle_of(&reports, agreeable);
    let places = Semaphore::new(0);
    let waited = runtime().block_on(wait(&handle, &places, &wanted(LONG), None));
    assert!(matches!(waited, Err(ApiFault::TooManyWaits(MAX_WAITS))));
}

#[test]
fn what_is_waited_for_is_what_the_machine_had_unless_the_wait_says_more_or_less() {
    let adapted = DriverReport {
        chain: Some(true),
        outdated: 2,
        ..report(true, true, 0)
    };
    let adapted = DriverReport {
        required: 0,
        outdated: 2,
        ready: 1,
        agents: 2,
        ..adapted
    };
    let wait = |agents, watchers| GenerationWait {
        timeout_ms: 0,
        agents,
        watchers,
    };
    for (wait, missing) in [
        (wait(None, Watchers::Required), vec![Missing::Agent]),
        (wait(Some(1), Watchers::Required), vec![]),
        (wait(Some(0), Watchers::All), vec![Missing::Watchers]),
        (
            wait(Some(3), Watchers::All),
            vec![Missing::Watchers, Missing::Agent],
        ),
    ] {
        let waited = super::waited(&wait, adapted, Duration::ZERO);
        assert_eq!(
            (waited.adapted, &waited.missing),
            (missing.is_empty(), &missing)
        );
    }
    let chain = DriverReport {
        chain: Some(false),
        ..adapted
    };
    let waited = super::waited(&wait(Some(0), Watchers::Required), chain, Duration::ZERO);
    assert_eq!(waited.missing, [Missing::Chain]);
}
