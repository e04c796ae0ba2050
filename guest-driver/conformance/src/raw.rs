//! The device's calls as they are, with the error numbers that came.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::ptr;

use crate::Numbering;

/// What a call returned, or its `errno`.
pub(crate) type Answer<T = usize> = Result<T, i32>;

fn answer(result: isize) -> Answer {
    usize::try_from(result).map_err(|_| errno())
}

pub(crate) fn errno() -> i32 {
    std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or_default()
}

/// An open file of the device.
pub(crate) struct Device {
    fd: OwnedFd,
    numbering: Numbering,
}

impl Device {
    pub(crate) fn open(path: &Path, flags: i32, numbering: Numbering) -> Answer<Self> {
        let path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| libc::EINVAL)?;
        // SAFETY: the path is a string that ends with NUL.
        let fd = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) };
        answer(fd as isize)?;
        // SAFETY: the descriptor was just opened and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, numbering })
    }

    pub(crate) fn from_fd(fd: OwnedFd, numbering: Numbering) -> Self {
        Self { fd, numbering }
    }

    /// Another descriptor of the same open file.
    pub(crate) fn copy(&self) -> Answer<Self> {
        let fd = self.fd.try_clone();
        let fd = fd.map_err(|error| error.raw_os_error().unwrap_or_default())?;
        Ok(Self::from_fd(fd, self.numbering))
    }

    pub(crate) fn raw(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> Answer {
        // SAFETY: the buffer is writable for its whole length.
        answer(unsafe { libc::read(self.raw(), buffer.as_mut_ptr().cast(), buffer.len()) })
    }

    /// The new generation.
    pub(crate) fn generation(&self) -> Answer<u32> {
        let mut bytes = [0; 4];
        match self.read(&mut bytes)? {
            4 => Ok(u32::from_ne_bytes(bytes)),
            _ => Err(libc::EPROTO),
        }
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> Answer {
        // SAFETY: the bytes are readable for their whole length.
        answer(unsafe { libc::write(self.raw(), bytes.as_ptr().cast(), bytes.len()) })
    }

    pub(crate) fn acknowledge(&self, generation: u32) -> Answer {
        self.write(&generation.to_ne_bytes())
    }

    /// Reads to, or writes from, an address that is not mapped.
    pub(crate) fn bad_address(&self, write: bool) -> Answer {
        let nowhere = ptr::without_provenance_mut(8);
        // SAFETY: the kernel finds out that nothing is mapped there, and touches nothing.
        answer(unsafe {
            if write {
                libc::write(self.raw(), nowhere, 4)
            } else {
                libc::read(self.raw(), nowhere, 4)
            }
        })
    }

    pub(crate) fn ioctl(&self, request: u64, argument: u64) -> Answer {
        // SAFETY: the device's calls take integers.
        answer(unsafe { libc::ioctl(self.raw(), request as _, argument) } as isize)
    }

    /// A call that passes a value of the size that its number has.
    pub(crate) fn pass<T>(&self, request: u64, passed: &mut T) -> Answer {
        assert_eq!(request >> 16 & 0x3fff, size_of::<T>() as u64);
        // SAFETY: the device reads and writes as many bytes as the number says, which the value has.
        answer(unsafe { libc::ioctl(self.raw(), request as _, ptr::from_mut(passed)) } as isize)
    }

    /// Waits for watchers: milliseconds, 0 without limit.
    pub(crate) fn wait(&self, milliseconds: u64) -> Answer {
        self.ioctl(self.numbering.wait(), milliseconds)
    }

    pub(crate) fn trigger(&self, min: u64) -> Answer {
        self.ioctl(self.numbering.trigger(), min)
    }

    pub(crate) fn ready(&self, generation: u64) -> Answer {
        self.ioctl(0xe40a, generation)
    }

    pub(crate) fn track(&self, on: bool) -> Answer {
        self.ioctl(self.numbering.track(), on.into())
    }

    /// The events that are pending within `milliseconds`, -1 without limit.
    pub(crate) fn poll(&self, milliseconds: i32) -> Answer<i16> {
        let mut entry = libc::pollfd {
            fd: self.raw(),
            events: libc::POLLIN | libc::POLLRDNORM | libc::POLLOUT | libc::POLLPRI,
            revents: 0,
        };
        // SAFETY: there is one entry, which outlives the call.
        answer(unsafe { libc::poll(&mut entry, 1, milliseconds) } as isize)?;
        Ok(entry.revents)
    }

    pub(crate) fn map(&self, len: usize, protection: i32, flags: i32, at: i64) -> Answer<Mapping> {
        // SAFETY: a new mapping at an address that the kernel chooses overlaps no memory in use.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, self.raw(), at) };
        if start == libc::MAP_FAILED {
            return Err(errno());
        }
        Ok(Mapping { start, len })
    }
}

/// Maps the beginning of a file that is none of the device's.
pub(crate) fn map_file(path: &str, protection: i32, len: usize) -> Answer<Mapping> {
    let device = Device::open(path.as_ref(), libc::O_RDONLY, Numbering::Seed)?;
    device.map(len, protection, libc::MAP_SHARED, 0)
}

/// Mapped memory of the device.
pub(crate) struct Mapping {
    start: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    pub(crate) fn load(&self) -> u32 {
        // SAFETY: the mapping is readable, page-aligned, and lives as long as `self`.
        unsafe { self.start.cast::<u32>().read_volatile() }
    }

    /// The word at `offset` bytes, which must be a multiple of 4 inside the page.
    pub(crate) fn word(&self, index: usize) -> u32 {
        assert!(index < 1024);
        // SAFETY: a mapping has a whole page of 1024 words, whatever length was asked for.
        unsafe { self.start.cast::<u32>().add(index).read_volatile() }
    }

    pub(crate) fn protect(&self, protection: i32) -> Answer {
        // SAFETY: the range is a mapping of ours, and nothing borrows from it.
        answer(unsafe { libc::mprotect(self.start, self.len, protection) } as isize)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is a mapping of ours, which nobody uses any more.
        unsafe { libc::munmap(self.start, self.len) };
    }
}
