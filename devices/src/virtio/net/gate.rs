//! A device that is kept off its network until its guest knows who it is.
//!
//! What the driver had in its ring when a snapshot was taken is sent by the original. A clone that sends it once more doubles it,
//! under an address that may be another's. So a shut device drops what its driver sends, and takes nothing from the network.

use virtio_queue::QueueT;

use super::{FrameBackend, Net, TX, queue};
use crate::virtio::Active;

/// The most frames that are thrown away at the opening: more than any tap holds back.
const MAX_DISCARDED: usize = 8192;

impl<B: FrameBackend> Net<B> {
    /// Keeps a restored device off its network from now on: its link is down, whether or not its cable is plugged in.
    ///
    /// *Caller:* whoever has made the device from a state, before [`VirtioDevice::restored`], by which the driver is told.
    ///
    /// [`VirtioDevice::restored`]: crate::virtio::VirtioDevice::restored
    pub fn shut_gate(&mut self) {
        self.shut = true;
        self.config_changed |= self.features != 0;
    }

    /// Lets the device have its network. Nothing from before reaches it, and nothing from before comes from it: frames that wait in the
    /// ring and in the backend are dropped first. If the cable is plugged in, the driver is told that its link is up, and to announce
    /// itself. `active` is there if a driver uses the device. The caller has the backend looked at afterwards
    /// ([`VirtioDevice::backend_ready`]).
    ///
    /// [`VirtioDevice::backend_ready`]: crate::virtio::VirtioDevice::backend_ready
    pub fn open_gate(&mut self, mut active: Option<&mut Active<'_>>) {
        if !self.shut {
            return;
        }
        if let Some(active) = active.as_deref_mut() {
            // As many as the ring holds: a driver that goes on adding frames does not hold this up.
            let ring = queue(active.queues, TX).map_or(0, |queue| queue.size());
            let _ = self.transmit(active, usize::from(ring));
        }
        self.backend.discard(MAX_DISCARDED);
        self.shut = false;
        if self.link {
            self.tell_of_carrier(active);
        }
    }
}
