//! What every kind of device is here, whichever it is.

use vmgenie_devices::virtio::block::Block;
use vmgenie_devices::virtio::net::Net;
use vmgenie_devices::virtio::{Active, VirtioDevice, VirtioMmio};

use super::SavedVirtio;
use crate::backends::drive::Drive;
use crate::backends::found::DriveFiles;
use crate::backends::tap::Tap;
use crate::request::Gate;
use crate::virtio::copies::DriveCopies;
use crate::virtio::{Side, VirtioError};

/// Why something of one device is refused.
pub type Refusal = Box<dyn std::error::Error + Send + Sync>;

/// The sizes of a device's queues, and the features that it offered.
pub(super) type Offer = (&'static [u16], u64);

/// What was found behind the drives of a snapshot, in their order.
pub(super) type Found = std::vec::IntoIter<DriveFiles>;

/// A kind of device: from its configuration, and what a state file says of it, to the device.
pub(super) trait Kind {
    /// One as it is configured.
    type Config;
    /// What a snapshot holds of one, but for its transport.
    type State;
    /// The device.
    type Model: Model;
    /// What a snapshot lacks that has no state of one.
    const WHAT: &'static str;

    /// One of a machine that boots.
    fn boot(config: &Self::Config) -> Result<Self::Model, VirtioError>;

    /// One of a machine that is restored.
    fn restore(
        config: &Self::Config,
        state: &Self::State,
        found: &mut Found,
    ) -> Result<Self::Model, VirtioError>;

    /// Whether such a device can have saved this state. Nothing of the host is opened.
    fn check(config: &Self::Config, state: &Self::State) -> Result<Offer, Refusal>;
}

/// A device that can be saved. What one kind alone can do is reached by methods that the others leave as they are.
pub(in crate::virtio) trait Model: VirtioDevice + Sized + 'static {
    /// Adds the device's own state to `saved`; of the drives, `copies` were made.
    fn save_to(&self, saved: &mut SavedVirtio, copies: &DriveCopies);

    /// The device, if it is a drive.
    fn as_drive(_: &VirtioMmio<Self>) -> Option<&VirtioMmio<Block<Drive>>> {
        None
    }

    /// The device, if it is a network interface.
    fn as_net(_: &VirtioMmio<Self>) -> Option<&VirtioMmio<Net<Tap>>> {
        None
    }

    /// Keeps a restored device from its machine's peers, as far as `gate` says so.
    fn shut_gate(&mut self, _: Gate) {}

    /// Lets it have them, on one side; `active` is there if a driver uses the device.
    fn open_gate(&mut self, _: Side, _active: Option<&mut Active<'_>>) {}
}

/// Where devices are put, one after the other.
pub(in crate::virtio) trait Place {
    /// Puts a device into the next place.
    fn put<D: Model>(&mut self, device: D) -> Result<(), VirtioError>;
}

/// Makes the devices of one kind for a machine that boots.
pub(super) fn boot<K: Kind>(
    configs: &[K::Config],
    place: &mut impl Place,
) -> Result<(), VirtioError> {
    configs
        .iter()
        .try_for_each(|config| place.put(K::boot(config)?))
}

/// Makes the devices of one kind for a machine that is restored.
pub(super) fn restore<K: Kind>(
    configs: &[K::Config],
    states: &[K::State],
    found: &mut Found,
    place: &mut impl Place,
) -> Result<(), VirtioError> {
    if configs.len() != states.len() {
        return Err(VirtioError::Missing(K::WHAT));
    }
    let mut devices = configs.iter().zip(states);
    devices.try_for_each(|(config, state)| place.put(K::restore(config, state, found)?))
}

/// Checks the states of one kind, and adds what their transports have to fit, one for each slot.
pub(super) fn check<K: Kind>(
    configs: &[K::Config],
    states: &[K::State],
    offers: &mut Vec<Offer>,
) -> Result<(), VirtioError> {
    for (config, state) in configs.iter().zip(states) {
        let slot = offers.len();
        let offer = K::check(config, state);
        offers.push(offer.map_err(|source| VirtioError::State { slot, source })?);
    }
    Ok(())
}
