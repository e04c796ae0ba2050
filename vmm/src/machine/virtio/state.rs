//! What a snapshot holds of the virtio devices. A machine without any adds nothing.

use serde::{Deserialize, Serialize};
use vmgenie_devices::DeviceState;
use vmgenie_devices::virtio::TransportState;
use vmgenie_devices::virtio::block::BlockState;
use vmgenie_devices::virtio::entropy::EntropyState;
use vmgenie_devices::virtio::net::NetState;
use vmgenie_devices::virtio::vsock::VsockState;

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
    BlockPart,
    BlockState,
    "virtio-block",
    "A drive; one part for each, in the order of their slots."
);
device_part!(
    NetPart,
    NetState,
    "virtio-net",
    "A network interface; one part for each, in the order of their slots."
);
device_part!(VsockPart, VsockState, "virtio-vsock", "The socket device.");
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
    pub(super) drives: Vec<BlockPart>,
    pub(super) nets: Vec<NetPart>,
    pub(super) vsock: Option<VsockPart>,
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
            .parts(&self.drives)?
            .parts(&self.nets)?;
        if let Some(vsock) = &self.vsock {
            writer.part(vsock)?;
        }
        if let Some(entropy) = &self.entropy {
            writer.part(entropy)?;
        }
        Ok(())
    }

    /// Takes the parts out of a state file. They may contradict each other still: see [`Self::contradiction`].
    pub(in crate::machine) fn read(reader: &mut StateReader) -> Result<Self, StateError> {
        let config = reader.take_optional::<DevicesPart>()?.unwrap_or_default().0;
        Ok(Self {
            config,
            transports: reader.take_all()?,
            drives: reader.take_all()?,
            nets: reader.take_all()?,
            vsock: reader.take_optional()?,
            entropy: reader.take_optional()?,
        })
    }

    /// What is wrong if there are not as many states of each kind as devices.
    pub(in crate::machine) fn contradiction(&self) -> Option<String> {
        let counts = [
            ("transports", self.transports.len(), self.config.len()),
            ("drives", self.drives.len(), self.config.drives().len()),
            (
                "network interfaces",
                self.nets.len(),
                self.config.nets().len(),
            ),
            (
                "vsock devices",
                usize::from(self.vsock.is_some()),
                usize::from(self.config.vsock().is_some()),
            ),
            (
                "entropy devices",
                usize::from(self.entropy.is_some()),
                usize::from(self.config.entropy().is_some()),
            ),
        ];
        let wrong = counts.iter().find(|(_, states, devices)| states != devices);
        wrong.map(|(what, states, devices)| format!("states of {states} {what}, of {devices}"))
    }

    /// The states of the transports.
    pub(super) fn transports(&self) -> Vec<TransportState> {
        self.transports.iter().map(|part| part.0.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EntropyConfig;
    use crate::snapshot::SnapshotId;

    fn written(saved: &SavedVirtio) -> Vec<u8> {
        let mut writer = StateWriter::new(SnapshotId::generate().unwrap(), 32 << 20);
        saved.write(&mut writer).unwrap();
        writer.finish().unwrap()
    }

    fn read(bytes: Vec<u8>) -> SavedVirtio {
        let mut reader = StateReader::from_bytes(bytes).unwrap();
        let saved = SavedVirtio::read(&mut reader).unwrap();
        reader.finish().unwrap();
        saved
    }

    fn with_entropy() -> SavedVirtio {
        let mut saved = SavedVirtio::default();
        saved.config.set_entropy(EntropyConfig {});
        saved.entropy = Some(EntropyPart(EntropyState {}));
        saved.transports = vec![TransportPart(TransportState {
            status: 0xf,
            needs_reset: false,
            driver_features: 1 << 32,
            device_features_sel: 1,
            driver_features_sel: 1,
            queue_sel: 0,
            interrupt_status: 1,
            config_generation: 7,
            queues: Vec::new(),
        })];
        saved
    }

    #[test]
    fn a_machine_without_devices_adds_nothing_to_its_snapshot() {
        let saved = SavedVirtio::default();
        let empty = StateWriter::new(SnapshotId::generate().unwrap(), 32 << 20);
        assert_eq!(written(&saved).len(), empty.finish().unwrap().len());
        let saved = read(written(&saved));
        assert!(saved.config.is_empty());
        assert_eq!(saved.contradiction(), None);
    }

    #[test]
    fn what_was_saved_is_read() {
        let saved = with_entropy();
        let again = read(written(&saved));
        assert_eq!(again.config, saved.config);
        assert_eq!(again.transports(), saved.transports());
        assert!(again.entropy.is_some());
        assert_eq!(again.contradiction(), None);
    }

    #[test]
    fn states_without_a_device_and_devices_without_a_state_are_contradictions() {
        type Change = fn(&mut SavedVirtio);
        let changes: [(&str, Change); 5] = [
            ("a vsock device too many", |s| {
                s.vsock = Some(VsockPart(VsockState {
                    guest_cid: 3,
                    last_port: 0,
                    unanswered: Vec::new(),
                }));
            }),
            ("no transport", |s| s.transports.clear()),
            ("a transport too many", |s| {
                s.transports.push(s.transports[0].clone())
            }),
            ("no entropy", |s| s.entropy = None),
            ("no device", |s| s.config = DevicesConfig::default()),
        ];
        for (what, change) in changes {
            let mut saved = with_entropy();
            change(&mut saved);
            assert!(saved.contradiction().is_some(), "{what}");
        }
    }
}
