//! The host's random numbers.

use clap::Args;
use vmgenie_api::wire::{self, ConfigFile, EntropyDevice, FullConfig};
use vmgenie_machine::virtio::kinds::{DevicesConfig, EntropyConfig};

use super::kind::{BodyError, Kind, Put, PutCounters};
use crate::checked::{Checked, WireError, unlimited};

/// The kind.
pub(super) struct EntropyKind;

static COUNTERS: PutCounters = PutCounters::new("entropy_count", "entropy_fails");

impl Kind for EntropyKind {
    fn path(&self) -> &'static str {
        "/entropy"
    }

    fn counters(&self) -> &'static PutCounters {
        &COUNTERS
    }

    fn put(&self, _: &str, body: &[u8]) -> Result<Put, BodyError> {
        Ok(put_entropy(serde_json::from_slice(body)?)?)
    }

    fn show(&self, devices: &DevicesConfig, shown: &mut FullConfig) {
        shown.entropy = devices.entropy().map(|_| EntropyDevice::default());
    }

    fn read(&self, file: &mut ConfigFile, devices: &mut DevicesConfig) -> Result<(), WireError> {
        if let Some(entropy) = file.entropy.take() {
            devices.set_entropy(entropy.checked()?);
        }
        Ok(())
    }
}

/// Sets or replaces the entropy device; before the start only.
#[utoipa::path(put, tag = "devices", path = "/entropy", request_body = wire::EntropyDevice, responses(
    (status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) fn put_entropy(body: EntropyDevice) -> Result<Put, WireError> {
    Ok(Put::of(body.checked()?))
}

impl Checked<EntropyConfig> for EntropyDevice {
    fn checked(self) -> Result<EntropyConfig, WireError> {
        let wire = self;
        unlimited("rate_limiter", wire.rate_limiter.as_ref())?;
        Ok(EntropyConfig {})
    }
}

/// The entropy device for `vmgenie run`.
#[derive(Debug, Args)]
pub struct EntropyFlags {
    /// A device with the host's random numbers.
    #[arg(long)]
    entropy: bool,
}

impl EntropyFlags {
    pub(super) fn add_to(&self, devices: &mut DevicesConfig) {
        if self.entropy {
            devices.set_entropy(EntropyConfig {});
        }
    }
}
