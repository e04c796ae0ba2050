//! The system call that moves a request's bytes between a file and guest memory.

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::io::Errno;

/// `preadv2` or `pwritev2`.
pub(super) type Vectored = unsafe extern "C" fn(i32, *const libc::iovec, i32, i64, i32) -> isize;

/// Makes the call once; returns how many bytes it transferred.
///
/// # Safety
/// For the time of the call the pieces are mapped, and the kernel may read them and, for `preadv2`, write them.
pub(super) unsafe fn transfer(
    call: Vectored,
    file: &File,
    pieces: &[libc::iovec],
    offset: u64,
    flags: i32,
) -> Result<u64, Errno> {
    // There are fewer pieces than IOV_MAX, and no file has 2^63 bytes.
    let (count, offset) = (pieces.len() as i32, offset as i64);
    // SAFETY: the list is valid for `count` entries; the rest is the caller's promise.
    let done = unsafe { call(file.as_raw_fd(), pieces.as_ptr(), count, offset, flags) };
    u64::try_from(done).map_err(|_| {
        let error = std::io::Error::last_os_error();
        Errno::from_io_error(&error).unwrap_or(Errno::IO)
    })
}
