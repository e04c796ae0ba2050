use std::path::PathBuf;

use super::*;
use crate::config::*;

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn drive(name: &str, is_root: bool) -> DriveConfig {
    DriveConfig {
        overlay: None,
        id: id(name),
        path: PathBuf::from(name),
        read_only: false,
        is_root,
        cache: CacheMode::default(),
        io_engine: IoEngine::default(),
        partuuid: None,
    }
}

fn net(name: &str, tap: &str, mac: &str) -> NetConfig {
    NetConfig {
        id: id(name),
        host_dev_name: InterfaceName::new(tap).unwrap(),
        guest_mac: Some(mac.parse().unwrap()),
        mtu: None,
    }
}

fn names(devices: &DevicesConfig) -> Vec<&str> {
    devices.drives().iter().map(|d| d.id.as_str()).collect()
}

#[test]
fn the_root_drive_is_the_first_one_whenever_it_is_added() {
    let mut devices = DevicesConfig::default();
    devices.put_drive(drive("a", false)).unwrap();
    devices.put_drive(drive("root", true)).unwrap();
    devices.put_drive(drive("b", false)).unwrap();
    assert_eq!(names(&devices), ["root", "a", "b"]);
    devices.put_drive(drive("root", false)).unwrap();
    devices.put_drive(drive("b", true)).unwrap();
    assert_eq!(names(&devices), ["b", "root", "a"]);
    assert!(devices.check().is_ok());
}

#[test]
fn a_second_root_drive_is_refused_and_a_root_drive_may_be_replaced() {
    let mut devices = DevicesConfig::default();
    devices.put_drive(drive("root", true)).unwrap();
    assert_eq!(
        devices.put_drive(drive("other", true)),
        Err(ConfigError::SecondRoot)
    );
    let mut again = drive("root", true);
    again.read_only = true;
    devices.put_drive(again).unwrap();
    assert!(devices.root_drive().unwrap().read_only);
    assert_eq!(devices.len(), 1);
}

#[test]
fn two_interfaces_have_neither_one_mac_nor_one_tap() {
    let mut devices = DevicesConfig::default();
    devices
        .put_net(net("eth0", "tap0", "06:00:00:00:00:01"))
        .unwrap();
    let same_mac = net("eth1", "tap1", "06:00:00:00:00:01");
    assert!(matches!(
        devices.put_net(same_mac),
        Err(ConfigError::MacInUse(_))
    ));
    let same_tap = net("eth1", "tap0", "06:00:00:00:00:02");
    assert!(matches!(
        devices.put_net(same_tap),
        Err(ConfigError::TapInUse(_))
    ));
    // The same interface again is no conflict.
    devices
        .put_net(net("eth0", "tap0", "06:00:00:00:00:01"))
        .unwrap();
    assert_eq!(devices.len(), 1);
}

#[test]
fn overrides_change_what_they_name_and_nothing_else() {
    let mut devices = DevicesConfig::default();
    devices.put_drive(drive("root", true)).unwrap();
    devices.put_drive(drive("data", false)).unwrap();
    devices
        .put_net(net("eth0", "tap0", "06:00:00:00:00:01"))
        .unwrap();
    devices
        .put_net(net("eth1", "tap1", "06:00:00:00:00:02"))
        .unwrap();
    devices.set_vsock(VsockConfig {
        guest_cid: Cid::new(3).unwrap(),
        uds_path: PathBuf::from("v.sock"),
        peers: VsockPeers::Any,
    });
    let overrides = DeviceOverrides {
        drives: vec![DriveOverride {
            id: id("data"),
            path: PathBuf::from("other"),
            source: DriveSource::Existing,
        }],
        // The two exchange their taps.
        nets: vec![
            NetOverride {
                id: id("eth0"),
                host_dev_name: Some(InterfaceName::new("tap1").unwrap()),
                guest_mac: None,
            },
            NetOverride {
                id: id("eth1"),
                host_dev_name: Some(InterfaceName::new("tap0").unwrap()),
                guest_mac: Some("06:00:00:00:00:03".parse().unwrap()),
            },
        ],
        vsock: VsockOverride {
            uds_path: None,
            guest_cid: Some(Cid::new(9).unwrap()),
            peers: Some(VsockPeers::Own),
        },
        instance_data: None,
    };
    let changed = devices.clone().overridden(&overrides).unwrap();
    assert_eq!(changed.drives()[0], devices.drives()[0]);
    assert_eq!(changed.drives()[1].path, PathBuf::from("other"));
    assert_eq!(changed.nets()[0].host_dev_name.as_str(), "tap1");
    assert_eq!(changed.nets()[0].guest_mac, devices.nets()[0].guest_mac);
    assert_eq!(
        changed.nets()[1].guest_mac.unwrap().to_string(),
        "06:00:00:00:00:03"
    );
    let vsock = changed.vsock().unwrap();
    assert_eq!(
        (vsock.guest_cid.get(), vsock.uds_path.to_str(), vsock.peers),
        (9, Some("v.sock"), VsockPeers::Own)
    );
}

#[test]
fn a_drive_is_overridden_once() {
    let mut devices = DevicesConfig::default();
    devices.put_drive(drive("data", false)).unwrap();
    let named = |id: DeviceId, source| DriveOverride {
        id,
        path: "/other".into(),
        source,
    };
    let overrides = DeviceOverrides {
        drives: vec![
            named(id("data"), DriveSource::Existing),
            named(id("data"), DriveSource::Copy),
        ],
        ..DeviceOverrides::default()
    };
    let refused = devices.overridden(&overrides).unwrap_err();
    assert_eq!(refused, ConfigError::OverriddenTwice(id("data")));
}

#[test]
fn an_override_of_a_device_that_is_not_there_is_refused() {
    let overrides = DeviceOverrides {
        nets: vec![NetOverride {
            id: id("eth9"),
            host_dev_name: None,
            guest_mac: None,
        }],
        ..DeviceOverrides::default()
    };
    let refused = DevicesConfig::default().overridden(&overrides);
    assert_eq!(refused, Err(ConfigError::NoSuchNet(id("eth9"))));
    let overrides = DeviceOverrides {
        vsock: VsockOverride {
            uds_path: Some(PathBuf::from("x")),
            guest_cid: None,
            peers: None,
        },
        ..DeviceOverrides::default()
    };
    let refused = DevicesConfig::default().overridden(&overrides);
    assert_eq!(refused, Err(ConfigError::NoVsock));
}

#[test]
fn a_decoded_list_with_one_name_twice_is_found() {
    let devices = DevicesConfig {
        drives: vec![drive("a", false), drive("a", false)],
        ..DevicesConfig::default()
    };
    assert_eq!(devices.check(), Err(ConfigError::Contradiction));
    let devices = DevicesConfig {
        drives: vec![drive("a", false), drive("b", true)],
        ..DevicesConfig::default()
    };
    assert_eq!(devices.check(), Err(ConfigError::Contradiction));
}

#[test]
fn an_overlay_comes_on_top_of_what_the_snapshot_has() {
    let override_of = |source| DeviceOverrides {
        drives: vec![DriveOverride {
            id: id("data"),
            path: PathBuf::from("new"),
            source,
        }],
        ..DeviceOverrides::default()
    };
    let with = |drive: DriveConfig, source| {
        let mut devices = DevicesConfig::default();
        devices.put_drive(drive).unwrap();
        let changed = devices.overridden(&override_of(source))?;
        Ok::<_, ConfigError>((
            changed.drives()[0].path.clone(),
            changed.drives()[0].overlay.clone(),
        ))
    };
    let plain = drive("data", false);
    let path = plain.path.clone();
    let new = || PathBuf::from("new");
    assert_eq!(
        with(plain.clone(), DriveSource::Overlay).unwrap(),
        (path.clone(), Some(new()))
    );
    let overlaid = DriveConfig {
        overlay: Some("old".into()),
        ..plain.clone()
    };
    assert_eq!(
        with(overlaid.clone(), DriveSource::Overlay).unwrap(),
        (path, Some(new()))
    );
    assert_eq!(
        with(overlaid.clone(), DriveSource::Existing).unwrap(),
        (new(), None)
    );
    let refused = with(overlaid, DriveSource::Copy).unwrap_err();
    assert_eq!(refused, ConfigError::CopyOfOverlay(id("data")));
    let read_only = DriveConfig {
        read_only: true,
        ..plain
    };
    let refused = with(read_only, DriveSource::Overlay).unwrap_err();
    assert_eq!(refused, ConfigError::ReadOnlyOverlay(id("data")));
}

#[test]
fn interfaces_without_a_mac_address_keep_those_that_were_made_up() {
    let mut devices = DevicesConfig::default();
    let anonymous = |name: &str| NetConfig {
        guest_mac: None,
        ..net(name, name, "06:00:00:00:00:01")
    };
    devices.put_net(anonymous("a")).unwrap();
    devices.put_net(net("b", "b", "06:00:00:00:00:02")).unwrap();
    devices.put_net(anonymous("c")).unwrap();
    let macs = [3, 4, 5].map(|last| MacAddress::new([2, 0, 0, 0, 0, last]));
    devices.keep_macs(macs.into_iter());
    let kept: Vec<_> = devices.nets().iter().map(|net| net.guest_mac).collect();
    let own = "06:00:00:00:00:02".parse().unwrap();
    assert_eq!(kept, [Some(macs[0]), Some(own), Some(macs[2])]);
}
