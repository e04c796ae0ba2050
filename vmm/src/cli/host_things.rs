//! What a restored machine has of this host, looked at and told to people before it is opened.

use std::collections::HashMap;

use serde::Serialize;
use thiserror::Error;
use vmgenie_api::wire::SnapshotLoad;
use vmgenie_machine::request::LoadSnapshot;
use vmgenie_machine::virtio::kinds::DevicesConfig;
use vmgenie_machine::{SavedError, SavedMachine};
use vmgenie_snapshot::{LoadError, open_judged};

use crate::api::convert::{Checked, WireError};

/// Why a snapshot cannot be restored so, on any host.
#[derive(Debug, Error)]
pub(super) enum CheckError {
    #[error("the request makes no sense")]
    Request(#[from] WireError),
    #[error("the snapshot cannot be restored")]
    Load(#[from] LoadError),
    #[error("the snapshot cannot be restored so")]
    Saved(#[from] SavedError),
}

/// Two machines would have one thing of the host that only one machine can have.
#[derive(Debug, Error)]
#[error(
    "{what} of {owners} would be {thing:?}, which one machine alone can have: give each its own, {remedy}"
)]
pub(super) struct Shared {
    what: String,
    thing: String,
    owners: String,
    remedy: String,
}

/// What may go wrong with clones that can be started.
#[derive(Debug, Serialize)]
pub(super) struct Warning {
    kind: &'static str,
    /// The network interface.
    iface_id: String,
    guest_mac: Option<String>,
    /// For people.
    #[serde(skip)]
    pub(super) message: String,
}

/// The devices of the machines that `requests` restore, which are of one snapshot. Nothing that it names is opened.
///
/// # Errors
/// The snapshot is damaged, an override does not fit it, or it would have opened what it must not.
pub(super) fn check(requests: &[SnapshotLoad]) -> Result<Vec<DevicesConfig>, CheckError> {
    let requests = requests
        .iter()
        .cloned()
        .map(Checked::<LoadSnapshot>::checked);
    let requests = requests.collect::<Result<Vec<_>, _>>()?;
    let Some(first) = requests.first() else {
        return Ok(Vec::new());
    };
    let loaded = open_judged(&first.state, &first.memory)?;
    let saved = SavedMachine::read(loaded.reader)?;
    let distrust = loaded.distrust;
    let wanted = |request| Ok(saved.wanted(request, distrust.clone())?.wanted);
    requests.iter().map(wanted).collect()
}

/// Tells of the machine that `request` restores, unless it will be refused: the VMM says why.
pub(super) fn tell_if_allowed(request: &SnapshotLoad) {
    if let Ok(devices) = check(std::slice::from_ref(request)) {
        tell(&devices);
    }
}

/// Tells what machines will have opened.
pub(super) fn tell(machines: &[DevicesConfig]) {
    for line in folded(machines) {
        eprintln!("opens {line}");
    }
}

/// A line for each device: that of the first machine, and that of the last one where they differ.
fn folded(machines: &[DevicesConfig]) -> Vec<String> {
    let (Some(first), Some(last)) = (machines.first(), machines.last()) else {
        return Vec::new();
    };
    let pairs = lines(first).into_iter().zip(lines(last));
    let fold = |(first, last): (String, String)| match first == last {
        true => first,
        false => format!("{first} ... {last} (of {} clones)", machines.len()),
    };
    pairs.map(fold).collect()
}

/// Whether each of these clones can have its devices besides the others, and besides the original if that goes on.
///
/// # Errors
/// Two of them would write to one file, or have one tap or socket.
pub(super) fn check_shared(
    original: Option<&DevicesConfig>,
    clones: &[DevicesConfig],
) -> Result<(), Shared> {
    let mut owners = HashMap::new();
    let original = original.into_iter().map(|original| (0, original));
    for (number, machine) in original.chain((1..).zip(clones)) {
        for (what, thing, remedy) in exclusive(machine) {
            let other = owners.insert((kind_of(&what), thing.clone()), number);
            let owners = match other {
                None => continue,
                Some(0) => format!("the original and clone {number}"),
                Some(other) => format!("clones {other} and {number}"),
            };
            return Err(Shared {
                what,
                thing,
                owners,
                remedy,
            });
        }
    }
    Ok(())
}

/// A file, a tap and a socket of one name are different things.
fn kind_of(what: &str) -> String {
    what.split(' ').take(2).collect()
}

/// What only one machine can have: what it is, its name, and how to give it another one.
fn exclusive(devices: &DevicesConfig) -> Vec<(String, String, String)> {
    let drives = devices.drives().iter().filter_map(|drive| {
        let written = match &drive.overlay {
            Some(overlay) => overlay,
            None if drive.read_only => return None,
            None => &drive.path,
        };
        let id = &drive.id;
        Some((
            format!("the drive {id}"),
            written.to_string_lossy().into_owned(),
            format!("--drive '{id}=PATH-{{n}},overlay'"),
        ))
    });
    let nets = devices.nets().iter().map(|net| {
        let id = &net.id;
        (
            format!("the tap of {id}"),
            net.host_dev_name.as_str().to_owned(),
            format!("--net '{id}=TAP{{n}}'"),
        )
    });
    let vsock = devices.vsock().into_iter().map(|vsock| {
        (
            "the vsock socket".to_owned(),
            vsock.uds_path.to_string_lossy().into_owned(),
            "--vsock 'PATH-{n}'".to_owned(),
        )
    });
    drives.chain(nets).chain(vsock).collect()
}

/// What people should know of these clones, which are in one network namespace: machines that a bridge takes for one.
pub(super) fn warnings(clones: &[DevicesConfig]) -> Vec<Warning> {
    let Some((first, others)) = clones.split_first() else {
        return Vec::new();
    };
    let same = first.nets().iter().filter(|net| {
        let mut others = others.iter().flat_map(DevicesConfig::nets);
        others.any(|other| other.id == net.id && other.guest_mac == net.guest_mac)
    });
    let warning = |net: &vmgenie_machine::config::NetConfig| {
        let mac = net.guest_mac.as_ref().map(ToString::to_string);
        let told = mac.as_ref().map(|mac| format!(", {mac}"));
        Warning {
            kind: "same-mac",
            iface_id: net.id.to_string(),
            message: format!(
                "the interface {} of these machines has one MAC address{}, and one IP address unless the guests change it: on one network they get in each \
                 other's way. Give each its own (--net '{}=TAP{{n}},mac=...{{n}}', and --data for the guest), or a network of its own",
                net.id,
                told.as_deref().unwrap_or_default(),
                net.id,
            ),
            guest_mac: mac,
        }
    };
    same.map(warning).collect()
}

/// Paths come out of a file that may be anybody's: what they hold must not reach a terminal as it is.
fn lines(devices: &DevicesConfig) -> Vec<String> {
    let drives = devices.drives().iter().map(|drive| {
        let (id, path) = (&drive.id, &drive.path);
        match &drive.overlay {
            Some(overlay) => format!("drive {id}: {overlay:?} on {path:?}"),
            None if drive.read_only => format!("drive {id}: {path:?}, read-only"),
            None => format!("drive {id}: {path:?}"),
        }
    });
    let nets = devices.nets().iter();
    let nets = nets.map(|net| {
        let tap = net.host_dev_name.as_str();
        format!("network interface {}: the tap {tap:?}", net.id)
    });
    let vsock = devices.vsock().into_iter();
    let vsock = vsock.map(|vsock| format!("vsock: {:?}", vsock.uds_path));
    drives.chain(nets).chain(vsock).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmgenie_machine::config::{
        Cid, DeviceId, DriveConfig, InterfaceName, NetConfig, VsockConfig, VsockPeers,
    };

    fn drive(path: &str, overlay: Option<&str>, read_only: bool) -> DriveConfig {
        DriveConfig {
            id: DeviceId::new("disk0").unwrap(),
            path: path.into(),
            overlay: overlay.map(Into::into),
            read_only,
            is_root: false,
            cache: Default::default(),
            io_engine: Default::default(),
            partuuid: None,
        }
    }

    fn with_drive(path: &str, overlay: Option<&str>, read_only: bool) -> DevicesConfig {
        let mut devices = DevicesConfig::default();
        devices.put_drive(drive(path, overlay, read_only)).unwrap();
        devices
    }

    fn with_net(tap: &str, mac: Option<&str>) -> DevicesConfig {
        let mut devices = DevicesConfig::default();
        let net = NetConfig {
            id: DeviceId::new("net0").unwrap(),
            host_dev_name: InterfaceName::new(tap).unwrap(),
            guest_mac: mac.map(|mac| mac.parse().unwrap()),
            mtu: None,
        };
        devices.put_net(net).unwrap();
        devices
    }

    fn with_vsock(path: &str) -> DevicesConfig {
        let mut devices = DevicesConfig::default();
        devices.set_vsock(VsockConfig {
            guest_cid: Cid::new(3).unwrap(),
            uds_path: path.into(),
            peers: VsockPeers::Own,
        });
        devices
    }

    #[test]
    fn clones_that_would_have_one_thing_are_refused_with_the_option_that_helps() {
        for (clones, option) in [
            (
                [with_drive("/d", None, false), with_drive("/d", None, false)],
                "--drive 'disk0=PATH-{n},overlay'",
            ),
            (
                [
                    with_drive("/d", Some("/o"), false),
                    with_drive("/d", Some("/o"), false),
                ],
                "--drive 'disk0=PATH-{n},overlay'",
            ),
            (
                [with_net("tap0", None), with_net("tap0", None)],
                "--net 'net0=TAP{n}'",
            ),
            ([with_vsock("/v"), with_vsock("/v")], "--vsock 'PATH-{n}'"),
        ] {
            check_shared(None, &clones[..1]).unwrap();
            let told = check_shared(None, &clones).unwrap_err().to_string();
            assert!(told.contains(option), "{told}");
            assert!(told.contains("clones 1 and 2"), "{told}");
            let [original, clone] = &clones;
            let clone = std::slice::from_ref(clone);
            let told = check_shared(Some(original), clone).unwrap_err().to_string();
            assert!(told.contains("the original and clone 1"), "{told}");
        }
        for clones in [
            [with_drive("/d", None, true), with_drive("/d", None, true)],
            [
                with_drive("/d", Some("/1"), false),
                with_drive("/d", Some("/2"), false),
            ],
            [with_net("same", None), with_vsock("same")],
        ] {
            check_shared(None, &clones).unwrap();
            check_shared(Some(&clones[0]), &clones[1..]).unwrap();
        }
    }

    #[test]
    fn clones_with_one_mac_address_are_warned_of_once() {
        let mac = Some("06:00:00:00:00:01");
        let clones = [with_net("a", mac), with_net("b", mac), with_net("c", mac)];
        let told = warnings(&clones);
        assert_eq!(told.len(), 1);
        assert!(told[0].message.contains("net0") && told[0].message.contains("06:00:00:00:00:01"));
        let json = serde_json::to_value(&told[0]).unwrap();
        assert_eq!(
            json,
            serde_json::json!({ "kind": "same-mac", "iface_id": "net0", "guest_mac": "06:00:00:00:00:01" })
        );
        // Without one the guest has made it up, once.
        assert_eq!(
            warnings(&[with_net("a", None), with_net("b", None)]).len(),
            1
        );
        assert_eq!(warnings(&clones[..1]).len(), 0);
        let other = Some("06:00:00:00:00:02");
        assert_eq!(
            warnings(&[with_net("a", mac), with_net("b", other)]).len(),
            0
        );
    }

    #[test]
    fn what_many_clones_open_is_told_in_one_line() {
        let clones: Vec<_> = (1..=500)
            .map(|n| with_drive("/base", Some(&format!("/o-{n}")), false))
            .collect();
        assert_eq!(
            folded(&clones),
            [
                r#"drive disk0: "/o-1" on "/base" ... drive disk0: "/o-500" on "/base" (of 500 clones)"#
            ]
        );
        let same = [with_vsock("/v"), with_vsock("/v")];
        assert_eq!(folded(&same), [r#"vsock: "/v""#]);
    }

    #[test]
    fn each_file_and_tap_is_a_line_that_does_nothing_to_a_terminal() {
        let mut devices = DevicesConfig::default();
        let mut drive = DriveConfig {
            id: DeviceId::new("d").unwrap(),
            path: "/base\u{1b}[2J".into(),
            overlay: Some("/over\nlay".into()),
            read_only: false,
            is_root: false,
            cache: Default::default(),
            io_engine: Default::default(),
            partuuid: None,
        };
        devices.put_drive(drive.clone()).unwrap();
        (drive.id, drive.overlay) = (DeviceId::new("e").unwrap(), None);
        drive.read_only = true;
        devices.put_drive(drive).unwrap();
        let net = NetConfig {
            id: DeviceId::new("n").unwrap(),
            host_dev_name: InterfaceName::new("tap0").unwrap(),
            guest_mac: None,
            mtu: None,
        };
        devices.put_net(net).unwrap();
        assert_eq!(
            lines(&devices),
            [
                r#"drive d: "/over\nlay" on "/base\u{1b}[2J""#,
                r#"drive e: "/base\u{1b}[2J", read-only"#,
                r#"network interface n: the tap "tap0""#,
            ]
        );
    }
}
