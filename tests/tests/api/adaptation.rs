//! The generation counter, what a driver reports of it, and waiting for that. The tiny guest plays the driver.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vm_agent::patience::{Patience, stretched};
use vmgenie_api::client::Client;
use vmgenie_api::wire::{GenerationChoice, GenerationWaited, Missing};
use vmgenie_tests::Vm;
use vmgenie_tests::http::{call, ok, refused_with};
use vmgenie_tests::process::signal;
use vmgenie_tests::tiny::{self, LIMIT, echo, generation};

fn wait(client: &mut Client, timeout: Duration) -> GenerationWaited {
    client.wait_for_generation(timeout).expect("an answer")
}

fn missing(vm: &mut Vm) -> Vec<Missing> {
    let waited = wait(&mut vm.client, Duration::ZERO);
    assert_eq!(waited.adapted, waited.missing.is_empty());
    waited.missing
}

/// The generation's counter, and whether the guest has adapted.
fn counter(vm: &mut Vm) -> (u32, bool) {
    let now = generation(vm);
    (now.counter, now.driver.adapted)
}

#[test]
fn a_driver_reports_step_by_step_over_generations_snapshots_and_clones() {
    let mut vm = tiny::boot("echo ring");
    assert_eq!(missing(&mut vm), [Missing::Driver]);
    vm.client.new_generation().unwrap();
    assert_eq!(
        counter(&mut vm),
        (1, false),
        "without a driver it counts as well"
    );
    echo(&mut vm, "v");
    assert_eq!(missing(&mut vm), [Missing::Reseeded, Missing::Reached]);
    echo(&mut vm, "rt");
    assert_eq!((missing(&mut vm), counter(&mut vm)), (vec![], (2, true)));
    let snapshot = vm.snapshot();

    let mut kept = Vm::restore_as(&snapshot, GenerationChoice::Keep);
    assert_eq!(counter(&mut kept), (2, true));
    let mut clone = Vm::restore(&snapshot);
    assert_eq!(counter(&mut clone), (3, false));
    assert_eq!(missing(&mut clone), [Missing::Reseeded, Missing::Reached]);
    echo(&mut clone, "t");
    assert_eq!(missing(&mut clone), [Missing::Reseeded, Missing::Reached]);
    echo(&mut clone, "r");
    assert_eq!(missing(&mut clone), [Missing::Reached]);
    let grandchild = clone.snapshot();
    echo_after_resume(&mut clone, "wt");
    assert_eq!(missing(&mut clone), [Missing::Watchers]);
    echo(&mut clone, "a");
    let told = generation(&mut clone).driver;
    assert!(
        told.adapted && told.reseeded_us <= told.reached_us && told.reached_us <= told.adapted_us
    );
    assert!(told.reseeded_us.is_some());
    echo(&mut clone, "g");
    assert_eq!(missing(&mut clone), [Missing::Driver]);

    let mut grandchild = Vm::restore(&grandchild);
    assert_eq!(counter(&mut grandchild), (5, false));
    echo(&mut grandchild, "rt");
    assert_eq!(counter(&mut grandchild), (6, true));
    assert_eq!(counter(&mut kept), (2, true));
}

/// Says that there are as many waits as there may be.
const FULL: &str = "wait for one of them";

fn echo_after_resume(vm: &mut Vm, text: &str) {
    vm.client.resume().unwrap();
    echo(vm, text);
}

#[test]
fn a_wait_ends_when_the_guest_has_adapted_and_holds_nobody_up_meanwhile() {
    let mut vm = tiny::boot("echo ring");
    echo(&mut vm, "v");
    vm.client.new_generation().unwrap();
    let socket = vm.client.socket().to_owned();
    let limit = stretched(LIMIT);
    let waiter = std::thread::spawn(move || wait(&mut Client::new(socket).unwrap(), limit));
    std::thread::sleep(Duration::from_millis(200));
    let asked = Instant::now();
    assert_eq!(ok(&mut vm.client, "GET /", "")["state"], "Running");
    assert!(asked.elapsed() < limit / 4);
    echo(&mut vm, "rt");
    let waited = waiter.join().unwrap();
    assert!(waited.adapted && waited.waited_us > 100_000, "{waited:?}");

    let short = r#"{"timeout_ms": 50}"#;
    vm.client.new_generation().unwrap();
    let told = ok(&mut vm.client, "PUT /generation/wait", short);
    assert_eq!(told["missing"], json!(["reseeded", "reached"]));
    assert!(told["waited_us"].as_u64().unwrap() >= 50_000, "{told}");
    vm.client.pause().unwrap();
    refused_with(
        &mut vm.client,
        "PUT /generation/wait",
        short,
        "resume it first",
    );
}

#[test]
fn waits_end_with_the_machine_and_there_is_a_limit_to_their_number() {
    let mut vm = tiny::boot("echo ring");
    let socket = vm.client.socket().to_owned();
    let waiters: Vec<_> = (0..vmgenie_api::limits::MAX_WAITS)
        .map(|_| {
            let socket = socket.clone();
            std::thread::spawn(move || {
                let mut client = Client::new(socket).unwrap();
                loop {
                    let long = r#"{"timeout_ms": 600000}"#;
                    let told = call(&mut client, "PUT /generation/wait", long);
                    // The look below may have taken the last place.
                    if !told.1.to_string().contains(FULL) {
                        return told;
                    }
                }
            })
        })
        .collect();
    let mut patience = Patience::new(LIMIT);
    let one_more = r#"{"timeout_ms": 0}"#;
    loop {
        let (status, told) = call(&mut vm.client, "PUT /generation/wait", one_more);
        if told.to_string().contains(FULL) {
            break;
        }
        assert!(status == 200 && !patience.is_over(), "{told}");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(ok(&mut vm.client, "GET /", "")["state"], "Running");
    signal(vm.pid(), libc::SIGTERM);
    for waiter in waiters {
        let told: (u16, Value) = waiter.join().unwrap();
        assert_eq!(told.0, 400);
        assert!(told.1.to_string().contains("shutting down"), "{told:?}");
    }
}
