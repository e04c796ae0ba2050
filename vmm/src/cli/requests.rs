//! Requests, made of what the command line says of devices.

use std::path::PathBuf;

use thiserror::Error;
use vmgenie_api::wire;
use vmgenie_machine::config::VsockPeers;

use super::args::{ChangedDrives, Clock, OverrideArgs};
use super::data::{DataError, instance_data};
use super::templates::{Override, Template};
use crate::checked::Convert;
use crate::kinds::vsock::peers_of;
use crate::words::{Words, number, unknown};

/// What is wrong with an override.
#[derive(Debug, Error)]
pub(super) enum OverrideError {
    #[error("the devices cannot be changed so: {0}")]
    Device(String),
    #[error(transparent)]
    Data(#[from] DataError),
}

/// Has `request` change the devices as `args` say, for clone `number`, or for a machine that is the only one.
pub(super) fn override_devices(
    request: &mut wire::SnapshotLoad,
    args: &OverrideArgs,
    number: Option<u16>,
) -> Result<(), OverrideError> {
    let data = args
        .data
        .as_ref()
        .map(|data| instance_data(&data.of(number)));
    request.instance_data = data.transpose()?.map(String::from);
    try_override(request, args, number).map_err(OverrideError::Device)
}

fn try_override(
    request: &mut wire::SnapshotLoad,
    args: &OverrideArgs,
    number: Option<u16>,
) -> Result<(), String> {
    for Override { name, value } in &args.net {
        let value = value.checked(number)?;
        let words = Words::of(&value);
        let (tap, options) = words.parts();
        let mut change = wire::NetworkOverride {
            iface_id: name.clone(),
            host_dev_name: (!tap.is_empty()).then(|| tap.to_owned()),
            guest_mac: None,
        };
        for option in options {
            match option {
                ("mac", Some(mac)) => change.guest_mac = Some(mac.to_owned()),
                (name, _) => return unknown(name, "mac=MAC"),
            }
        }
        request.network_overrides.push(change);
    }
    for Override { name, value } in &args.drive {
        let value = value.checked(number)?;
        let words = Words::of(&value);
        let (path, options) = words.parts();
        let path = std::path::absolute(path).map_err(|error| format!("{path}: {error}"))?;
        let mut change = wire::DriveOverride {
            drive_id: name.clone(),
            path_on_host: path,
            copy: false,
            overlay: false,
        };
        for option in options {
            match option {
                ("copy", None) => change.copy = true,
                ("overlay", None) => change.overlay = true,
                (name, _) => return unknown(name, "copy, overlay"),
            }
        }
        request.drive_overrides.push(change);
    }
    if args.vsock.is_some() || args.cid.is_some() {
        let mut change = wire::VsockOverride::default();
        if let Some(vsock) = &args.vsock {
            let (path, peers) = vsock_of(&vsock.checked(number)?)?;
            (change.uds_path, change.peers) = (Some(path), Some(peers.convert()));
        }
        let cid = args.cid.as_ref().map(|cid| cid_of(cid, number));
        change.guest_cid = cid.transpose()?;
        request.vsock_override = Some(change);
    }
    request.changed_drives = Some(match args.changed_drives {
        ChangedDrives::Refuse => wire::ChangedDrives::Refuse,
        ChangedDrives::Allow => wire::ChangedDrives::Allow,
    });
    request.host_paths = match (args.only_named, args.trust_paths) {
        (true, _) => wire::HostPaths::NamedOnly,
        (false, true) => wire::HostPaths::Any,
        (false, false) => wire::HostPaths::Trusted,
    };
    request.gate = args.gate.clone();
    request.clock = match args.clock {
        Clock::Step => wire::ClockChoice::Step,
        Clock::Keep => wire::ClockChoice::Keep,
    };
    Ok(())
}

/// `PATH[,peers=own|any]`.
fn vsock_of(text: &str) -> Result<(PathBuf, VsockPeers), String> {
    let words = Words::of(text);
    let (path, options) = words.parts();
    let mut peers = VsockPeers::Own;
    for option in options {
        match option {
            ("peers", Some(value)) => peers = peers_of(value)?,
            (name, _) => return unknown(name, "peers=own|any"),
        }
    }
    let path = std::path::absolute(path).map_err(|error| format!("--vsock: {error}"))?;
    Ok((path, peers))
}

/// A number, or `N+{n}`: a different one for each clone.
fn cid_of(cid: &Template, clone: Option<u16>) -> Result<u64, String> {
    let text = cid.checked(clone)?;
    text.split('+').try_fold(0_u64, |sum, part| {
        sum.checked_add(number(part)?)
            .ok_or_else(|| format!("{text:?} is too large"))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cli::templates::{parse_any_template, parse_device_override, parse_template};

    #[test]
    fn a_template_becomes_another_value_for_each_clone() {
        let args = OverrideArgs {
            net: vec![parse_device_override("net0=tap{n},mac=06:00:00:00:00:0{n}").unwrap()],
            drive: vec![parse_device_override("disk0=/d/{n}.ext4,copy").unwrap()],
            vsock: Some(parse_template("/v/{n}.sock").unwrap()),
            cid: Some(parse_template("100+{n}").unwrap()),
            data: Some(parse_any_template("web-{n}").unwrap()),
            ..OverrideArgs::default()
        };
        let mut request = wire::SnapshotLoad::of("/s".into(), "/m".into());
        override_devices(&mut request, &args, Some(7)).unwrap();
        let net = &request.network_overrides[0];
        assert_eq!(net.host_dev_name.as_deref(), Some("tap7"));
        assert_eq!(net.guest_mac.as_deref(), Some("06:00:00:00:00:07"));
        let drive = &request.drive_overrides[0];
        assert_eq!(
            (drive.path_on_host.as_path(), drive.copy),
            (Path::new("/d/7.ext4"), true)
        );
        let vsock = request.vsock_override.unwrap();
        assert_eq!(vsock.uds_path.as_deref(), Some(Path::new("/v/7.sock")));
        assert_eq!(vsock.guest_cid, Some(107));
        assert_eq!(vsock.peers, Some(wire::VsockPeers::Own));
        assert_eq!(request.instance_data.as_deref(), Some("web-7"));
    }

    #[test]
    fn a_clone_reaches_its_users_programs_unless_it_is_told_or_keeps_its_socket() {
        let changed = |vsock: Option<&str>, cid: Option<&str>| {
            let args = OverrideArgs {
                vsock: vsock.map(|text| parse_template(text).unwrap()),
                cid: cid.map(|text| parse_template(text).unwrap()),
                ..OverrideArgs::default()
            };
            let mut request = wire::SnapshotLoad::of("/s".into(), "/m".into());
            override_devices(&mut request, &args, Some(1)).map(|()| request.vsock_override.unwrap())
        };
        let any = changed(Some("/v-{n},peers=any"), None).unwrap();
        assert_eq!(any.peers, Some(wire::VsockPeers::Any));
        assert_eq!(any.uds_path.as_deref(), Some(Path::new("/v-1")));
        assert_eq!(changed(None, Some("7")).unwrap().peers, None);
        for wrong in ["/v,peers=all", "/v,peers", "/v,cid=3", ",peers=any"] {
            assert!(changed(Some(wrong), None).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_snapshot_has_its_own_paths_opened_if_it_is_trusted_or_said_to_be() {
        for (only_named, trust_paths, expected) in [
            (false, false, wire::HostPaths::Trusted),
            (true, false, wire::HostPaths::NamedOnly),
            (false, true, wire::HostPaths::Any),
        ] {
            let args = OverrideArgs {
                only_named,
                trust_paths,
                ..OverrideArgs::default()
            };
            let mut request = wire::SnapshotLoad::of("/s".into(), "/m".into());
            override_devices(&mut request, &args, None).unwrap();
            assert_eq!(request.host_paths, expected);
        }
    }

    #[test]
    fn braces_that_no_number_takes_the_place_of_are_refused() {
        let override_with = |args: &OverrideArgs, number| {
            let mut request = wire::SnapshotLoad::of("/s".into(), "/m".into());
            override_devices(&mut request, args, number).map(|()| request)
        };
        let net = |text| OverrideArgs {
            net: vec![parse_device_override(text).unwrap()],
            ..OverrideArgs::default()
        };
        let drive = |text| OverrideArgs {
            drive: vec![parse_device_override(text).unwrap()],
            ..OverrideArgs::default()
        };
        let vsock = |text| OverrideArgs {
            vsock: Some(parse_template(text).unwrap()),
            ..OverrideArgs::default()
        };
        for args in [
            net("net0=tap{i}"),
            drive("disk0=/d-{m},overlay"),
            drive("disk0=/d-{n}-{n:03},copy"),
            drive("disk0=/d-{n,copy"),
            vsock("/v-{}"),
        ] {
            let error = override_with(&args, Some(1)).unwrap_err().to_string();
            assert!(error.contains("{n}"), "{error}");
        }
        // A single machine has no number: its names are taken as they are.
        override_with(&drive("disk0=/d-{m}"), None).unwrap();
        let data = OverrideArgs {
            data: Some(parse_any_template(r#"{"name":"web-{n}"}"#).unwrap()),
            ..OverrideArgs::default()
        };
        let request = override_with(&data, Some(2)).unwrap();
        assert_eq!(request.instance_data.unwrap(), r#"{"name":"web-2"}"#);
    }

    #[test]
    fn an_override_that_makes_no_sense_is_refused() {
        for wrong in ["", "net0", "net0=", "=tap", "a-b=tap"] {
            assert!(parse_device_override(wrong).is_err(), "{wrong}");
        }
        let mut request = wire::SnapshotLoad::of("/s".into(), "/m".into());
        let args = OverrideArgs {
            cid: Some(parse_template("many").unwrap()),
            ..OverrideArgs::default()
        };
        assert!(override_devices(&mut request, &args, None).is_err());
    }
}
