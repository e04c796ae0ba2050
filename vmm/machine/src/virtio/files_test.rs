//! Snapshots of somebody else's, and of drives that have moved on.

use std::fs::{self, File};
use std::io;

use tempfile::TempDir;

use super::*;
use crate::backends::copy::make_drives;
use crate::backends::drive::Drive;
use crate::config::{
    Cid, DeviceId, DriveOverride, InterfaceName, NetConfig, NetOverride, VsockConfig, VsockPeers,
};

const SNAPSHOT: SnapshotId = SnapshotId::from_bytes([0xab; 16]);

fn copy_name() -> String {
    format!("s.state{}", copy_suffix("d", SNAPSHOT))
}

fn id(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

/// A drive on a file of its own, and what a snapshot says of it.
struct Place {
    dir: TempDir,
    devices: DevicesConfig,
    files: Vec<DriveFilePart>,
}

impl Place {
    fn new(overlay: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name| dir.path().join(name);
        for name in ["image", "overlay"] {
            fs::write(path(name), [7; 1024]).unwrap();
        }
        let mut devices = DevicesConfig::default();
        let drive = DriveConfig {
            id: id("d"),
            path: path("image"),
            overlay: overlay.then(|| path("overlay")),
            read_only: false,
            is_root: false,
            cache: Default::default(),
            io_engine: Default::default(),
            partuuid: None,
        };
        devices.put_drive(drive).unwrap();
        let stamp = |name| FileStamp::of(&File::open(path(name)).unwrap()).unwrap();
        let state = DriveFileState {
            copy: None,
            file: stamp("image"),
            overlay: stamp("overlay").filter(|_| overlay),
        };
        let files = vec![DriveFilePart(state)];
        Self {
            dir,
            devices,
            files,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Has the snapshot say that it has a copy.
    fn with_copy(mut self, name: &str) -> Self {
        self.files[0].0.copy = Some(name.to_owned());
        self
    }

    /// Gives one of the files the name of a copy, and has the snapshot say so.
    fn copied(self, file: &str) -> Self {
        fs::rename(self.path(file), self.path(&copy_name())).unwrap();
        self.with_copy(&copy_name())
    }

    fn found(&self) -> Result<Located, HostPathError> {
        self.located_with(&DeviceOverrides::default())
    }

    fn located(&self) -> Result<DevicesConfig, HostPathError> {
        Ok(self.found()?.devices)
    }

    fn located_with(&self, overrides: &DeviceOverrides) -> Result<Located, HostPathError> {
        located(
            &self.devices,
            &self.files,
            self.dir.path(),
            SNAPSHOT,
            overrides,
        )
    }

    fn unchanged(&self, changed: ChangedDrives) -> Result<(), HostPathError> {
        let overrides = DeviceOverrides::default();
        check_unchanged(&self.found().unwrap(), &self.files, &overrides, changed)
    }

    fn named(&self, overrides: &DeviceOverrides) -> Result<(), HostPathError> {
        let located = self.located().unwrap();
        check_named(
            &located,
            &self.files,
            &DeviceOverrides::default(),
            HostPaths::Any,
            None,
        )
        .unwrap();
        let check =
            |wanted, distrust| check_named(&located, &self.files, overrides, wanted, distrust);
        let why = Distrust::Link("/s".into());
        check(HostPaths::Any, Some(why.clone())).unwrap();
        check(HostPaths::Trusted, None).unwrap();
        let named = check(HostPaths::NamedOnly, None);
        let trusted = check(HostPaths::Trusted, Some(why));
        match &trusted {
            Err(HostPathError::NotTrusted { what, .. }) => {
                let told = named.as_ref().unwrap_err().to_string();
                assert!(told.contains(what.as_str()), "{told}");
            }
            other => assert!(other.is_ok() && named.is_ok(), "{other:?}"),
        }
        named
    }
}

fn drive_override(source: DriveSource) -> DeviceOverrides {
    DeviceOverrides {
        drives: vec![DriveOverride {
            id: id("d"),
            path: "/other".into(),
            source,
        }],
        ..DeviceOverrides::default()
    }
}

fn write_to(path: &Path) {
    // The clock of a file system goes in ticks.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let mut file = File::options()
        .append(false)
        .write(true)
        .open(path)
        .unwrap();
    io::Write::write_all(&mut file, b"x").unwrap();
}

#[test]
fn a_file_that_was_written_to_exchanged_or_cut_is_noticed() {
    type Change = fn(&Path);
    let changes: [Change; 3] = [
        write_to,
        |path| {
            fs::rename(path.with_file_name("overlay"), path).unwrap();
        },
        |path| {
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(512).unwrap();
        },
    ];
    for change in changes {
        let place = Place::new(false);
        place.unchanged(ChangedDrives::Refuse).unwrap();
        change(&place.path("image"));
        let refused = place.unchanged(ChangedDrives::Refuse).unwrap_err();
        assert!(
            matches!(refused, HostPathError::Changed { .. }),
            "{refused}"
        );
        // As Firecracker has it, and a warning.
        place.unchanged(ChangedDrives::OwnCopies).unwrap();
        place.unchanged(ChangedDrives::Allow).unwrap();
        // Another file is the caller's business; a copy of this one is not.
        let located = place.found().unwrap();
        let check = |source| {
            let overrides = drive_override(source);
            check_unchanged(&located, &place.files, &overrides, ChangedDrives::Refuse)
        };
        check(DriveSource::Existing).unwrap();
        check(DriveSource::Copy).unwrap_err();
        check(DriveSource::Overlay).unwrap_err();
    }
}

#[test]
fn an_overlay_is_looked_at_as_well_as_what_is_below() {
    for name in ["image", "overlay"] {
        let place = Place::new(true);
        place.unchanged(ChangedDrives::Refuse).unwrap();
        write_to(&place.path(name));
        place.unchanged(ChangedDrives::Refuse).unwrap_err();
    }
}

#[test]
fn a_snapshot_s_own_copy_may_move_with_it_and_must_not_change() {
    let place = Place::new(false).copied("image");
    assert_eq!(
        place.located().unwrap().drives()[0].path,
        place.path(&copy_name())
    );
    // As a copied directory has it: another file, another time.
    fs::copy(place.path(&copy_name()), place.path("moved")).unwrap();
    fs::rename(place.path("moved"), place.path(&copy_name())).unwrap();
    place.unchanged(ChangedDrives::Refuse).unwrap();
    let place = Place::new(false).copied("image");
    write_to(&place.path(&copy_name()));
    place.unchanged(ChangedDrives::OwnCopies).unwrap_err();
    place.unchanged(ChangedDrives::Allow).unwrap();
    // Of a drive with an overlay it is the overlay that was copied.
    let place = Place::new(true).copied("overlay");
    let drive = place.located().unwrap().drives()[0].clone();
    assert_eq!(
        (drive.path, drive.overlay),
        (place.path("image"), Some(place.path(&copy_name())))
    );
}

#[test]
fn a_copy_is_a_file_beside_the_state_file_and_nothing_else() {
    let elsewhere = tempfile::tempdir().unwrap();
    let name = copy_name();
    let outside = elsewhere.path().join(&name);
    fs::write(&outside, "").unwrap();
    // There, but for the detour; a name that is not there; and what is no file.
    let place = Place::new(false).copied("image");
    place.located().unwrap();
    let refuse = |place: Place, name: &str| {
        let refused = place.with_copy(name).located().unwrap_err();
        assert!(matches!(refused, HostPathError::Copy { .. }), "{name}");
    };
    for named in [
        format!("./{name}"),
        format!("dir/../{name}"),
        format!("{name}/"),
        format!("gone{name}"),
        outside.to_str().unwrap().to_owned(),
    ] {
        let place = Place::new(false).copied("image");
        fs::create_dir(place.path("dir")).unwrap();
        refuse(place, &named);
    }
    let place = Place::new(false);
    std::os::unix::fs::symlink(&outside, place.path(&name)).unwrap();
    refuse(place, &name);
    let place = Place::new(false);
    fs::create_dir(place.path(&name)).unwrap();
    refuse(place, &name);
}

/// Whoever may write to the snapshot's directory could have any file of whoever restores it opened.
#[test]
fn a_copy_that_is_exchanged_for_a_link_after_the_look_is_not_followed() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), [0x5e; 1024]).unwrap();
    for (source, bytes) in [
        (None, [7; 1024]),
        (Some(DriveSource::Copy), [7; 1024]),
        (Some(DriveSource::Overlay), [7; 1024]),
    ] {
        let place = Place::new(false).copied("image");
        let mut overrides = DeviceOverrides::default();
        if let Some(source) = source {
            overrides = drive_override(source);
            overrides.drives[0].path = place.path("mine");
        }
        let mut located = place.located_with(&overrides).unwrap();
        let copy = place.path(&copy_name());
        fs::remove_file(&copy).unwrap();
        std::os::unix::fs::symlink(secret.path(), &copy).unwrap();
        make_drives(located.devices.drives(), &mut located.found, &overrides)
            .unwrap()
            .keep();
        let wanted = located.devices.clone().overridden(&overrides).unwrap();
        let found = located.found.remove(0);
        let mut drive = Drive::open_found(&wanted.drives()[0], found).unwrap();
        assert_eq!(drive.first_bytes(1024), bytes, "{source:?}");
    }
    assert_eq!(fs::read(secret.path()).unwrap(), [0x5e; 1024]);
}

#[test]
fn a_copy_that_is_gone_is_not_missed_if_another_file_is_named() {
    let place = Place::new(false).with_copy(&copy_name());
    place.located().unwrap_err();
    for (source, fits) in [
        (DriveSource::Existing, true),
        (DriveSource::Copy, false),
        (DriveSource::Overlay, false),
    ] {
        let located = place.located_with(&drive_override(source));
        assert_eq!(located.is_ok(), fits, "{source:?}");
    }
}

#[test]
fn a_copy_has_a_name_that_no_other_file_has() {
    let other = SnapshotId::from_bytes([0xac; 16]);
    for name in [
        // What a state file that was saved in somebody's home could name.
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        ".bashrc".to_owned(),
        "s.mem".to_owned(),
        format!("s.state{}", copy_suffix("e", SNAPSHOT)),
        format!("s.state{}", copy_suffix("d", other)),
        format!("{}.img", copy_name()),
    ] {
        let place = Place::new(false);
        // Some of these are directories.
        let _ = fs::write(place.path(&name), "mine");
        let refused = place.with_copy(&name).located().unwrap_err();
        assert!(matches!(refused, HostPathError::Copy { .. }), "{name}");
    }
}

#[test]
fn everything_of_the_host_has_to_be_named_if_that_is_wanted() {
    let place = Place::new(false);
    place.named(&drive_override(DriveSource::Existing)).unwrap();
    for overrides in [
        DeviceOverrides::default(),
        // These read the file that the state file names.
        drive_override(DriveSource::Copy),
        drive_override(DriveSource::Overlay),
    ] {
        let refused = place.named(&overrides).unwrap_err();
        assert!(matches!(refused, HostPathError::NotNamed(_)), "{refused}");
    }
    // Its own copy came with it; what is below an overlay did not.
    let own = Place::new(false).copied("image");
    own.named(&DeviceOverrides::default()).unwrap();
    own.named(&drive_override(DriveSource::Overlay)).unwrap();
    let own = Place::new(true).copied("overlay");
    own.named(&DeviceOverrides::default()).unwrap_err();
}

#[test]
fn taps_and_sockets_have_to_be_named_as_well() {
    let mut place = Place::new(false).copied("image");
    let net = NetConfig {
        id: id("n"),
        host_dev_name: InterfaceName::new("tap0").unwrap(),
        guest_mac: None,
        mtu: None,
    };
    place.devices.put_net(net).unwrap();
    place.devices.set_vsock(VsockConfig {
        guest_cid: Cid::new(3).unwrap(),
        uds_path: "/v".into(),
        peers: VsockPeers::Any,
    });
    let mut overrides = DeviceOverrides::default();
    let refused = place.named(&overrides).unwrap_err().to_string();
    assert!(refused.contains("the tap tap0"), "{refused}");
    overrides.nets.push(NetOverride {
        id: id("n"),
        host_dev_name: InterfaceName::new("tap1").ok(),
        guest_mac: None,
    });
    let refused = place.named(&overrides).unwrap_err().to_string();
    assert!(refused.contains("the socket \"/v\""), "{refused}");
    overrides.vsock.uds_path = Some("/w".into());
    place.named(&overrides).unwrap();
}
