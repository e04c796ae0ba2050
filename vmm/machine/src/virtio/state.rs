//! What a snapshot holds of the virtio devices. A machine without any adds nothing.

use serde::{Deserialize, Serialize};
use vmgenie_devices::DeviceState;
use vmgenie_devices::virtio::block::BlockState;
use vmgenie_devices::virtio::entropy::EntropyState;
use vmgenie_devices::virtio::net::NetState;
use vmgenie_devices::virtio::vsock::VsockState;
use vmgenie_devices::virtio::{TransportState, block, entropy, net, vsock};
use vmgenie_snapshot::{Part, StateError, StateReader, StateWriter, WriteStateError};

use super::VirtioError;
use super::files::DriveFilePart;
use super::saved_devices::{SavedDevices, SavedDevicesV2};
use crate::config::DevicesConfig;
use crate::memory::GuestMemory;
use crate::state::device_part;

/// Which devices there are, in the order of their slots, and what is behind them on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DevicesPart(pub SavedDevices);

impl Part for DevicesPart {
    const TAG: &'static str = "virtio";
    const VERSION: u16 = 3;

    fn from_older(version: u16, body: &[u8]) -> Option<postcard::Result<(Self, &[u8])>> {
        (version == 2).then(|| {
            let (old, rest) = postcard::take_from_bytes::<SavedDevicesV2>(body)?;
            Ok((Self(old.into()), rest))
        })
    }
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
pub(crate) struct SavedVirtio {
    /// What the devices are.
    pub(crate) config: DevicesConfig,
    /// One for each slot.
    pub(super) transports: Vec<TransportPart>,
    pub(super) drives: Vec<BlockPart>,
    /// One for each drive.
    pub(crate) files: Vec<DriveFilePart>,
    pub(super) nets: Vec<NetPart>,
    pub(super) vsock: Option<VsockPart>,
    pub(super) entropy: Option<EntropyPart>,
}

impl SavedVirtio {
    /// Adds the parts to a state file.
    pub(crate) fn write(&self, writer: &mut StateWriter) -> Result<(), WriteStateError> {
        if self.config.is_empty() {
            return Ok(());
        }
        writer
            .part(&DevicesPart(SavedDevices::from(&self.config)))?
            .parts(&self.transports)?
            .parts(&self.drives)?
            .parts(&self.files)?
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
    pub(crate) fn read(reader: &mut StateReader) -> Result<Self, StateError> {
        let config = reader.take_optional::<DevicesPart>()?.unwrap_or_default();
        Ok(Self {
            config: config.0.into(),
            transports: reader.take_all()?,
            drives: reader.take_all()?,
            files: reader.take_all()?,
            nets: reader.take_all()?,
            vsock: reader.take_optional()?,
            entropy: reader.take_optional()?,
        })
    }

    /// What is wrong if there are not as many states of each kind as devices.
    pub(crate) fn contradiction(&self) -> Option<String> {
        let counts = [
            ("transports", self.transports.len(), self.config.len()),
            ("drives", self.drives.len(), self.config.drives().len()),
            (
                "drives' files",
                self.files.len(),
                self.config.drives().len(),
            ),
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

    /// Whether each device of `config` can have saved its state; the numbers of states and devices are right. No drive, no tap and no
    /// socket has to be opened for a machine that will be refused.
    pub(crate) fn check(
        &self,
        config: &DevicesConfig,
        memory: &GuestMemory,
    ) -> Result<(), VirtioError> {
        let refused = |slot: usize, source: Box<dyn std::error::Error + Send + Sync>| {
            VirtioError::State { slot, source }
        };
        let drives = config.drives().iter().zip(&self.drives);
        for (slot, (drive, state)) in drives.enumerate() {
            let checked = state.0.check(drive.read_only);
            checked.map_err(|error| refused(slot, error.into()))?;
        }
        for (slot, state) in (self.drives.len()..).zip(&self.nets) {
            let checked = state.0.check();
            checked.map_err(|error| refused(slot, error.into()))?;
        }
        if let Some(VsockPart(state)) = &self.vsock {
            let slot = self.drives.len() + self.nets.len();
            state.check().map_err(|error| refused(slot, error.into()))?;
        }
        let drives = self.drives.iter();
        let drives = drives.map(|part| (&block::QUEUE_SIZES[..], part.0.features));
        let nets = self.nets.iter();
        let nets = nets.map(|part| (&net::QUEUE_SIZES[..], part.0.offered()));
        let vsock = self.vsock.iter();
        let vsock = vsock.map(|_| (&vsock::QUEUE_SIZES[..], VsockState::OFFERED));
        let entropy = self.entropy.iter();
        let entropy = entropy.map(|_| (&entropy::QUEUE_SIZES[..], EntropyState::OFFERED));
        let devices = drives.chain(nets).chain(vsock).chain(entropy);
        for (slot, ((sizes, offered), TransportPart(state))) in
            devices.zip(&self.transports).enumerate()
        {
            state
                .precheck(sizes, offered, memory)
                .map_err(|source| VirtioError::Restore { slot, source })?;
        }
        Ok(())
    }

    /// The states of the transports.
    pub(super) fn transports(&self) -> Vec<TransportState> {
        self.transports.iter().map(|part| part.0.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Cid, EntropyConfig, VsockConfig, VsockPeers};
    use vmgenie_devices::virtio::QueueRegisters;
    use vmgenie_snapshot::SnapshotId;

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

    /// The part as it was written before a vsock device knew whose programs its guest may reach.
    #[derive(Serialize, Deserialize)]
    struct OldDevicesPart(SavedDevicesV2);

    impl Part for OldDevicesPart {
        const TAG: &'static str = DevicesPart::TAG;
        const VERSION: u16 = 2;
    }

    #[test]
    fn devices_of_an_older_state_file_reach_whom_they_reached_then() {
        let vsock = |peers| VsockConfig {
            guest_cid: Cid::new(5).unwrap(),
            uds_path: "/v".into(),
            peers,
        };
        let mut saved = SavedVirtio::default();
        saved.config.set_vsock(vsock(VsockPeers::Own));
        saved.config.set_entropy(EntropyConfig {});
        let again = read(written(&saved)).config;
        assert_eq!(again, saved.config, "the choice is saved");
        // No drive, no interface; a vsock device with its CID and path; an entropy device.
        let old = [0, 0, 1, 5, 2, b'/', b'v', 1];
        let old = OldDevicesPart(postcard::from_bytes(&old).unwrap());
        let mut writer = StateWriter::new(SnapshotId::generate().unwrap(), 32 << 20);
        writer.part(&old).unwrap();
        let read = read(writer.finish().unwrap()).config;
        assert_eq!(read.vsock(), Some(&vsock(VsockPeers::Any)));
        assert!(read.entropy().is_some());
    }

    #[test]
    fn a_state_that_no_device_can_have_saved_is_refused_without_any_device() {
        let ranges = [(vm_memory::GuestAddress(0), 1 << 20)];
        let memory = GuestMemory::from_ranges(&ranges).unwrap();
        let good = QueueRegisters {
            max_size: entropy::QUEUE_SIZES[0],
            size: 16,
            ready: true,
            next_avail: 0,
            next_used: 0,
            desc_table: 0,
            avail_ring: 0x1000,
            used_ring: 0x2000,
        };
        let mut saved = with_entropy();
        saved.transports[0].0.queues = vec![good];
        saved.check(&saved.config, &memory).unwrap();
        type Change = fn(&mut TransportState);
        let changes: [(&str, Change); 5] = [
            ("another size", |s| s.queues[0].max_size = 512),
            ("a ring outside of memory", |s| {
                s.queues[0].used_ring = 2 << 20
            }),
            ("no queue", |s| s.queues.clear()),
            ("features of another device", |s| s.driver_features |= 1),
            ("no status", |s| s.status = 4),
        ];
        for (what, change) in changes {
            let mut saved = saved.clone();
            change(&mut saved.transports[0].0);
            let refused = saved.check(&saved.config, &memory);
            assert!(
                matches!(refused, Err(VirtioError::Restore { slot: 0, .. })),
                "{what}"
            );
        }
        let vsock = VsockState {
            guest_cid: 2,
            last_port: 0,
            unanswered: Vec::new(),
        };
        saved.vsock = Some(VsockPart(vsock));
        let refused = saved.check(&saved.config, &memory);
        assert!(matches!(refused, Err(VirtioError::State { .. })));
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
