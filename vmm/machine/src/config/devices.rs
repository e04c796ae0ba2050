//! The virtio devices of a machine, and what of them another clone of the same snapshot may have otherwise.
//!
//! The order of [`DevicesConfig`] is the order of the devices' slots: drives (the root drive first), network interfaces, vsock, entropy.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::names::{Cid, DeviceId, InterfaceName, MacAddress, Mtu};
use super::{ConfigError, InstanceData};

/// One drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveConfig {
    /// Its name.
    pub id: DeviceId,
    /// The raw file or block device behind it.
    pub path: PathBuf,
    /// What the guest writes goes into this overlay, and `path` is only read.
    pub overlay: Option<PathBuf>,
    /// The guest may not write to it.
    pub read_only: bool,
    /// The guest's root file system is on it: it comes first (`/dev/vda`), and `root=` is added to the kernel command line.
    pub is_root: bool,
    /// What a flush of the guest does.
    pub cache: CacheMode,
    /// How requests are served.
    pub io_engine: IoEngine,
    /// The partition with the root file system; of a root drive only.
    pub partuuid: Option<PartUuid>,
}

/// The UUID of a partition, as it goes on the kernel command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PartUuid(String);

impl PartUuid {
    /// Letters, digits and `-`, and Linux's `/PARTNROFF=N`: nothing that could begin another kernel parameter. At most 64 bytes.
    pub fn new(text: &str) -> Result<Self, ConfigError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-/=".contains(&b);
        if text.is_empty() || text.len() > 64 || !text.bytes().all(allowed) {
            return Err(ConfigError::PartUuid);
        }
        Ok(Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PartUuid {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        Self::new(&text)
    }
}

impl From<PartUuid> for String {
    fn from(uuid: PartUuid) -> Self {
        uuid.0
    }
}

/// What a flush of the guest does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Flushes are not offered: a crash of the host may lose what the guest believes to be written.
    #[default]
    Unsafe,
    /// A flush is answered when everything written before it is on the host's disk.
    Writeback,
}

/// How requests are served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IoEngine {
    /// One after the other, by plain system calls.
    #[default]
    Sync,
    /// By io_uring, as many at a time as the guest asks for.
    Async,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Its name.
    pub id: DeviceId,
    /// The tap on the host.
    pub host_dev_name: InterfaceName,
    /// The MAC address that the guest is told; without one it is told a random one.
    pub guest_mac: Option<MacAddress>,
    /// The MTU that the guest is told.
    pub mtu: Option<Mtu>,
}

/// The vsock device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's address.
    pub guest_cid: Cid,
    /// The Unix socket on which hosts' programs connect to the guest. Connections of the guest to port P go to `<uds_path>_P`.
    pub uds_path: PathBuf,
    /// Whose programs the guest reaches there.
    pub peers: VsockPeers,
}

/// Whose programs on the host a guest reaches through its vsock device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VsockPeers {
    /// Whoever listens.
    #[default]
    Any,
    /// Programs of the VMM's user and of the superuser.
    Own,
}

/// The entropy device; it takes the host's random numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntropyConfig {}

/// All virtio devices of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DevicesConfig {
    drives: Vec<DriveConfig>,
    nets: Vec<NetConfig>,
    vsock: Option<VsockConfig>,
    entropy: Option<EntropyConfig>,
}

impl DevicesConfig {
    /// Devices as a state file lists them, which may contradict each other: see [`Self::check`].
    pub(crate) fn listed(
        drives: Vec<DriveConfig>,
        nets: Vec<NetConfig>,
        vsock: Option<VsockConfig>,
        entropy: Option<EntropyConfig>,
    ) -> Self {
        Self {
            drives,
            nets,
            vsock,
            entropy,
        }
    }

    /// The drives, the root drive first.
    pub fn drives(&self) -> &[DriveConfig] {
        &self.drives
    }

    /// The network interfaces.
    pub fn nets(&self) -> &[NetConfig] {
        &self.nets
    }

    /// The vsock device.
    pub fn vsock(&self) -> Option<&VsockConfig> {
        self.vsock.as_ref()
    }

    /// The entropy device.
    pub fn entropy(&self) -> Option<&EntropyConfig> {
        self.entropy.as_ref()
    }

    /// How many devices these are.
    pub fn len(&self) -> usize {
        let single = usize::from(self.vsock.is_some()) + usize::from(self.entropy.is_some());
        self.drives.len() + self.nets.len() + single
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The drive that the guest's root file system is on.
    pub fn root_drive(&self) -> Option<&DriveConfig> {
        self.drives.first().filter(|drive| drive.is_root)
    }

    /// Adds a drive, or replaces the one of the same name where it is. A root drive goes to the first place.
    ///
    /// # Errors
    /// There is another root drive already, or nothing to be written to an overlay.
    pub fn put_drive(&mut self, drive: DriveConfig) -> Result<(), ConfigError> {
        if drive.read_only && drive.overlay.is_some() {
            return Err(ConfigError::ReadOnlyOverlay(drive.id));
        }
        let other_root = self.root_drive().is_some_and(|root| root.id != drive.id);
        if drive.is_root && other_root {
            return Err(ConfigError::SecondRoot);
        }
        let place = self.drives.iter().position(|other| other.id == drive.id);
        match place {
            Some(place) if !drive.is_root => self.drives[place] = drive,
            _ => {
                if let Some(place) = place {
                    self.drives.remove(place);
                }
                let place = if drive.is_root { 0 } else { self.drives.len() };
                self.drives.insert(place, drive);
            }
        }
        Ok(())
    }

    /// Another file behind a drive, without an overlay.
    ///
    /// # Errors
    /// There is no drive of that name.
    pub fn set_drive_path(&mut self, id: &DeviceId, path: PathBuf) -> Result<(), ConfigError> {
        let drive = self.drive_mut(id)?;
        drive.path = path;
        drive.overlay = None;
        Ok(())
    }

    /// The copy of a drive that a snapshot has: of its overlay, or else of its file. Nothing if there is no such drive.
    pub(crate) fn set_drive_copy(&mut self, id: &DeviceId, copy: PathBuf) {
        if let Ok(drive) = self.drive_mut(id) {
            match &mut drive.overlay {
                Some(overlay) => *overlay = copy,
                None => drive.path = copy,
            }
        }
    }

    /// Interfaces without a MAC address get these, in the order of the interfaces.
    pub fn keep_macs(&mut self, macs: impl Iterator<Item = MacAddress>) {
        for (net, mac) in self.nets.iter_mut().zip(macs) {
            net.guest_mac.get_or_insert(mac);
        }
    }

    /// Adds a network interface, or replaces the one of the same name where it is.
    ///
    /// # Errors
    /// Another interface has the same MAC address or uses the same tap.
    pub fn put_net(&mut self, net: NetConfig) -> Result<(), ConfigError> {
        self.check_conflicts(&net)?;
        match self.nets.iter_mut().find(|other| other.id == net.id) {
            Some(place) => *place = net,
            None => self.nets.push(net),
        }
        Ok(())
    }

    /// Sets or replaces the vsock device.
    pub fn set_vsock(&mut self, vsock: VsockConfig) {
        self.vsock = Some(vsock);
    }

    /// Sets or replaces the entropy device.
    pub fn set_entropy(&mut self, entropy: EntropyConfig) {
        self.entropy = Some(entropy);
    }

    /// Checks what a decoded state file may contradict: names that appear twice, a root drive that is not the first.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut rebuilt = Self {
            vsock: self.vsock.clone(),
            entropy: self.entropy,
            ..Self::default()
        };
        for drive in &self.drives {
            rebuilt.put_drive(drive.clone())?;
        }
        for net in &self.nets {
            rebuilt.put_net(net.clone())?;
        }
        if rebuilt == *self {
            Ok(())
        } else {
            Err(ConfigError::Contradiction)
        }
    }

    /// The devices of a machine that is restored with `overrides`.
    ///
    /// # Errors
    /// An override names a device that is not there, or makes two devices the same.
    pub fn overridden(mut self, overrides: &DeviceOverrides) -> Result<Self, ConfigError> {
        for (index, DriveOverride { id, path, source }) in overrides.drives.iter().enumerate() {
            // Else it would depend on who looks what becomes of the drive.
            if overrides.drives[..index]
                .iter()
                .any(|other| other.id == *id)
            {
                return Err(ConfigError::OverriddenTwice(id.clone()));
            }
            let drive = self.drive_mut(id)?;
            match source {
                DriveSource::Copy if drive.overlay.is_some() => {
                    return Err(ConfigError::CopyOfOverlay(id.clone()));
                }
                DriveSource::Existing | DriveSource::Copy => {
                    self.set_drive_path(id, path.clone())?;
                }
                DriveSource::Overlay if drive.read_only => {
                    return Err(ConfigError::ReadOnlyOverlay(id.clone()));
                }
                DriveSource::Overlay => drive.overlay = Some(path.clone()),
            }
        }
        for change in &overrides.nets {
            let net = self.net_mut(&change.id)?;
            if let Some(name) = &change.host_dev_name {
                net.host_dev_name = name.clone();
            }
            net.guest_mac = change.guest_mac.or(net.guest_mac);
        }
        // Not before all have been changed: two interfaces may have exchanged their taps.
        for net in &self.nets {
            self.check_conflicts(net)?;
        }
        if overrides.vsock != VsockOverride::default() {
            let vsock = self.vsock.as_mut().ok_or(ConfigError::NoVsock)?;
            vsock.peers = overrides.vsock.peers.unwrap_or(vsock.peers);
            if let Some(path) = &overrides.vsock.uds_path {
                vsock.uds_path = path.clone();
            }
            vsock.guest_cid = overrides.vsock.guest_cid.unwrap_or(vsock.guest_cid);
        }
        Ok(self)
    }

    fn drive_mut(&mut self, id: &DeviceId) -> Result<&mut DriveConfig, ConfigError> {
        let found = self.drives.iter_mut().find(|drive| drive.id == *id);
        found.ok_or_else(|| ConfigError::NoSuchDrive(id.clone()))
    }

    fn net_mut(&mut self, id: &DeviceId) -> Result<&mut NetConfig, ConfigError> {
        let found = self.nets.iter_mut().find(|net| net.id == *id);
        found.ok_or_else(|| ConfigError::NoSuchNet(id.clone()))
    }

    fn check_conflicts(&self, net: &NetConfig) -> Result<(), ConfigError> {
        for other in self.nets.iter().filter(|other| other.id != net.id) {
            if let Some(mac) = net.guest_mac.filter(|mac| other.guest_mac == Some(*mac)) {
                return Err(ConfigError::MacInUse(mac));
            }
            if other.host_dev_name == net.host_dev_name {
                return Err(ConfigError::TapInUse(net.host_dev_name.clone()));
            }
        }
        Ok(())
    }
}

/// What a restored machine has otherwise than the one that was snapshotted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceOverrides {
    /// Other files behind drives.
    pub drives: Vec<DriveOverride>,
    /// Other taps and MAC addresses.
    pub nets: Vec<NetOverride>,
    /// Another socket and CID.
    pub vsock: VsockOverride,
    /// The guest's identity string. Without one a machine with a new generation has none, and one with the old keeps its own.
    pub instance_data: Option<InstanceData>,
}

/// Another file behind a drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveOverride {
    /// The drive.
    pub id: DeviceId,
    /// The file that the restored machine uses.
    pub path: PathBuf,
    /// Where that file comes from.
    pub source: DriveSource,
}

/// Where the file of a restored machine's drive comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DriveSource {
    /// It is there.
    #[default]
    Existing,
    /// It is made, a copy of the one in the snapshot. It must not be there yet.
    Copy,
    /// It is made, an overlay on the one in the snapshot, or a copy of the overlay there. It must not be there yet.
    Overlay,
}

/// Another tap or MAC address behind a network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetOverride {
    /// The interface.
    pub id: DeviceId,
    /// The tap that the restored machine uses.
    pub host_dev_name: Option<InterfaceName>,
    /// The MAC address that its device has.
    pub guest_mac: Option<MacAddress>,
}

/// Another socket or CID for the vsock device, or other programs that the guest reaches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VsockOverride {
    /// The Unix socket.
    pub uds_path: Option<PathBuf>,
    /// The guest's address.
    pub guest_cid: Option<Cid>,
    /// Whose programs the guest reaches.
    pub peers: Option<VsockPeers>,
}

#[cfg(test)]
#[path = "devices_test.rs"]
mod tests;
