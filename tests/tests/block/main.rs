//! Drives of real guests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

mod clones;
mod crash;
mod durable;
mod files;
mod function;
mod opened;
mod overlays;
mod snapshots;

use std::time::Duration;

use vm_agent::patience::Patience;
use vmgenie_tests::Vm;

/// How long a guest may take for something, on a host that may be emulated and busy.
const LIMIT: Duration = Duration::from_secs(120);

/// Starts a load in the background; its output goes to `/tmp/NAME`.
fn start_load(vm: &mut Vm, name: &str, arguments: &str) {
    vm.shell(&format!("guest-load {arguments} > /tmp/{name} 2>&1 &"));
}

/// Waits until a load's last line begins with `word` and has a number larger than `least` after it; returns the number.
fn wait_for_load(vm: &mut Vm, name: &str, word: &str, least: u64) -> u64 {
    let mut patience = Patience::new(LIMIT);
    loop {
        let (_, last) = vm.run(&format!("tail -n 1 /tmp/{name}"));
        let last = last.trim();
        let number = last.strip_prefix(word).map(str::trim);
        if let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) {
            if number > least {
                return number;
            }
        } else {
            assert!(!last.starts_with("guest-load"), "{last}");
        }
        assert!(!patience.is_over(), "{word} {least}: {last:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
