//! The bodies of requests, from JSON to what the controller is told.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use vmgenie::api::convert::{Checked, CheckedConfigFile};
use vmgenie::logging::LogConfig;
use vmgenie::metrics::MetricsConfig;
use vmgenie_api::wire;
use vmgenie_machine::config::{BootSource, DriveConfig, MachineConfig, NetConfig, VsockConfig};
use vmgenie_machine::request::{CreateSnapshot, LoadSnapshot};
use vmgenie_machine::virtio::kinds::{DevicesConfig, EntropyConfig};

/// A body; what is said of one that is taken, is taken again.
#[allow(
    clippy::expect_used,
    reason = "what we write we have to read: that is what is tested"
)]
fn parse<T: DeserializeOwned + Serialize + PartialEq + Debug>(body: &[u8]) -> Option<T> {
    let wire: T = serde_json::from_slice(body).ok()?;
    let text = serde_json::to_string(&wire).expect("a body");
    assert_eq!(
        serde_json::from_str::<T>(&text).expect("our own text"),
        wire
    );
    Some(wire)
}

fn checked<W, C>(body: &[u8]) -> Option<C>
where
    W: DeserializeOwned + Serialize + PartialEq + Debug + Checked<C>,
{
    let checked = parse::<W>(body)?.checked();
    checked
        .inspect_err(|error| assert!(!error.to_string().is_empty()))
        .ok()
}

fn load(body: &[u8]) {
    let Some(request) = checked::<wire::SnapshotLoad, LoadSnapshot>(body) else {
        return;
    };
    // A machine that the overrides may fit.
    let mut devices = DevicesConfig::default();
    for drive in [
        r#""d","path_on_host":"/d","is_root_device":true"#,
        r#""e","path_on_host":"/e","is_root_device":false"#,
    ] {
        let drive =
            checked::<wire::Drive, DriveConfig>(format!(r#"{{"drive_id":{drive}}}"#).as_bytes());
        drive.map(|drive| devices.put_drive(drive));
    }
    for net in ["n", "m"] {
        let net = format!(r#"{{"iface_id":"{net}","host_dev_name":"{net}"}}"#);
        checked::<wire::NetworkInterface, NetConfig>(net.as_bytes())
            .map(|net| devices.put_net(net));
    }
    if let Some(vsock) = checked::<wire::Vsock, VsockConfig>(br#"{"guest_cid":3,"uds_path":"v"}"#) {
        devices.set_vsock(vsock);
    }
    if let Ok(devices) = devices.overridden(&request.overrides) {
        assert!(devices.check().is_ok());
    }
}

fn file(body: &[u8]) {
    let file: Option<wire::ConfigFile> = serde_json::from_slice(body).ok();
    let Some(Ok((_, (_, source, devices)))) = file.map(Checked::<CheckedConfigFile>::checked)
    else {
        return;
    };
    assert!(devices.check().is_ok());
    if let Some(root) = devices.root_drive() {
        let _ = source.cmdline.with_root(root);
    }
}

/// The body of the request, or the configuration file, that the first byte names.
pub fn api(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else {
        return;
    };
    match kind % 16 {
        0 => drop(checked::<wire::MachineConfiguration, MachineConfig>(body)),
        1 => drop(parse::<wire::MachineConfigurationPatch>(body)),
        2 => drop(checked::<wire::BootSourceBody, BootSource>(body)),
        3 => drop(checked::<wire::Drive, DriveConfig>(body)),
        4 => drop(parse::<wire::PartialDrive>(body)),
        5 => drop(checked::<wire::NetworkInterface, NetConfig>(body)),
        6 => drop(parse::<wire::PartialNetworkInterface>(body)),
        7 => drop(checked::<wire::Vsock, VsockConfig>(body)),
        8 => drop(checked::<wire::EntropyDevice, EntropyConfig>(body)),
        9 => drop(checked::<wire::Logger, LogConfig>(body)),
        10 => drop(checked::<wire::Metrics, MetricsConfig>(body)),
        11 => drop(checked::<wire::SnapshotCreate, CreateSnapshot>(body)),
        12 | 13 => load(body),
        14 => {
            parse::<wire::VmUpdate>(body);
            parse::<wire::GenerationWait>(body);
            parse::<wire::Action>(body);
            parse::<wire::NewGeneration>(body);
        }
        _ => file(body),
    }
}
