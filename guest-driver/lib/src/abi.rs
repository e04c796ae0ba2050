//! The two numberings of the device's `ioctl` calls.

use std::ffi::c_void;
use std::io;
use std::ptr;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

const MAGIC: u8 = 0xe4;

/// Which numbering, and with it which error numbers and which rule of tracking, a device has.
///
/// Found out by [`Options::open`](crate::Options::open) unless the caller has chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Abi {
    /// Version 5 of the original patches with `TRIGGER_GEN_UPDATE` and `SET_WATCHER_TRACKING` at numbers
    /// that it left free: what our module serves unless told otherwise. A file that was opened
    /// for writing is tracked from `open` on.
    Seed,
    /// Versions 6 to 8 of the original patches, which some distributions ship; our module with
    /// `abi=8`. No file is tracked until it asks to be.
    Deployed,
}

/// What can be asked of the device; the argument goes by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Milliseconds, or 0 for no limit.
    WaitWatchers,
    /// The least new counter.
    Trigger,
    /// 1 or 0.
    SetTracking,
    /// The counter.
    Ready,
    /// One of [`Role`](crate::Role).
    SetRole,
    /// Nothing.
    Park,
    /// Milliseconds; 0 looks once.
    WaitParked,
    /// The counter.
    Identity,
}

impl Abi {
    /// The numbering of a device whose answer to a write of one byte was `errno`.
    pub(crate) fn from_short_write(errno: Errno) -> Option<Self> {
        match errno {
            Errno::INVAL => Some(Self::Seed),
            Errno::NOBUFS => Some(Self::Deployed),
            _ => None,
        }
    }

    pub(crate) const fn opcode(self, call: Call) -> Opcode {
        let number = match (self, call) {
            (Self::Seed, Call::WaitWatchers) | (Self::Deployed, Call::SetTracking) => 1,
            // FORCE_GEN_UPDATE, which every driver of this numbering has; 3 is the same in ours.
            (Self::Seed, Call::Trigger) | (Self::Deployed, Call::WaitWatchers) => 2,
            (Self::Deployed, Call::Trigger) => 3,
            (Self::Seed, Call::SetTracking) => 4,
            (_, Call::SetRole) => 5,
            (_, Call::Park) => 7,
            (_, Call::WaitParked) => 8,
            (_, Call::Ready) => 10,
            (_, Call::Identity) => 11,
        };
        opcode::none(MAGIC, number)
    }
}

/// One `ioctl` call on the device.
pub(crate) struct Request {
    opcode: Opcode,
    argument: usize,
}

impl Request {
    pub(crate) const fn new(abi: Abi, call: Call, argument: usize) -> Self {
        Self {
            opcode: abi.opcode(call),
            argument,
        }
    }

    /// Returns what the device did, which is 0 of most calls.
    ///
    /// # Errors
    /// What the device said, as the OS's error.
    pub(crate) fn send(self, file: impl rustix::fd::AsFd) -> Result<i32, Errno> {
        // SAFETY: the calls of this device take an integer and touch no memory of this process.
        // Those of another device that has these numbers could; `Options::open` lets no other
        // device but a file that the caller named have them.
        unsafe { rustix::ioctl::ioctl(file, self) }
    }
}

// SAFETY: the argument is an integer, which no one reads through.
unsafe impl Ioctl for Request {
    type Output = i32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        ptr::without_provenance_mut(self.argument)
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

/// A struct of the header that a call reads or fills in: plain integers, every bit pattern of which is
/// a value, without padding.
pub(crate) trait Passed {
    const OPCODE: Opcode;
}

/// `struct sysgenid_request`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RawRequest {
    pub(crate) ticket: u32,
    pub(crate) limit_ms: u32,
    pub(crate) flags: u32,
    pub(crate) reserved: u32,
}

impl Passed for RawRequest {
    const OPCODE: Opcode = opcode::read::<Self>(MAGIC, 6);
}

/// `struct sysgenid_fork_point`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RawForkPoint {
    pub(crate) size: u32,
    pub(crate) flags: u32,
    pub(crate) ticket: u32,
    pub(crate) timeout_ms: u32,
    pub(crate) result: u32,
    pub(crate) counter: u32,
    pub(crate) realtime: u64,
}

impl Passed for RawForkPoint {
    const OPCODE: Opcode = opcode::read_write::<Self>(MAGIC, 9);
}

/// `struct sysgenid_refusal`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RawRefusal {
    pub(crate) ticket: u32,
    pub(crate) reason: u32,
}

impl Passed for RawRefusal {
    const OPCODE: Opcode = opcode::write::<Self>(MAGIC, 12);
}

/// One `ioctl` call that passes a struct.
struct Exchange<'a, T>(&'a mut T);

/// Sends the call that belongs to the struct, which the device may fill in.
///
/// # Errors
/// What the device said, as the OS's error.
pub(crate) fn exchange<T: Passed>(
    file: impl rustix::fd::AsFd,
    passed: &mut T,
) -> Result<(), Errno> {
    // SAFETY: the number has the size of the struct in it, and the driver reads and writes no more
    // than that. As for other devices, see `Request::send`.
    unsafe { rustix::ioctl::ioctl(file, Exchange(passed)) }
}

// SAFETY: the pointer is that of the struct, which is exclusively borrowed and as large as the number
// says; any bytes that the device writes there are a value of it.
unsafe impl<T: Passed> Ioctl for Exchange<'_, T> {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        T::OPCODE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// The OS's error as the standard library's.
pub(crate) fn io(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_header() {
        let of = |abi: Abi| {
            [
                Call::WaitWatchers,
                Call::Trigger,
                Call::SetTracking,
                Call::Ready,
            ]
            .map(|call| abi.opcode(call))
        };
        assert_eq!(of(Abi::Seed), [0xe401, 0xe402, 0xe404, 0xe40a]);
        assert_eq!(of(Abi::Deployed), [0xe402, 0xe403, 0xe401, 0xe40a]);
    }

    #[test]
    fn numbers_of_the_fork_point_are_those_of_the_header_in_both_numberings() {
        for abi in [Abi::Seed, Abi::Deployed] {
            let calls = [Call::SetRole, Call::Park, Call::WaitParked, Call::Identity];
            let numbers = calls.map(|call| abi.opcode(call));
            assert_eq!(numbers, [0xe405, 0xe407, 0xe408, 0xe40b]);
        }
        assert_eq!(RawRequest::OPCODE, 0x8010_e406);
        assert_eq!(RawForkPoint::OPCODE, 0xc020_e409);
        assert_eq!(RawRefusal::OPCODE, 0x4008_e40c);
    }

    #[test]
    fn a_short_write_tells_the_numberings_apart() {
        assert_eq!(Abi::from_short_write(Errno::INVAL), Some(Abi::Seed));
        assert_eq!(Abi::from_short_write(Errno::NOBUFS), Some(Abi::Deployed));
        assert_eq!(Abi::from_short_write(Errno::BADF), None);
    }
}
