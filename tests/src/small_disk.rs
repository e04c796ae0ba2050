//! A small disk that can be filled.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use tempfile::TempDir;

/// A tmpfs that only the thread which made it, and the processes that it starts from then on, can see.
#[derive(Debug)]
pub struct SmallDisk(TempDir);

impl SmallDisk {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Ok(path) = CString::new(self.path().as_os_str().as_bytes()) {
            // SAFETY: a terminated string. What still uses the disk keeps it; the name is free, so that the directory can go.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

/// Mounts a tmpfs with these options.
///
/// # Panics
/// When this process may not mount: these tests need root, which they are in the host that `cargo xtask test` runs them in.
pub fn small_disk(options: &CStr) -> SmallDisk {
    let dir = tempfile::tempdir().expect("a temporary directory");
    if let Err(error) = mount(dir.path(), options) {
        panic!("could not mount a small tmpfs (this test must run as root): {error}");
    }
    SmallDisk(dir)
}

fn mount(dir: &Path, options: &CStr) -> io::Result<()> {
    let done = |result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    let dir = CString::new(dir.as_os_str().as_bytes())?;
    let (none, tmpfs) = (ptr::null(), c"tmpfs".as_ptr());
    // SAFETY: gives this thread mount points of its own; takes no pointer.
    done(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the path is a terminated string; null stands for what the kernel ignores here.
    done(unsafe { libc::mount(none, c"/".as_ptr(), none, private, ptr::null()) })?;
    // SAFETY: all are terminated strings that live through the call.
    done(unsafe { libc::mount(tmpfs, dir.as_ptr(), tmpfs, 0, options.as_ptr().cast()) })
}
