//! Four of the five workflows as programs in C and in Rust, in guests that are cloned.

use std::collections::HashSet;
use std::time::Duration;

use vm_agent::patience::Patience;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm};

use crate::{LIMIT, boot_with, generation, no_complaints};

/// Programs that renew a secret, and end after one generation.
const RENEWING: [&str; 4] = ["c/watchdog", "c/epoll", "rust/watchdog", "rust/event_loop"];
/// They renew it twice on vmgenie, once for each move of the counter.
const MAPPED: [&str; 2] = ["c/mapped", "rust/mapped"];
/// They hold a service back until all others have adapted, and end then.
const ORCHESTRATORS: [&str; 2] = ["c/orchestrator", "rust/orchestrator"];

/// The file that a program's output is in.
fn output(program: &str) -> String {
    format!("/tmp/{}", program.replace('/', "-"))
}

/// Starts a program in the guest's background; its status follows its output.
fn launch(vm: &mut Vm, program: &str, arguments: &str) {
    let file = output(program);
    vm.shell(&format!(
        "(/examples/{program} {arguments}; echo status $?) > {file} 2>&1 &"
    ));
}

/// A program's output when it has all of `lines`.
fn wait_for(vm: &mut Vm, program: &str, lines: &[&str]) -> String {
    let mut patience = Patience::new(LIMIT);
    loop {
        let text = vm.shell(&format!("cat {}", output(program)));
        if lines
            .iter()
            .all(|line| text.lines().any(|said| said == *line))
        {
            return text;
        }
        assert!(!patience.is_over(), "{program}: no {lines:?} in {text:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The secrets that a program has shown, in order.
pub(crate) fn secrets(text: &str) -> Vec<String> {
    let shown = text
        .lines()
        .filter_map(|line| line.strip_prefix("secret: "));
    shown.map(str::to_owned).collect()
}

fn do_what_they_claim(guest: Guest) {
    let mut vm = boot_with(Boot::new(guest).extras(), "");
    for program in RENEWING.iter().chain(&ORCHESTRATORS) {
        launch(&mut vm, program, "1");
    }
    for program in MAPPED {
        launch(&mut vm, program, "");
    }
    vm.shell("while [ $(cat /sys/kernel/debug/sysgenid/watchers) != 8 ]; do sleep 0.1; done");
    let mut known = HashSet::new();
    for program in RENEWING.iter().chain(&MAPPED) {
        let mut patience = Patience::new(LIMIT);
        let text = loop {
            let text = vm.shell(&format!("cat {}", output(program)));
            if !secrets(&text).is_empty() {
                break text;
            }
            assert!(!patience.is_over(), "{program}");
        };
        assert_eq!(text.lines().count(), 1, "{program}: {text}");
        known.extend(secrets(&text));
    }
    assert_eq!(known.len(), 6, "each has drawn a secret of its own");

    let snapshot = vm.snapshot();
    for _ in 0..2 {
        let mut clone = Vm::restore(&snapshot);
        for program in RENEWING {
            let text = wait_for(&mut clone, program, &["generation 2: renewed", "status 0"]);
            let shown = secrets(&text);
            assert_eq!(shown.len(), 2, "{program}: {text}");
            assert!(
                known.insert(shown[1].clone()),
                "{program}: drawn before: {text}"
            );
        }
        for program in MAPPED {
            let mut text = wait_for(&mut clone, program, &["generation 2: renewed"]);
            // The secret is shown after its generation.
            let mut patience = Patience::new(LIMIT);
            while text.ends_with("renewed\n") && !patience.is_over() {
                text = clone.shell(&format!("cat {}", output(program)));
            }
            let last = secrets(&text).pop().expect("a secret");
            assert!(known.insert(last), "{program}: drawn before: {text}");
        }
        for program in ORCHESTRATORS {
            let told = "generation 2: everyone has adapted, service resumed";
            let text = wait_for(&mut clone, program, &["status 0"]);
            assert_eq!(
                text,
                format!("service held back\n{told}\nstatus 0\n"),
                "{program}"
            );
        }
        assert_eq!(generation(&mut clone), 2);
        assert!(clone.wait_adapted().adapted);
        no_complaints(&mut clone);
    }
    vm.client.resume().unwrap();
    for program in RENEWING.iter().chain(&MAPPED) {
        let text = vm.shell(&format!("cat {}", output(program)));
        assert_eq!(text.lines().count(), 1, "{program} in the original: {text}");
    }
}

#[test]
fn the_examples_do_what_they_claim_in_clones_of_the_small_kernel() {
    do_what_they_claim(Guest::Small);
}

#[test]
fn the_examples_do_what_they_claim_in_clones_of_the_stock_kernel() {
    do_what_they_claim(Guest::Debian);
}

#[test]
fn an_orchestrator_begins_a_generation_on_request_and_tells_who_has_not_adapted() {
    for (program, failed) in [
        ("c/orchestrator", "status 3"),
        ("rust/orchestrator", "status 1"),
    ] {
        let mut vm = boot_with(Boot::new(Guest::Small).extras(), "");
        launch(&mut vm, program, "trigger");
        let all = "generation 1: everyone has adapted, service resumed";
        wait_for(&mut vm, program, &["service held back", all, "status 0"]);
        // Who acknowledges nothing keeps the service back.
        vm.shell("exec 3<>/dev/sysgenid");
        launch(&mut vm, program, "trigger");
        let text = wait_for(&mut vm, program, &["service held back", failed]);
        assert!(text.contains("somebody has not adapted after 5"), "{text}");
        assert!(!text.contains("service resumed"), "{text}");
        no_complaints(&mut vm);
    }
}
