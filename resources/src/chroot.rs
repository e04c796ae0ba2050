//! The guest toolchain root: a Debian in a directory, in which everything that runs in a guest is
//! fetched and built.
//!
//! Programs run there in mount and process namespaces of their own: what is mounted for them and
//! what they start goes with them, whatever ends them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::lifetime;
use crate::namespaces::{is_root, unshare};
use crate::progress::Progress;

/// The Debian release whose compilers are those that Debian built its kernel with.
const SUITE: &str = "trixie";

/// What the root has on top of a minimal system: the kernel's build dependencies.
const PACKAGES: &[&str] = &[
    "bc",
    "bindgen",
    "bison",
    "clang-19",
    "cpio",
    "dwarves",
    "flex",
    "gcc-14",
    "kmod",
    "libclang-dev",
    "libdw-dev",
    "libelf-dev",
    "libssl-dev",
    "lz4",
    "make",
    "perl",
    "python3-minimal",
    "rsync",
    "rust-src",
    "rustc",
    "xz-utils",
];

/// Mounts what `chroot` needs and becomes the command. Arguments: the root, then pairs of a
/// directory and its place in the root, then `--`, then the command.
const ENTER: &str = r#"
PATH=/usr/sbin:/usr/bin:/sbin:/bin
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
if [ -e /etc/resolv.conf ]; then
    touch "$root/etc/resolv.conf"
    mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
fi
while [ "$1" != -- ]; do
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    shift 2
done
shift
exec chroot "$root" /usr/bin/env -i PATH=$PATH HOME=/root LC_ALL=C \
    DEBIAN_FRONTEND=noninteractive "$@"
"#;

/// A complete toolchain root.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    dir: PathBuf,
}

impl Root {
    /// Where the root is; its name is part of every recipe that uses it.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command that runs in the root, with `binds` (directory, place in the root) mounted.
    pub(crate) fn command(&self, binds: &[(&Path, &str)], argv: &[&str]) -> Command {
        enter(&self.dir, binds, argv)
    }

    /// The output of a short command.
    pub(crate) fn output(&self, argv: &[&str]) -> Result<String> {
        self.output_with(&[], argv)
    }

    /// The same with directories mounted.
    pub(crate) fn output_with(&self, binds: &[(&Path, &str)], argv: &[&str]) -> Result<String> {
        let output = lifetime::bind(&mut self.command(binds, argv))
            .output()
            .with_context(|| format!("could not run {argv:?} in the toolchain root"))?;
        if !output.status.success() {
            bail!(
                "{argv:?} failed in the toolchain root ({}): {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn enter(root: &Path, binds: &[(&Path, &str)], argv: &[&str]) -> Command {
    let mut command = unshare();
    command.args(["/bin/sh", "-ec", ENTER, "sh"]).arg(root);
    for (dir, place) in binds {
        command.arg(dir).arg(place);
    }
    command.arg("--").args(argv);
    command
}

/// The toolchain root, made if it is not there.
pub(crate) fn root(cache: &Cache, progress: &Progress) -> Result<Root> {
    let recipe = format!("{SUITE} + backports; {PACKAGES:?}; 1");
    let dir = cache.place("root", &recipe);
    if !dir.exists() {
        check_privileges()?;
        cache
            .make(&dir, |inside| make_root(inside, cache, progress))
            .context("could not make the guest toolchain root")?;
    }
    Ok(Root { dir })
}

fn check_privileges() -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let status = unshare().arg("true").status();
    if !status.is_ok_and(|status| status.success()) {
        bail!(
            "the guest toolchain root needs either root or user namespaces, and this machine \
             gives us neither: run as root, or install uidmap and allow unprivileged user \
             namespaces with a range in /etc/subuid"
        );
    }
    Ok(())
}

/// `mmdebstrap` in the mode that our privileges ask for.
pub(crate) fn mmdebstrap() -> Command {
    if is_root() {
        // Its children too are to end when we do.
        let mut command = unshare();
        command.args(["mmdebstrap", "--mode=root"]);
        command
    } else {
        let mut command = Command::new("mmdebstrap");
        command.arg("--mode=unshare");
        command
    }
}

fn make_root(inside: &Path, cache: &Cache, progress: &Progress) -> Result<()> {
    let log = cache.log("root")?;
    let _ = fs::remove_file(&log);
    let step = progress.step("guest toolchain root: minimal system");
    let mut command = mmdebstrap();
    command
        .args(["--variant=apt", "--format=directory"])
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .arg(SUITE)
        .arg(inside);
    step.run(&mut command, &log)?;
    step.done();

    let step = progress.counted_step("guest toolchain root: compilers", 2 * 190, |line| {
        line.starts_with("Unpacking ") || line.starts_with("Setting up ")
    });
    let script = format!(
        "{ADD_BACKPORTS}\napt-get update\napt-get install -y --no-install-recommends {}\napt-get clean",
        PACKAGES.join(" ")
    );
    step.run(&mut enter(inside, &[], &["sh", "-ec", &script]), &log)?;
    step.done();
    Ok(())
}

/// Backports come from the mirror that the root was made from.
const ADD_BACKPORTS: &str = r#"
mirror=$(sed -n 's/^deb \(\[[^]]*\] \)\?\([^ ]*\) trixie main.*/\2/p' /etc/apt/sources.list | head -n 1)
test -n "$mirror"
echo "deb $mirror trixie-backports main" > /etc/apt/sources.list.d/backports.list
"#;
