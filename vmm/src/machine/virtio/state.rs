//! What a snapshot holds of the virtio devices. A machine without any adds nothing.

use serde::{Deserialize, Serialize};
use vmgenie_devices::DeviceState;
use vmgenie_devices::virtio::TransportState;
use vmgenie_devices::virtio::entropy::EntropyState;
use vmgenie_devices::virtio::net::NetState;

use crate::config::DevicesConfig;
use crate::machine::state::device_part;
use crate::snapshot::{Part, StateError, StateReader, StateWriter, WriteStateError};

/// Which devices there are, in the order of their slots, and what is behind them on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DevicesPart(pub DevicesConfig);

impl Part for DevicesPart {
    const TAG: &'static str = "virtio";
    const VERSION: u16 = 1;
}

device_part!(
    TransportPart,
    TransportState,
    "virtio-mmio",
    "The registers and queues of one virtio device; one part for each slot, in their order."
);
device_part!(
    NetPart,
    NetState,
    "virtio-net",
    "A network interface; one part for each, in the order of their slots."
);
device_part!(
    EntropyPart,
    EntropyState,
    "virtio-entropy",
    "The entropy device."
);

/// All of it.
#[derive(Debug, Clone, Default)]
pub(in crate::machine) struct SavedVirtio {
    /// What the devices are.
    pub(in crate::machine) config: DevicesConfig,
    /// One for each slot.
    pub(super) transports: Vec<TransportPart>,
    pub(super) nets: Vec<NetPart>,
    pub(super) entropy: Option<EntropyPart>,
}

impl SavedVirtio {
    /// Adds the parts to a state file.
    pub(in crate::machine) fn write(
        &self,
        writer: &mut StateWriter,
    ) -> Result<(), WriteStateError> {
        if self.config.is_empty() {
            return Ok(());
        }
        writer
            .part(&DevicesPart(self.config.clone()))?
            .parts(&self.transports)?
            .parts(&self.nets)?;
        if let Some(entropy) = &self.entropy {
            writer.part(entropy)?;
        }
        Ok(())
    }

    /// Takes the parts out of a state file. They may contradict each other still.
    pub(in crate::machine) fn read(reader: &mut StateReader) -> Result<Self, StateError> {
        let config = reader.take_optional::<DevicesPart>()?.unwrap_or_default().0;
        Ok(Self {
            config,
            transports: reader.take_all()?,
            nets: reader.take_all()?,
            entropy: reader.take_optional()?,
        })
    }

    /// The states of the transports.
    pub(super) fn transports(&self) -> Vec<TransportState> {
        self.transports.iter().map(|part| part.0.clone()).collect()
    }
}
