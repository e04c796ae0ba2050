//! What a guest itself knows of its generation.
//!
//! The kernel's vmgenid driver hands the 16 bytes that it has read from the device to `add_vmfork_randomness()`. A kprobe there,
//! which the guest's init sets up, writes them to the trace; the kernel log has a line for each time that the kernel's random
//! number generator was reseeded for that reason.

use std::time::Duration;

use vm_agent::patience::Patience;

use crate::shell::Shell;

/// The line in the kernel log.
const RESEEDED: &str = "crng reseeded due to virtual machine fork";

/// What the guest has noticed since it booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noticed {
    /// How often the log says that the random number generator was reseeded because of a new generation.
    pub reseeds: usize,
    /// The generation IDs that the guest's driver has read at changes, as raw hex text.
    pub ids: Vec<String>,
}

impl Noticed {
    /// Asks the guest.
    pub fn of(vm: &mut impl Shell) -> Self {
        let (_, log) = vm.run(&format!("dmesg | grep -c '{RESEEDED}'"));
        let trace = vm.shell("grep add_vmfork_randomness /sys/kernel/tracing/trace || true");
        Self {
            reseeds: log.trim().parse().expect("a number of lines"),
            ids: trace.lines().filter_map(id_in).collect(),
        }
    }

    /// Asks the guest until it has noticed `changes` changes.
    ///
    /// # Panics
    /// When it has not within `limit`.
    pub fn wait(vm: &mut impl Shell, changes: usize, limit: Duration) -> Self {
        let mut patience = Patience::new(limit);
        loop {
            let noticed = Self::of(vm);
            if noticed.reseeds >= changes && noticed.ids.len() >= changes {
                return noticed;
            }
            assert!(
                !patience.is_over(),
                "the guest noticed {noticed:?} of {changes} changes within {limit:?}; its log:\n{}",
                vm.shell("dmesg | tail -n 30")
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The ID in one line of the trace: `... lo=0x1122334455667788 hi=0x...`, both little-endian words.
pub fn id_in(line: &str) -> Option<String> {
    let word = |name: &str| {
        let text = line
            .split_whitespace()
            .find_map(|part| part.strip_prefix(name))?;
        let value = u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()?;
        Some(
            value
                .to_le_bytes()
                .map(|byte| format!("{byte:02x}"))
                .concat(),
        )
    };
    Some(word("lo=")? + &word("hi=")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_from_a_line_of_the_trace() {
        let line = "  kworker/0:1-10 [000] ..... 4.2: vmgenid: (add_vmfork_randomness+0x0/0x80) \
                    lo=0x8877665544332211 hi=0x1";
        assert_eq!(id_in(line).unwrap(), "11223344556677880100000000000000");
        assert_eq!(id_in("something else"), None);
    }
}
