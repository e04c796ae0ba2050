//! The page that a vCPU shares with KVM, mapped once more.
//!
//! `VcpuFd` has a mapping of its own, and an exclusive reference to all of it while the vCPU's thread runs or looks at an exit. What
//! others have to reach meanwhile lies at other addresses here, so that nothing is behind that reference.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

/// As much of the mapping as is needed: what `kvm_run` has lies in its first page.
const LEN: usize = 4096;
const _: () = assert!(size_of::<kvm_run>() <= LEN);

/// The page shared with KVM.
#[derive(Debug)]
pub(super) struct RunPage(NonNull<kvm_run>);

// SAFETY: the mapping is ours until this is dropped. What several threads reach is one byte, through an `AtomicU8`; the rest is read by
// the vCPU's own thread alone.
unsafe impl Send for RunPage {}
// SAFETY: see above.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// That of a vCPU.
    pub(super) fn of(vcpu: &VcpuFd) -> io::Result<Self> {
        let both = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, where the kernel finds room for it.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                LEN,
                both,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(page) {
            Some(page) if page.as_ptr() != libc::MAP_FAILED => Ok(Self(page.cast())),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Sets the byte that makes `KVM_RUN` return at once.
    pub(super) fn set_immediate_exit(&self, value: u8) {
        // SAFETY: mapped and aligned (see above); KVM reads it as a plain byte.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.0.as_ptr()).immediate_exit) }
            .store(value, Ordering::SeqCst);
    }

    /// The width in bytes of the port accesses that the vCPU has left the guest for. A string instruction makes several at once,
    /// whose data lie one behind the other.
    pub(super) fn access_width(&self) -> usize {
        // SAFETY: mapped (see above), and written by KVM alone, before `KVM_RUN` has returned. Any bytes make a `u8`, whichever
        // exit it was.
        let width = unsafe { (&raw const (*self.0.as_ptr()).__bindgen_anon_1.io.size).read() };
        usize::from(width.max(1))
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody refers to it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), LEN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Host;

    #[test]
    fn the_page_is_that_of_the_vcpu_at_another_address() {
        let vm = Host::open().unwrap().empty_vm().unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        let page = RunPage::of(&vcpu).unwrap();
        for value in [1, 0] {
            page.set_immediate_exit(value);
            assert_eq!(vcpu.get_kvm_run().immediate_exit, value);
        }
        vcpu.get_kvm_run().__bindgen_anon_1.io.size = 4;
        assert_eq!(page.access_width(), 4);
        // Nothing of the one is behind a reference to the other.
        let theirs = ptr::from_mut(vcpu.get_kvm_run()).addr();
        assert!(page.0.addr().get().abs_diff(theirs) >= LEN);
    }
}
