use proptest::prelude::*;

use super::stages::Stages;
use super::*;
use crate::request::OnTimeout;

const TIMEOUT: Duration = Duration::from_secs(30);

fn gate(on_timeout: OnTimeout) -> Gate {
    Gate {
        link: true,
        vsock: true,
        agents: None,
        timeout: TIMEOUT,
        on_timeout,
    }
}

/// What the driver of a machine that once had an agent tells, from the beginning of a generation on.
fn reports() -> [DriverReport; 6] {
    let begun = DriverReport {
        version: 1,
        chain: Some(false),
        required: 1,
        agents: 1,
        ..DriverReport::default()
    };
    let reseeded = DriverReport {
        reseeded: true,
        ..begun
    };
    let reached = DriverReport {
        reached: true,
        ..reseeded
    };
    let chained = DriverReport {
        chain: Some(true),
        ..reached
    };
    let identity = DriverReport {
        identity: true,
        ..chained
    };
    let ready = DriverReport {
        ready: 1,
        required: 0,
        ..identity
    };
    [begun, reseeded, reached, chained, identity, ready]
}

/// Everything that there is to do.
fn todo(stages: &mut Stages, now: Instant) -> Vec<Todo> {
    std::iter::from_fn(|| stages.todo(now)).take(10).collect()
}

fn running(gate: Option<Gate>) -> (Stages, Instant) {
    let begun = Instant::now();
    let mut stages = Stages::new(true, gate);
    stages.resumed(begun);
    (stages, begun)
}

#[test]
fn a_gate_opens_in_two_stages_as_the_guest_tells() {
    let (mut stages, begun) = running(Some(gate(OnTimeout::Kill)));
    let mut seen = Vec::new();
    for (n, report) in (1..).zip(reports()) {
        let now = begun + Duration::from_secs(n);
        let wanted = stages.told(&report, now);
        let done = todo(&mut stages, now);
        assert_eq!(wanted, !done.is_empty());
        seen.push((done, stages.now().stage()));
    }
    let expected = [
        (vec![], Stage::None),
        (vec![], Stage::None),
        (vec![], Stage::None),
        (vec![], Stage::None),
        (vec![Todo::OpenNetworks], Stage::Identity),
        (vec![Todo::OpenToHost], Stage::Service),
    ];
    assert_eq!(seen, expected);
    let now = stages.now();
    let seconds = |after: Option<Duration>| after.unwrap().as_secs();
    assert_eq!(seconds(now.reseeded_after), 2);
    assert_eq!(
        (seconds(now.identity_after), seconds(now.adapted_after)),
        (5, 6)
    );
    assert_eq!(seconds(now.service_after), 6);
    assert!(!stages.is_pending() && stages.patience(begun).is_none());
    assert_eq!(todo(&mut stages, begun + 2 * TIMEOUT), []);
}

#[test]
fn an_agent_of_old_tells_of_both_stages_at_once_and_a_machine_without_one_needs_none() {
    let (mut stages, begun) = running(Some(gate(OnTimeout::Keep)));
    let [.., ready] = reports();
    let old = DriverReport {
        identity: false,
        ..ready
    };
    let waits = DriverReport { required: 1, ..old };
    assert!(stages.told(&waits, begun));
    assert_eq!(todo(&mut stages, begun), [Todo::OpenNetworks]);
    assert!(stages.told(&old, begun));
    assert_eq!(todo(&mut stages, begun), [Todo::OpenToHost]);

    let alone = DriverReport {
        ready: 0,
        agents: 0,
        ..old
    };
    for (agents, expected) in [
        (None, Stage::Service),
        (Some(0), Stage::Service),
        (Some(1), Stage::None),
    ] {
        let gate = Gate {
            agents,
            ..gate(OnTimeout::Keep)
        };
        let (mut stages, begun) = running(Some(gate));
        stages.told(&alone, begun);
        todo(&mut stages, begun);
        assert_eq!(stages.now().stage(), expected, "{agents:?}");
    }
}

#[test]
fn a_time_out_keeps_ends_or_opens_and_counts_only_while_the_machine_runs() {
    for on_timeout in [OnTimeout::Keep, OnTimeout::Kill, OnTimeout::Open] {
        let (mut stages, begun) = running(Some(gate(on_timeout)));
        assert_eq!(stages.patience(begun), Some(TIMEOUT));
        // Ten seconds, and an hour of standing still.
        stages.paused(begun + TIMEOUT / 3);
        let later = begun + Duration::from_secs(3600);
        assert_eq!(
            (todo(&mut stages, later), stages.patience(later)),
            (vec![], None)
        );
        stages.resumed(later);
        assert_eq!(stages.patience(later), Some(TIMEOUT - TIMEOUT / 3));
        let due = later + TIMEOUT;
        assert_eq!(stages.patience(due), Some(Duration::ZERO));
        let timed_out = Todo::TimedOut(on_timeout);
        let expected = match on_timeout {
            OnTimeout::Open => vec![timed_out, Todo::OpenNetworks, Todo::OpenToHost],
            _ => vec![timed_out],
        };
        assert_eq!(todo(&mut stages, due), expected);
        let now = stages.now();
        let open = on_timeout == OnTimeout::Open;
        assert_eq!((now.forced, now.is_ready()), (open, open));
        assert!(now.timed_out && now.adapted_after.is_none());
        assert_eq!(stages.patience(due), None);
        // The guest comes after all.
        let [.., ready] = reports();
        stages.told(&ready, due);
        let late = match open {
            true => vec![],
            false => vec![Todo::OpenNetworks, Todo::OpenToHost],
        };
        assert_eq!(todo(&mut stages, due), late);
        assert!(stages.now().is_ready());
    }
}

#[test]
fn a_guest_that_has_adapted_by_the_time_out_is_in_time() {
    let (mut stages, begun) = running(Some(gate(OnTimeout::Kill)));
    let [.., ready] = reports();
    let due = begun + 2 * TIMEOUT;
    stages.told(&ready, due);
    let opened = [Todo::OpenNetworks, Todo::OpenToHost];
    assert_eq!(todo(&mut stages, due), opened);
}

/// What the snapshot's generation had come to is told when the device is made, before the new one begins.
#[test]
fn what_was_told_before_the_machine_ran_opens_nothing_and_is_not_counted() {
    let begun = Instant::now();
    let mut stages = Stages::new(true, Some(gate(OnTimeout::Keep)));
    let [fresh, .., ready] = reports();
    stages.told(&ready, begun);
    assert_eq!(todo(&mut stages, begun), []);
    stages.told(&fresh, begun);
    stages.resumed(begun);
    assert_eq!(todo(&mut stages, begun), []);
    let now = stages.now();
    assert_eq!((now.reseeded_after, now.identity_after), (None, None));
}

#[test]
fn a_later_generation_shuts_no_gate_and_is_not_ready_before_it_has_adapted() {
    let (mut stages, begun) = running(Some(gate(OnTimeout::Keep)));
    let [fresh, .., identity, ready] = reports();
    stages.told(&ready, begun);
    todo(&mut stages, begun);
    stages.told(&fresh, begun);
    let now = stages.now();
    assert_eq!((now.opened, now.is_ready()), (Stage::Service, false));
    stages.told(&identity, begun);
    assert_eq!(stages.now().stage(), Stage::Identity);
    stages.told(&ready, begun);
    assert!(stages.now().is_ready());
    assert_eq!(todo(&mut stages, begun), []);
}

#[test]
fn a_machine_without_a_gate_has_stages_and_nothing_to_do() {
    let (mut stages, begun) = running(None);
    for report in reports() {
        assert!(!stages.told(&report, begun));
        assert_eq!(todo(&mut stages, begun), []);
    }
    let now = stages.now();
    assert!(now.is_ready() && now.service_after == Some(Duration::ZERO));
    assert!(!stages.is_pending());
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Told(usize),
    Resumed,
    Paused,
    Wait(u64),
    Look,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..reports().len()).prop_map(Event::Told),
        1 => Just(Event::Resumed),
        1 => Just(Event::Paused),
        1 => (0..40_u64).prop_map(Event::Wait),
        3 => Just(Event::Look),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// In any order: each thing is to be done once at most, networks come first, nothing opens without the guest's word or the
    /// time-out's, nothing happens while the machine stands still, and who is told to sleep misses nothing.
    #[test]
    fn any_order_of_events_opens_what_it_should_and_nothing_else(
        events in prop::collection::vec(event(), 0..60),
        on_timeout in prop::sample::select(vec![OnTimeout::Keep, OnTimeout::Kill, OnTimeout::Open]),
        gated in any::<bool>(),
    ) {
        let begun = Instant::now();
        let mut now = begun;
        let mut stages = Stages::new(true, gated.then(|| gate(on_timeout)));
        let (mut runs, mut ran) = (false, Duration::ZERO);
        let mut word = Stage::None;
        let mut done = Vec::new();
        for event in events {
            match event {
                Event::Told(n) => {
                    stages.told(&reports()[n], now);
                    word = match n {
                        5 => Stage::Service,
                        4 => Stage::Identity,
                        _ => Stage::None,
                    };
                }
                Event::Resumed => {
                    stages.resumed(now);
                    runs = true;
                }
                Event::Paused => {
                    stages.paused(now);
                    runs = false;
                }
                Event::Wait(seconds) => {
                    now += Duration::from_secs(seconds);
                    ran += Duration::from_secs(if runs { seconds } else { 0 });
                }
                Event::Look => {
                    let patience = stages.patience(now);
                    let all = todo(&mut stages, now);
                    prop_assert!(all.is_empty() || runs && gated);
                    prop_assert_eq!(!all.is_empty(), patience == Some(Duration::ZERO));
                    for todo in &all {
                        let forced = stages.now().forced;
                        match todo {
                            Todo::OpenNetworks => prop_assert!(forced || word >= Stage::Identity),
                            Todo::OpenToHost => {
                                prop_assert!(forced || word == Stage::Service);
                                prop_assert!(done.contains(&Todo::OpenNetworks) || all.contains(&Todo::OpenNetworks));
                            }
                            Todo::TimedOut(how) => {
                                prop_assert_eq!(*how, on_timeout);
                                prop_assert!(ran >= TIMEOUT);
                            }
                        }
                        prop_assert!(!done.contains(todo), "{:?} again", todo);
                    }
                    done.extend(all);
                }
            }
            let told = stages.now();
            prop_assert!(told.opened <= Stage::Service);
            let marks = [told.reseeded_after, told.identity_after, told.adapted_after, told.service_after];
            prop_assert!(marks.into_iter().flatten().all(|after| after <= ran));
            prop_assert_eq!(told.is_ready(), told.stage() == Stage::Service);
            prop_assert!(!told.is_ready() || told.forced || word == Stage::Service);
        }
    }
}
