//! What a restored machine has of this host, told to people before it is opened.

use crate::api::wire::SnapshotLoad;
use crate::config::DevicesConfig;
use crate::controller::command::LoadSnapshot;
use crate::machine::SavedMachine;
use crate::snapshot::StateReader;

/// Tells it of the machines that `requests` restore, which are of one snapshot. Nothing is told if that cannot be read: the VMM says why.
pub(super) fn tell(requests: &[SnapshotLoad]) {
    let saved = requests
        .first()
        .and_then(|request| StateReader::open(&request.snapshot_path).ok())
        .and_then(|reader| SavedMachine::read(reader).ok());
    let Some(saved) = saved else { return };
    for request in requests {
        let devices = LoadSnapshot::try_from(request.clone())
            .ok()
            .and_then(|request| Some(saved.wanted(&request, None).ok()?.wanted));
        devices
            .iter()
            .flat_map(lines)
            .for_each(|line| eprintln!("opens {line}"));
    }
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
    use crate::config::{DeviceId, DriveConfig, InterfaceName, NetConfig};

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
