//! Sockets between the guest and the host.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmgenie_devices::virtio::Active;
use vmgenie_devices::virtio::vsock::{self, Vsock, VsockMetrics, VsockState};

use super::kind::{Found, Kind, Model, Offer, Refusal};
use super::{DeviceConfig, DevicesConfig, SavedVirtio};
use crate::backends::vsock::{self as backend, UnixHost, VsockHostError};
use crate::config::{Cid, ConfigError, VsockConfig, VsockOverride, VsockPeers};
use crate::metrics::Single;
use crate::request::Gate;
use crate::state::device_part;
use crate::virtio::copies::DriveCopies;
use crate::virtio::{Side, VirtioError};

/// What it counts.
pub(super) static METRICS: Single<VsockMetrics> = Single::new();

device_part!(VsockPart, VsockState, "virtio-vsock", "The socket device.");

/// The kind, of which a machine has one device at most.
pub(super) enum VsockKind {}

impl Kind for VsockKind {
    type Config = VsockConfig;
    type State = VsockPart;
    type Model = Vsock<UnixHost>;
    const WHAT: &'static str = "the vsock device";

    fn boot(config: &VsockConfig) -> Result<Self::Model, VirtioError> {
        let device = backend::boot(config).map_err(failed)?;
        Ok(device.with_metrics(METRICS.of()))
    }

    fn restore(
        config: &VsockConfig,
        state: &VsockPart,
        _: &mut Found,
    ) -> Result<Self::Model, VirtioError> {
        let device = backend::restore(config, &state.0).map_err(failed)?;
        Ok(device.with_metrics(METRICS.of()))
    }

    fn check(_: &VsockConfig, VsockPart(state): &VsockPart) -> Result<Offer, Refusal> {
        state.check()?;
        Ok((&vsock::QUEUE_SIZES, VsockState::OFFERED))
    }
}

impl Model for Vsock<UnixHost> {
    fn save_to(&self, saved: &mut SavedVirtio, _: &DriveCopies) {
        saved.vsock = Some(VsockPart(self.save()));
    }

    fn shut_gate(&mut self, gate: Gate) {
        if gate.vsock {
            Self::shut_gate(self);
        }
    }

    fn open_gate(&mut self, side: Side, active: Option<&mut Active<'_>>) {
        match side {
            Side::Networks => self.open_gate_to_guest(active),
            Side::Host => self.open_gate_to_host(),
        }
    }
}

fn failed(error: VsockHostError) -> VirtioError {
    VirtioError::Device {
        what: "make the vsock device".to_owned(),
        source: error.into(),
    }
}

impl From<VsockConfig> for DeviceConfig {
    fn from(vsock: VsockConfig) -> Self {
        Self::Vsock(vsock)
    }
}

impl DevicesConfig {
    /// The vsock device.
    pub fn vsock(&self) -> Option<&VsockConfig> {
        self.vsock.as_ref()
    }

    /// Sets or replaces the vsock device.
    pub fn set_vsock(&mut self, vsock: VsockConfig) {
        self.vsock = Some(vsock);
    }

    pub(super) fn override_vsock(&mut self, wanted: &VsockOverride) -> Result<(), ConfigError> {
        if *wanted != VsockOverride::default() {
            let vsock = self.vsock.as_mut().ok_or(ConfigError::NoVsock)?;
            vsock.peers = wanted.peers.unwrap_or(vsock.peers);
            if let Some(path) = &wanted.uds_path {
                vsock.uds_path = path.clone();
            }
            vsock.guest_cid = wanted.guest_cid.unwrap_or(vsock.guest_cid);
        }
        Ok(())
    }
}

/// It in the list of a state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVsock {
    guest_cid: Cid,
    uds_path: PathBuf,
    peers: SavedPeers,
}

/// The same in version 2 of the list.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedVsockV2 {
    guest_cid: Cid,
    uds_path: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum SavedPeers {
    Any,
    Own,
}

impl From<SavedVsockV2> for SavedVsock {
    fn from(old: SavedVsockV2) -> Self {
        Self {
            guest_cid: old.guest_cid,
            uds_path: old.uds_path,
            // As it was then.
            peers: SavedPeers::Any,
        }
    }
}

impl From<&VsockConfig> for SavedVsock {
    fn from(vsock: &VsockConfig) -> Self {
        let VsockConfig {
            guest_cid,
            uds_path,
            peers,
        } = vsock.clone();
        Self {
            guest_cid,
            uds_path,
            peers: match peers {
                VsockPeers::Any => SavedPeers::Any,
                VsockPeers::Own => SavedPeers::Own,
            },
        }
    }
}

impl From<SavedVsock> for VsockConfig {
    fn from(saved: SavedVsock) -> Self {
        Self {
            guest_cid: saved.guest_cid,
            uds_path: saved.uds_path,
            peers: match saved.peers {
                SavedPeers::Any => VsockPeers::Any,
                SavedPeers::Own => VsockPeers::Own,
            },
        }
    }
}
