//! A command with mounts, processes and perhaps users of its own.

use std::process::Command;

/// `unshare` with the namespaces that tie a command's mounts and processes to it; where we are
/// not root, in a user namespace in which we are.
pub(crate) fn unshare() -> Command {
    let mut command = Command::new("unshare");
    if !is_root() {
        command.args(["--map-auto", "--map-root-user"]);
    }
    command.args([
        "--mount",
        "--propagation=private",
        "--pid",
        "--fork",
        "--kill-child",
        "--",
    ]);
    command
}

/// Whether this process may do everything.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid takes no pointers and cannot fail.
    unsafe { libc::geteuid() == 0 }
}
