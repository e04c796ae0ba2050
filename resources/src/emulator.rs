//! The emulator of the KVM host: a QEMU of its own, unpacked from Debian's packages and started
//! through their own loader.
//!
//! Two faults of the QEMU 7.2 that Debian 12 has make it useless here: guests of the emulated KVM
//! cannot use XSAVE (`xsetbv` is not intercepted, so that KVM never hears of it), and code that a
//! kernel patches while it runs is sometimes executed as it was before. QEMU 10 has neither.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::chroot;
use crate::progress::Progress;

/// The Debian release that the emulator comes from.
const SUITE: &str = "trixie";
/// The emulator and the firmware that it loads ELF kernels with.
const PACKAGES: &str = "qemu-system-x86,seabios";
/// Where Debian keeps libraries.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// An unpacked QEMU.
#[derive(Debug, Clone)]
pub(crate) struct Emulator {
    dir: PathBuf,
}

impl Emulator {
    /// A command that starts it, still without arguments of its own.
    pub(crate) fn command(&self) -> Command {
        let at = |path: &str| self.dir.join(path);
        let libraries = [at(LIBRARIES), at(LIBRARIES).join("pulseaudio")]
            .map(|path| path.into_os_string())
            .join(std::ffi::OsStr::new(":"));
        let mut command = Command::new(at("usr/lib64/ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(libraries)
            .arg(at("usr/bin/qemu-system-x86_64"))
            .arg("-L")
            .arg(at("usr/share/qemu"))
            .arg("-L")
            .arg(at("usr/share/seabios"));
        command
    }
}

/// The emulator, fetched if it is not there.
pub(crate) fn emulator(cache: &Cache, progress: &Progress) -> Result<Emulator> {
    let dir = cache.place("emulator", &format!("{SUITE}; {PACKAGES}; 1"));
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
        .arg(format!("--include={PACKAGES}"))
        .arg(SUITE)
        .arg(inside);
    step.run(&mut command, &log)?;
    step.done();
    Ok(())
}
