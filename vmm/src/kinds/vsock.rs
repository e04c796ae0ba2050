//! Sockets between the guest and the host.

use clap::Args;
use vmgenie_api::wire::{self, ConfigFile, FullConfig, Vsock, VsockPeers};
use vmgenie_machine::config::{Cid, VsockConfig, VsockPeers as PeersOfGuest};
use vmgenie_machine::virtio::kinds::DevicesConfig;

use super::kind::{BodyError, Kind, Put, PutCounters};
use crate::checked::{Checked, Convert, WireError, lossy, not_empty};
use crate::words::{Words, number, told, unknown};

/// The kind.
pub(super) struct VsockKind;

static COUNTERS: PutCounters = PutCounters::new("vsock_count", "vsock_fails");

impl Kind for VsockKind {
    fn path(&self) -> &'static str {
        "/vsock"
    }

    fn counters(&self) -> &'static PutCounters {
        &COUNTERS
    }

    fn put(&self, _: &str, body: &[u8]) -> Result<Put, BodyError> {
        Ok(put_vsock(serde_json::from_slice(body)?)?)
    }

    fn show(&self, devices: &DevicesConfig, shown: &mut FullConfig) {
        shown.vsock = devices.vsock().map(Convert::convert);
    }

    fn read(&self, file: &mut ConfigFile, devices: &mut DevicesConfig) -> Result<(), WireError> {
        if let Some(vsock) = file.vsock.take() {
            devices.set_vsock(vsock.checked()?);
        }
        Ok(())
    }
}

/// Sets or replaces the vsock device; before the start only.
#[utoipa::path(put, tag = "devices", path = "/vsock", request_body = wire::Vsock, responses(
    (status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) fn put_vsock(body: Vsock) -> Result<Put, WireError> {
    let deprecated = body.vsock_id.is_some();
    Ok(Put {
        deprecated,
        ..Put::of(body.checked()?)
    })
}

impl Convert<PeersOfGuest> for VsockPeers {
    fn convert(self) -> PeersOfGuest {
        let wire = self;
        match wire {
            VsockPeers::Any => PeersOfGuest::Any,
            VsockPeers::Own => PeersOfGuest::Own,
        }
    }
}

impl Convert<VsockPeers> for PeersOfGuest {
    fn convert(self) -> VsockPeers {
        let peers = self;
        match peers {
            PeersOfGuest::Any => VsockPeers::Any,
            PeersOfGuest::Own => VsockPeers::Own,
        }
    }
}

impl Checked<VsockConfig> for Vsock {
    fn checked(self) -> Result<VsockConfig, WireError> {
        let wire = self;
        Ok(VsockConfig {
            guest_cid: Cid::new(wire.guest_cid)?,
            uds_path: not_empty("uds_path", wire.uds_path)?,
            peers: wire.peers.convert(),
        })
    }
}

impl Convert<Vsock> for &VsockConfig {
    fn convert(self) -> Vsock {
        let vsock = self;
        Vsock {
            guest_cid: vsock.guest_cid.get().into(),
            uds_path: lossy(&vsock.uds_path),
            peers: vsock.peers.convert(),
            vsock_id: None,
        }
    }
}

/// The vsock device for `vmgenie run`.
#[derive(Debug, Args)]
pub struct VsockFlags {
    /// A vsock device behind this Unix socket: PATH[,cid=CID][,peers=own|any]. The guest's connections to the host's port N go to who listens
    /// on PATH_N: your own programs and root's, or with `peers=any` everybody's. A comma of the path is written twice.
    #[arg(long, value_name = "VSOCK", value_parser = parse_vsock)]
    vsock: Option<VsockConfig>,
}

impl VsockFlags {
    pub(super) fn add_to(&self, devices: &mut DevicesConfig) {
        if let Some(vsock) = &self.vsock {
            devices.set_vsock(vsock.clone());
        }
    }
}

/// The CID of a guest that is given none.
const DEFAULT_CID: u64 = 3;

/// `PATH[,cid=CID][,peers=own|any]`.
fn parse_vsock(text: &str) -> Result<VsockConfig, String> {
    let words = Words::of(text);
    let (path, options) = words.parts();
    if path.is_empty() {
        return Err("the path is missing".to_owned());
    }
    let (mut cid, mut peers) = (DEFAULT_CID, PeersOfGuest::Own);
    for option in options {
        match option {
            ("cid", Some(value)) => cid = number(value)?,
            ("peers", Some(value)) => peers = peers_of(value)?,
            (name, _) => return unknown(name, "cid=CID, peers=own|any"),
        }
    }
    Ok(VsockConfig {
        guest_cid: Cid::new(cid).map_err(told)?,
        uds_path: path.into(),
        peers,
    })
}

/// Whose programs the guest reaches.
pub(crate) fn peers_of(text: &str) -> Result<PeersOfGuest, String> {
    match text {
        "own" => Ok(PeersOfGuest::Own),
        "any" => Ok(PeersOfGuest::Any),
        _ => Err(format!("peers={text}: it is own or any")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_vsock_device_is_read_with_its_options() {
        assert_eq!(parse_vsock("/v").unwrap().guest_cid.get(), 3);
        assert_eq!(parse_vsock("/v,cid=9").unwrap().guest_cid.get(), 9);
        assert!(parse_vsock("/v,cid=2").is_err() && parse_vsock(",cid=3").is_err());
        let uds_path = |text| parse_vsock(text).unwrap().uds_path;
        assert_eq!(uds_path("/a,,b,cid=9"), Path::new("/a,b"));
        // What a comma does that is not doubled is told.
        assert!(parse_vsock("/a,b").unwrap_err().contains("written twice"));
        let peers = |text| parse_vsock(text).map(|vsock| vsock.peers);
        assert_eq!(peers("/v"), Ok(PeersOfGuest::Own), "safe unless told");
        assert_eq!(peers("/v,peers=own,cid=4"), Ok(PeersOfGuest::Own));
        assert_eq!(peers("/v,cid=4,peers=any"), Ok(PeersOfGuest::Any));
        assert!(peers("/v,peers=all").is_err() && peers("/v,peers").is_err());
    }
}
