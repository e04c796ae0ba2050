//! What the help says below the options.

use crate::kinds::EXAMPLES;

/// What `vmgenie --version` says. Programs that were written for Firecracker compare the first line with what they
/// need at least, so it comes first and has nothing behind the number.
pub(super) const VERSIONS: &str = concat!(
    "Firecracker v1.12.0\nvmgenie ",
    env!("CARGO_PKG_VERSION"),
    "\n"
);

pub(super) const AFTER_HELP: &str = "\
Exit status:
  0  success; for `run`, `api` and `restore`: the guest powered off, or rebooted with
     --on-reboot exit
  1  failure
  2  the command line is wrong
  3  the guest crashed (triple fault) or KVM gave up on it
  4  KVM is not usable
  5  a guest has not adapted in time: `generation --wait`, `fork`, or a machine with
     --gate=on-timeout=kill

Examples:
  vmgenie run --disk debian.ext4
  vmgenie run --kernel vmlinux --initrd initrd.img --memory 512M --cpus 2 --api-sock vm.sock
  vmgenie snapshot vm.sock snapshot
  vmgenie restore snapshot
  vmgenie clone snapshot -n 3
  vmgenie fork vm.sock -n 3
  vmgenie console clone-1
  vmgenie tree
  vmgenie generation vm.sock --json
  vmgenie --api-sock fc.sock --help    (Firecracker's own command line, for programs written for it)";

const RUN_HELP: &str = "\
The guest's serial console is this terminal: Ctrl-A x ends the machine, Ctrl-A Ctrl-A sends one
Ctrl-A.

Examples:
  vmgenie run --disk debian.ext4
  vmgenie run --kernel vmlinux
  vmgenie run --kernel bzImage --initrd initrd.img --memory 1G --cpus 4 --cmdline 'console=ttyS0 ro'
";

/// Of `run`: with the examples of devices.
pub(super) fn run_help() -> String {
    format!("{RUN_HELP}{EXAMPLES}")
}

pub(super) const API_HELP: &str = "\
Example:
  vmgenie api --api-sock vm.sock &
  vmgenie restore --into vm.sock snapshot";

pub(super) const PAUSE_HELP: &str = "\
Examples:
  vmgenie pause web-1
  vmgenie pause vm.sock";

pub(super) const RESUME_HELP: &str = "\
Examples:
  vmgenie resume web-1
  vmgenie resume vm.sock";

pub(super) const INFO_HELP: &str = "\
Examples:
  vmgenie info web-1
  vmgenie info vm.sock --json";

pub(super) const GENERATION_HELP: &str = "\
Examples:
  vmgenie generation vm.sock
  vmgenie generation web-1 --new --json
  vmgenie generation vm.sock --wait=500ms
  vmgenie generation vm.sock --wait=30s --agents 1";

pub(super) const COMPLETIONS_HELP: &str = "\
Example:
  vmgenie completions bash > ~/.local/share/bash-completion/completions/vmgenie";

pub(super) const PS_HELP: &str = "\
Each machine has a file in $XDG_RUNTIME_DIR/vmgenie, or /run/vmgenie.

Examples:
  vmgenie ps
  vmgenie ps --json";

pub(super) const TREE_HELP: &str = "\
A machine stands below the generation that it came from: that of its original, or of a clone if it
is a clone's. (ended) stands for a generation that no machine is in any more. A = before a name says
that the machine has kept the generation of the one above it: to their guests both are the same.
GENERATION is the beginning of the generation's ID, SINCE when it began. The times are those of
the guest, from its restore on. Machines without an API, or without an answer within a second, are
shown as such.

Examples:
  vmgenie tree
  vmgenie tree --json
  vmgenie tree --html machines.html
  watch vmgenie tree";

pub(super) const STOP_HELP: &str = "\
Examples:
  vmgenie stop web-1
  vmgenie stop 4711 --power-off=30s
  vmgenie stop vm.sock";

pub(super) const CONSOLE_HELP: &str = "\
Ctrl-A d detaches, Ctrl-A Ctrl-A sends one Ctrl-A. What the guest said last (32 KiB at most) is
shown first. Its output goes where it went before all the same, and to all others who are attached.
The machine has to serve its API on a socket, as those of `clone` do.

Examples:
  vmgenie console web-1
  vmgenie console clones/clone-1.sock
  echo uptime | vmgenie console 4711";

pub(super) const SNAPSHOT_HELP: &str = "\
A running machine is paused, and goes on as soon as its memory has been copied; a paused one stays
paused.

With --cooperative the guest takes part: its agent runs the hooks of quiesce.d and freezes
programs, and its kernel stands still. So clones know that they are clones before any program of
theirs runs. It needs the sysgenid driver in the guest.

Examples:
  vmgenie snapshot vm.sock snapshot
  vmgenie snapshot web-1 snapshot --copy-drives
  vmgenie snapshot web-1 snapshot --cooperative
  vmgenie snapshot web-1 snapshot --cooperative --quiesce 30s --fallback plain";

pub(super) const RESTORE_HELP: &str = "\
A restored machine does not boot again: a reboot in its guest ends the process, with status 0.

Examples:
  vmgenie restore snapshot
  vmgenie restore snapshot --serve vm.sock --net net0=tap1 --drive disk0=clone.ext4,copy
  vmgenie restore --into vm.sock snapshot
  vmgenie restore --into vm.sock snapshot --generation keep --no-resume
  vmgenie restore snapshot --gate=agents=1,timeout=1m,on-timeout=kill";

const CLONE_HELP: &str = "\
Each clone is a `vmgenie api` process of its own that lives on; its socket is DIR/clone-N.sock, its
console and log are in DIR/clone-N.log. When one clone fails, all are ended. A clone whose guest
reboots ends, with status 0 and a line in its log.

In --net, --drive, --vsock, --cid and --data, {n} is the number of the clone: 1, 2, ...

Examples:
  vmgenie clone snapshot -n 3
  vmgenie clone snapshot -n 10 --dir clones --data 'web-{n}' --json
  vmgenie clone snapshot -n 3 --net 'net0=tap{n}' --drive 'disk0=disk-{n}.overlay,overlay'
  vmgenie clone snapshot -n 3 --vsock 'clone-{n}.vsock' --cid '100+{n}'
  vmgenie clone snapshot -n 3 --net 'net0=tap{n}' --gate=link,timeout=10s";

const FORK_HELP: &str = "\
The guest takes part: its agent runs the hooks of quiesce.d and freezes programs, its kernel stands
still, and a snapshot is taken at that instant. The machine goes on as itself. The clones are
started from the snapshot, and waited for until they have adapted. Until then a gate keeps them from
their peers; --gate says how, --no-gate leaves it out. All of this needs the sysgenid driver in the
guest; --fallback plain forks any other guest, too.

Drives that the guest may write to are copied into the snapshot while it stands still. Each clone
gets an overlay on the copy, and a vsock socket of its own, unless --drive and --vsock say
otherwise. A network interface needs --net.

Without SNAPSHOT_DIR the snapshot lies in $TMPDIR or /tmp, and nothing of it has a name any more
once the clones run: what they need of it goes with the last of them. Without --dir their sockets
and logs go with the last clone, too. Name SNAPSHOT_DIR if clones with drives are to be forked or
snapshotted themselves.

In --net, --drive, --vsock, --cid and --data, {n} is the number of the clone: 1, 2, ...

Examples:
  vmgenie fork web -n 3
  vmgenie fork web -n 3 --net 'net0=tap{n}' --data 'web-{n}' --json
  vmgenie fork vm.sock snapshot -n 2 --dir clones --quiesce 30s --wait 1m
  vmgenie fork 4711 -n 1 --fallback plain";

/// Text for clap in which `{n}` stays what it is. Clap takes it for a line break, and knows no way to say otherwise; what comes between the two here
/// is for terminals alone, which do not show it, and clap leaves it out elsewhere.
fn literal(text: &str) -> String {
    text.replace("{n}", "{\u{1b}[0mn}")
}

/// Of `clone`.
pub(super) fn clone_help() -> String {
    literal(CLONE_HELP)
}

/// Of `fork`.
pub(super) fn fork_help() -> String {
    literal(FORK_HELP)
}
