//! Network interfaces of real guests, on taps in namespaces of their own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

mod clones;
mod gate;
mod links;
mod metrics;
mod settings;
mod snapshots;
mod traffic;

use std::time::Duration;

use vm_agent::patience::Patience;
use vmgenie_tests::Vm;

/// How long a guest may take for something, on a host that may be emulated and busy.
const LIMIT: Duration = Duration::from_secs(90);

/// Bytes of a file, of which no two pieces are alike.
fn file(len: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def1_u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// Repeats a command until it succeeds, and returns what it wrote.
fn until_it_succeeds(vm: &mut Vm, command: &str) -> String {
    let mut patience = Patience::new(LIMIT);
    loop {
        let (status, output) = vm.run(command);
        if status == 0 {
            return output;
        }
        assert!(!patience.is_over(), "{command}: {status} {output}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
