//! The emulator of the KVM host: a QEMU of its own, unpacked from Debian's packages and started
//! through their own loader.
//!
//! Two faults of the QEMU 7.2 that Debian 12 has make it useless here: guests of the emulated KVM
//! cannot use XSAVE (`xsetbv` is not intercepted, so that KVM never hears of it), and code that a
//! kernel patches while it runs is sometimes executed as it was before. QEMU 10 has neither.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::chroot;
use crate::progress::Progress;

/// The Debian release that the emulator comes from, from its backports: the release's own QEMU 10.0 at times loses an
/// interrupt where a `vmrun` begins, and a host of one processor then stands still.
const SUITE: &str = "trixie";
/// Adds the backports of the mirror that the rest comes from, and prefers them. Its argument is the new root.
const PREFER_BACKPORTS: &str = r#"
mirror=$(sed -n 's/^deb \(\[[^]]*\] \)\?\([^ ]*\) trixie main.*/\2/p' "$1/etc/apt/sources.list" | head -n 1)
test -n "$mirror"
echo "deb $mirror trixie-backports main" > "$1/etc/apt/sources.list.d/backports.list"
mkdir -p "$1/etc/apt/preferences.d"
printf 'Package: src:qemu src:seabios\nPin: release n=trixie-backports\nPin-Priority: 990\n' \
    > "$1/etc/apt/preferences.d/backports"
"#;
/// The emulator and the firmware that it loads ELF kernels with.
const PACKAGES: &str = "qemu-system-x86,seabios";
/// Where Debian keeps libraries.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// Where it keeps firmware.
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// An unpacked QEMU.
#[derive(Debug, Clone)]
pub(crate) struct Emulator {
    dir: PathBuf,
}

impl Emulator {
    /// A command that starts it, still without arguments of its own.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(self.loader());
        command
            .arg("--library-path")
            .arg(self.library_path())
            .arg(self.program());
        for dir in FIRMWARE {
            command.arg("-L").arg(self.dir.join(dir));
        }
        command
    }

    /// Where it is; the name is part of every recipe that uses it.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The program itself, which starts only through [`Self::loader`].
    pub(crate) fn program(&self) -> PathBuf {
        self.dir.join("usr/bin/qemu-system-x86_64")
    }

    /// The dynamic loader that fits the program's libraries.
    pub(crate) fn loader(&self) -> PathBuf {
        self.dir.join("usr/lib64/ld-linux-x86-64.so.2")
    }

    /// Where the libraries are, as the loader takes it.
    pub(crate) fn library_path(&self) -> OsString {
        let libraries = self.dir.join(LIBRARIES);
        [libraries.join("pulseaudio"), libraries]
            .map(PathBuf::into_os_string)
            .join(std::ffi::OsStr::new(":"))
    }

    /// The firmware file of this name.
    pub(crate) fn firmware(&self, name: &str) -> Result<PathBuf> {
        FIRMWARE
            .iter()
            .map(|dir| self.dir.join(dir).join(name))
            .find(|path| path.exists())
            .with_context(|| format!("the emulator has no firmware {name}"))
    }
}

/// The emulator, fetched if it is not there.
pub(crate) fn emulator(cache: &Cache, progress: &Progress) -> Result<Emulator> {
    let dir = cache.place("emulator", &format!("{SUITE} + backports; {PACKAGES}; 1"));
    if !dir.exists() {
        cache
            .make(&dir, |inside| unpack(inside, cache, progress))
            .context("could not get the emulator of the KVM host")?;
    }
    Ok(Emulator { dir })
}

fn unpack(inside: &Path, cache: &Cache, progress: &Progress) -> Result<()> {
    let log = cache.log("emulator")?;
    let _ = fs::remove_file(&log);
    let step = progress.step("emulator of the KVM host");
    let mut command = chroot::mmdebstrap();
    command
        .args(["--variant=extract", "--format=directory"])
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .arg(format!("--setup-hook={PREFER_BACKPORTS}"))
        .arg(format!("--include={PACKAGES}"))
        .arg(SUITE)
        .arg(inside);
    step.run(&mut command, &log)?;
    step.done();
    Ok(())
}
