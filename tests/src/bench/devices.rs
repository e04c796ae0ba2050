//! A drive, a network interface, a vsock and an entropy device for a guest that is measured.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::http::Connection;

/// The name of our tap.
const TAP: &str = "vmgbench0";
/// `TUNSETIFF`, `TUNSETPERSIST` (linux/if_tun.h).
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
/// The drive's size in bytes.
const DRIVE_LEN: u64 = 64 << 20;

/// What is behind the devices on the host. The tap is there before any monitor starts, as in production: making one takes
/// milliseconds.
#[derive(Debug)]
pub(crate) struct Devices {
    tap: File,
    dir: PathBuf,
    vsock: PathBuf,
}

impl Devices {
    /// Makes a tap; files come into `dir`.
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        let tap = tap().context(
            "could not make a tap for the restore with devices (that takes root and /dev/net/tun)",
        )?;
        Ok(Self {
            tap,
            dir: dir.to_owned(),
            vsock: dir.join("vsock"),
        })
    }

    /// Before a monitor starts: the one before has left its socket.
    pub(crate) fn tidy_up(&self) {
        // There is none the first time.
        let _ = fs::remove_file(&self.vsock);
    }

    /// Gives them to a guest of `monitor` that has not been started.
    ///
    /// Each monitor has a drive of its own: one that tries what the file can do changes it, and
    /// another warns of that at each restore.
    pub(crate) fn configure(&self, api: &mut Connection, monitor: &str) -> Result<()> {
        let path = self.dir.join(format!("drive-{monitor}"));
        let file = File::create(&path).context("could not make a drive")?;
        file.set_len(DRIVE_LEN).context("could not make a drive")?;
        let drive = json!({
            "drive_id": "data",
            "path_on_host": path,
            "is_root_device": false,
            "is_read_only": false,
        });
        let net = json!({ "iface_id": "eth0", "host_dev_name": TAP });
        let vsock = json!({ "guest_cid": 3, "uds_path": self.vsock });
        api.send("PUT /drives/data", &drive)?;
        api.send("PUT /network-interfaces/eth0", &net)?;
        api.send("PUT /vsock", &vsock)?;
        api.send("PUT /entropy", &json!({}))?;
        Ok(())
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        // SAFETY: reads and writes one ifreq.
        unsafe { libc::ioctl(self.tap.as_raw_fd(), TUNSETIFF, &mut request()) };
        // SAFETY: takes an integer. The tap goes with its last descriptor, which is this one.
        unsafe { libc::ioctl(self.tap.as_raw_fd(), TUNSETPERSIST, 0) };
    }
}

fn request() -> libc::ifreq {
    // SAFETY: plain numbers, all of which may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    request
}

/// Makes a tap that stays; the descriptor that is returned is not attached to it, so that a monitor can be.
fn tap() -> io::Result<File> {
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
    };
    let attached = open()?;
    // SAFETY: reads and writes one ifreq.
    let made = unsafe { libc::ioctl(attached.as_raw_fd(), TUNSETIFF, &mut request()) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes an integer.
    if unsafe { libc::ioctl(attached.as_raw_fd(), TUNSETPERSIST, 1) } < 0 {
        return Err(io::Error::last_os_error());
    }
    drop(attached);
    open()
}
