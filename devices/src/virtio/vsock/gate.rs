//! A device that refuses connections until its guest knows who it is.
//!
//! Refused, and not left waiting: nothing is held, and a program that has to wait knows for what, and for how long it likes to.

use super::{Host, Vsock};
use crate::virtio::Active;

/// Who is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shut {
    /// Connections that the guest wants.
    pub(super) to_guest: bool,
    /// Connections that a program on the host wants.
    pub(super) to_host: bool,
    /// The guest's are refused for what is in its ring still.
    opening: bool,
}

impl<H: Host> Vsock<H> {
    /// Has a restored device refuse all connections from now on. *Caller:* whoever has made the device from a state, before
    /// [`VirtioDevice::restored`].
    ///
    /// [`VirtioDevice::restored`]: crate::virtio::VirtioDevice::restored
    pub fn shut_gate(&mut self) {
        self.muxer.shut = Shut {
            to_guest: true,
            to_host: true,
            opening: false,
        };
    }

    /// Lets the guest connect to programs on the host. What is in its ring, perhaps since before the snapshot, is still refused. `active`
    /// is there if a driver uses the device. The caller has the device looked at afterwards.
    pub fn open_gate_to_guest(&mut self, active: Option<&mut Active<'_>>) {
        if !self.muxer.shut.to_guest {
            return;
        }
        self.muxer.shut.opening = true;
        match active {
            Some(active) => drop(self.serve(active)),
            None => self.ring_was_refused(),
        }
    }

    /// Lets programs on the host connect to the guest.
    pub fn open_gate_to_host(&mut self) {
        self.muxer.shut.to_host = false;
    }

    /// As many packets as a ring holds were taken out of it, or there is none.
    pub(super) fn ring_was_refused(&mut self) {
        if std::mem::take(&mut self.muxer.shut.opening) {
            self.muxer.shut.to_guest = false;
        }
    }
}
