//! The host's random numbers.

use serde::{Deserialize, Serialize};
use vmgenie_devices::virtio::entropy::{self, Entropy, EntropyMetrics, EntropyState};

use super::kind::{Found, Kind, Model, Offer, Refusal};
use super::{DeviceConfig, DevicesConfig, SavedVirtio};
use crate::metrics::Single;
use crate::state::device_part;
use crate::virtio::VirtioError;
use crate::virtio::copies::DriveCopies;

/// The entropy device; it takes the host's random numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntropyConfig {}

/// What it counts.
pub(super) static METRICS: Single<EntropyMetrics> = Single::new();

device_part!(
    EntropyPart,
    EntropyState,
    "virtio-entropy",
    "The entropy device."
);

/// The kind, of which a machine has one device at most.
pub(super) enum EntropyKind {}

impl Kind for EntropyKind {
    type Config = EntropyConfig;
    type State = EntropyPart;
    type Model = Entropy;
    const WHAT: &'static str = "entropy";

    fn boot(_: &EntropyConfig) -> Result<Entropy, VirtioError> {
        Ok(Entropy::default().with_metrics(METRICS.of()))
    }

    fn restore(
        config: &EntropyConfig,
        _: &EntropyPart,
        _: &mut Found,
    ) -> Result<Entropy, VirtioError> {
        Self::boot(config)
    }

    fn check(_: &EntropyConfig, _: &EntropyPart) -> Result<Offer, Refusal> {
        Ok((&entropy::QUEUE_SIZES, EntropyState::OFFERED))
    }
}

impl Model for Entropy {
    fn save_to(&self, saved: &mut SavedVirtio, _: &DriveCopies) {
        saved.entropy = Some(EntropyPart(self.save()));
    }
}

impl From<EntropyConfig> for DeviceConfig {
    fn from(entropy: EntropyConfig) -> Self {
        Self::Entropy(entropy)
    }
}

impl DevicesConfig {
    /// The entropy device.
    pub fn entropy(&self) -> Option<&EntropyConfig> {
        self.entropy.as_ref()
    }

    /// Sets or replaces the entropy device.
    pub fn set_entropy(&mut self, entropy: EntropyConfig) {
        self.entropy = Some(entropy);
    }
}

/// It in the list of a state file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedEntropy {}

impl From<&EntropyConfig> for SavedEntropy {
    fn from(EntropyConfig {}: &EntropyConfig) -> Self {
        Self {}
    }
}

impl From<SavedEntropy> for EntropyConfig {
    fn from(SavedEntropy {}: SavedEntropy) -> Self {
        Self {}
    }
}
