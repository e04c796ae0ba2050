//! The Debian image as a guest: booted from its disk, on a network, with a root's shell on its console.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use vm_agent::patience::Patience;

use crate::Vm;
use crate::console::Console;
use crate::net::{GUEST, HOST, Namespace};
use crate::room::on_a_disk;

/// How long the image may show no sign of its boot.
pub const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// The memory of a machine with the image.
pub const MEMORY: &str = "256M";
/// Where its page is served.
pub const PORT: u16 = 80;
/// The name that the first machine is given.
pub const NAME: &str = "origin";

/// The image, which is not to be written to.
pub fn image() -> PathBuf {
    std::env::var_os("VMGENIE_IMAGE")
        .map(PathBuf::from)
        .expect("VMGENIE_IMAGE is not set: run this through `cargo xtask`")
}

/// The disk with Python, Node and what of ours they have, which is not to be written to.
pub fn runtimes() -> PathBuf {
    std::env::var_os("VMGENIE_RUNTIMES")
        .map(PathBuf::from)
        .expect("VMGENIE_RUNTIMES is not set: run this through `cargo xtask test`")
}

/// The image's initramfs, as a file: for monitors that do not look into images.
pub fn initrd() -> PathBuf {
    image().with_file_name("initrd.img")
}

/// A directory with room for disks. In the emulated host that is where the image is: the usual place is memory there.
pub fn room_for_disks() -> TempDir {
    let dir = match on_a_disk() {
        Some(parent) => tempfile::tempdir_in(parent),
        None => tempfile::tempdir(),
    };
    dir.expect("a directory for disks")
}

/// Copies a disk without its holes.
pub fn copy_disk(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut target = OpenOptions::new().write(true).create_new(true).open(to)?;
    let len = source.metadata()?.len();
    target.set_len(len)?;
    let mut at = 0;
    while let Some(begin) = seek(&source, at, libc::SEEK_DATA)? {
        let end = seek(&source, begin, libc::SEEK_HOLE)?.unwrap_or(len);
        source.seek(SeekFrom::Start(begin))?;
        target.seek(SeekFrom::Start(begin))?;
        io::copy(&mut (&source).take(end - begin), &mut target)?;
        at = end;
    }
    target.flush()
}

/// The next data or hole from `at` on; `None` behind the last.
fn seek(file: &File, at: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    // SAFETY: takes numbers.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at as libc::off_t, whence) };
    let error = io::Error::last_os_error();
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(_) => Err(error),
    }
}

/// The word that tells a machine with the image its address and its name.
pub fn told(address: Ipv4Addr, name: &str) -> String {
    format!("ip={address}::{HOST}:24:{name}:eth0:off")
}

/// The kernel command line of the first machine.
pub fn cmdline() -> String {
    format!("console=ttyS0 quiet panic=-1 {}", told(GUEST, NAME))
}

/// Boots a disk with the image on the tap `tap0` of `namespace`; does not wait for anything.
pub fn start(namespace: &Namespace, disk: &Path) -> Vm {
    let arguments = [
        "run".to_owned(),
        format!("--disk={},writeback", disk.display()),
        format!("--memory={MEMORY}"),
        format!("--cmdline={}", cmdline()),
        "--net=tap0".to_owned(),
        "--entropy".to_owned(),
    ];
    namespace.run(|| Vm::spawn(&arguments, &[]))
}

/// What a machine says of itself on its page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page(String);

impl From<String> for Page {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Page {
    /// All of it.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Asks the guest with this console for it, with patience of `limit`, until there is an answer that is complete.
    pub fn of(
        console: &Console,
        namespace: &Namespace,
        address: Ipv4Addr,
        limit: Duration,
    ) -> Self {
        let mut patience = Patience::new(limit);
        loop {
            match namespace.try_get(address, PORT, "/") {
                Ok(body) => return Self(String::from_utf8_lossy(&body).into_owned()),
                Err(error) => assert!(
                    !patience.is_over_at(|| console.progress()),
                    "no page from {address} within {limit:?}: {error}"
                ),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The value of a line of it.
    pub fn value(&self, name: &str) -> &str {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.strip_prefix(": "))
            .unwrap_or_else(|| panic!("no {name} in {:?}", self.0))
    }
}

/// Takes the shell that is logged in on the console: from here on [`Vm::shell`] works, in clones too.
pub fn take_shell(vm: &mut Vm) {
    vm.console.wait_for("# ", BOOT_LIMIT);
    // Quoted so that the echo of this line is none of the words that are waited for.
    vm.console.send(
        "stty -echo; exec sh -c 'echo \"@@\"ready; while IFS= read -r line; do eval \"$line\"; echo \"@@\"exit:$?; done'\n",
    );
    vm.wait_ready();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_at_the_same_places() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let mut file = File::create(&from).unwrap();
        file.write_all(b"begin").unwrap();
        file.seek(SeekFrom::Start(4 << 20)).unwrap();
        file.write_all(b"middle").unwrap();
        file.set_len(8 << 20).unwrap();
        copy_disk(&from, &to).unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        assert!(copy_disk(&from, &to).is_err(), "something was there");
    }
}
