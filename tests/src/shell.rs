//! The shell of a guest, whichever monitor it runs on, and what tests of the driver do with it.

use std::time::Duration;

use vm_agent::patience::{Patience, Progress};

use crate::console::Console;

/// How long a guest may leave a command without an answer.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(45);
/// How long a guest may take for something, on a host that may be emulated and busy.
const LIMIT: Duration = Duration::from_secs(60);

/// A guest that takes commands on its console and answers each with its output and `@@exit:STATUS`.
pub trait Shell {
    /// The guest's console.
    fn console(&mut self) -> &mut Console;

    /// Runs a shell command in the guest; returns its exit status and what it wrote.
    fn run(&mut self, command: &str) -> (i32, String) {
        self.run_within(command, COMMAND_LIMIT)
    }

    /// The same for one that may take longer, or shorter.
    fn run_within(&mut self, command: &str, limit: Duration) -> (i32, String) {
        assert!(!command.contains('\n'), "one line at a time: {command:?}");
        let console = self.console();
        console.send(&format!("{command}\n"));
        let output = console.wait_for("@@exit:", limit);
        let status = console.wait_for("\n", COMMAND_LIMIT);
        let status = exit_status(&status).unwrap_or_else(|| {
            panic!(
                "no exit status of {command:?} on the console: {}",
                self.console().text()
            )
        });
        (status, output)
    }

    /// Runs a shell command in the guest that must succeed; returns what it wrote.
    fn shell(&mut self, command: &str) -> String {
        let (status, output) = self.run(command);
        assert_eq!(status, 0, "{command}:\n{output}");
        output
    }
}

/// The number at the head of a line: the kernel may say something before the line ends.
fn exit_status(line: &str) -> Option<i32> {
    let line = line.trim_start();
    let digits = line.find(|c: char| !c.is_ascii_digit());
    line[..digits.unwrap_or(line.len())].parse().ok()
}

/// Loads both modules, the first with parameters.
pub fn load_modules(guest: &mut impl Shell, parameters: &str) {
    guest.shell(&format!("insmod /modules/sysgenid.ko {parameters}"));
    guest.shell("insmod /modules/sysgenid_vmgenid.ko");
}

/// Starts an agent whose hook for the identity of a clone does not end before there is `/tmp/go`; the guest has both modules.
pub fn start_hanging_agent(guest: &mut impl Shell) {
    let hook = "#!/bin/sh\\nwhile [ ! -e /tmp/go ]; do sleep 0.1; done\\n";
    let dir = "/hooks/adapt.d/identity";
    guest.shell(&format!(
        "mkdir -p {dir} && printf '{hook}' > {dir}/10-hangs && chmod 755 {dir}/10-hangs"
    ));
    guest.shell(
        "sysgenctl agent --require-success --retry 500ms --directory /hooks --state /tmp/state > /tmp/agent 2>&1 &",
    );
}

/// The counter as the driver has it.
pub fn generation(guest: &mut impl Shell) -> u32 {
    let text = guest.shell("cat /sys/kernel/debug/sysgenid/generation");
    let number = text.trim().parse();
    number.unwrap_or_else(|error| panic!("{error} in {text:?}"))
}

/// Starts a program in the guest's background, and waits for its line `ready ...`; returns what it has told.
pub fn start(guest: &mut impl Shell, program: &str) -> String {
    guest.shell(&format!("{program} > /tmp/told 2>&1 &"));
    told(guest, "ready")
}

/// What the program has told once it has told a line that starts with `word`.
pub fn told(guest: &mut impl Shell, word: &str) -> String {
    let mut patience = Patience::new(LIMIT);
    loop {
        let text = guest.shell("cat /tmp/told");
        if text.lines().any(|line| line.starts_with(word)) {
            return text;
        }
        // The console speaks at each question, and that is no progress.
        let over = patience.is_over_at(|| Progress {
            done: text.len() as u64,
            ..guest.console().progress()
        });
        assert!(!over, "no {word:?} in {text:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The kernel log has nothing to complain about.
pub fn no_complaints(guest: &mut impl Shell) {
    // With the capitals that the kernel has: a harmless line of PCI's asks its reader to "report a bug".
    const OF_THE_KERNEL: &str = "BUG|WARNING|Oops|Call Trace|general protection|possible recursive|\
                                 circular locking|KASAN|sleeping function|refcount_t|hung";
    const OF_DEVICES: &str = "NETDEV WATCHDOG|I/O error|id .* is not a head|bad gso|bad csum|\
                              virtio.*([Ee]rror|[Ff]ail)";
    let log = guest.shell(&format!(
        "dmesg | grep -E '{OF_THE_KERNEL}|{OF_DEVICES}' || true"
    ));
    assert_eq!(log, "");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_status_is_read_although_the_kernel_speaks_behind_it() {
        assert_eq!(exit_status("0\r\n"), Some(0));
        assert_eq!(
            exit_status("127[   21.203585] crng_delay: gone on\n"),
            Some(127)
        );
        assert_eq!(exit_status("[   21.203585] crng_delay: gone on\n"), None);
        assert_eq!(exit_status(""), None);
    }
}
