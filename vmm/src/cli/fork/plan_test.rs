use clap::Parser;
use serde_json::json;

use super::*;
use crate::cli::args::{Cli, Command};

/// A machine with all kinds of devices; the drives' files are in `files`.
fn config(files: &Path) -> FullConfig {
    let path = |name: &str| files.join(name);
    serde_json::from_value(json!({
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
        "drives": [
            {"drive_id": "disk0", "is_root_device": true, "path_on_host": path("root")},
            {"drive_id": "disk1", "is_root_device": false, "path_on_host": path("data"), "is_read_only": true},
        ],
        "network-interfaces": [{"iface_id": "net0", "host_dev_name": "tap0"}],
        "vsock": {"guest_cid": 3, "uds_path": path("v")},
    }))
    .unwrap()
}

fn plan(config: &FullConfig, more: &str) -> Result<Vec<SnapshotLoad>, PlanError> {
    let line = format!("vmgenie fork web -n 2 {more}");
    let Command::Fork(args) = Cli::parse_from(line.split_whitespace()).command else {
        panic!("{line}");
    };
    requests(&args.clones, config, Path::new("/s"), Path::new("/c"))
}

const NET: &str = "--net net0=tap-{n}";

#[test]
fn each_clone_gets_what_it_must_have_of_its_own() {
    let files = tempfile::tempdir().unwrap();
    let requests = plan(&config(files.path()), NET).unwrap();
    for (number, request) in (1..).zip(&requests) {
        assert!(request.resume_vm && request.generation == GenerationChoice::New);
        assert_eq!(request.snapshot_path, Path::new("/s/state"));
        let [overlay] = &request.drive_overrides[..] else {
            panic!("the drive that is written to alone: {request:?}");
        };
        assert!(overlay.drive_id == "disk0" && overlay.overlay && !overlay.copy);
        let path = format!("/s/clone-{number}.disk0.{}.overlay", std::process::id());
        assert_eq!(overlay.path_on_host, Path::new(&path));
        let vsock = request.vsock_override.as_ref().unwrap();
        let path = PathBuf::from(format!("/c/clone-{number}.vsock"));
        assert_eq!((&vsock.uds_path, vsock.guest_cid), (&Some(path), None));
        let tap = &request.network_overrides[0].host_dev_name;
        assert_eq!(*tap, Some(format!("tap-{number}")));
    }
    assert_eq!(requests.len(), 2);
}

#[test]
fn what_the_user_names_is_taken() {
    let files = tempfile::tempdir().unwrap();
    let more = format!("{NET} --drive disk0=/d-{{n}},copy --vsock /v-{{n}} --cid 7+{{n}}");
    let requests = plan(&config(files.path()), &more).unwrap();
    let drive = &requests[1].drive_overrides[0];
    assert!(drive.copy && drive.path_on_host == Path::new("/d-2"));
    assert_eq!(requests[1].drive_overrides.len(), 1);
    let vsock = requests[1].vsock_override.as_ref().unwrap();
    assert_eq!(vsock.uds_path.as_deref(), Some(Path::new("/v-2")));
    assert_eq!(vsock.guest_cid, Some(9));
}

#[test]
fn a_machine_without_devices_needs_nothing() {
    let mut config = config(Path::new("/"));
    config.drives.clear();
    config.network_interfaces.clear();
    config.vsock = None;
    let requests = plan(&config, "").unwrap();
    assert_eq!(requests[0].vsock_override, None);
    assert!(requests[0].drive_overrides.is_empty() && requests[0].network_overrides.is_empty());
}

#[test]
fn a_clone_without_a_tap_of_its_own_is_refused_with_the_option() {
    let files = tempfile::tempdir().unwrap();
    for more in [
        "",
        "--net net0=,mac=06:00:00:00:00:0{n}",
        "--net net1=tap{n}",
    ] {
        let told = plan(&config(files.path()), more).unwrap_err().to_string();
        assert!(told.contains("--net 'net0=TAP{n}'"), "{told}");
    }
}

#[test]
fn a_drive_whose_lower_file_is_gone_is_refused_unless_another_is_named() {
    let files = tempfile::tempdir().unwrap();
    let mut config = config(files.path());
    config.drives[0].overlay_path = Some(files.path().join("overlay"));
    for more in [
        "",
        "--drive disk0=/d-{n},overlay",
        "--drive disk0=/d-{n},copy",
    ] {
        let told = plan(&config, &format!("{NET} {more}")).unwrap_err();
        assert!(matches!(told, PlanError::NoBase { .. }), "{told}");
    }
    plan(&config, &format!("{NET} --drive disk0=/d-{{n}}")).unwrap();
    fs::write(files.path().join("root"), "").unwrap();
    plan(&config, NET).unwrap();
}

#[test]
fn a_relative_path_that_leads_nowhere_from_here_is_refused_where_a_clone_would_open_it() {
    let files = tempfile::tempdir().unwrap();
    let mut config = config(files.path());
    // A copy of it is made by the VMM that has it open.
    config.drives[0].path_on_host = Some("not-here.img".into());
    plan(&config, NET).unwrap();
    let mut layered = config.clone();
    layered.drives[0].overlay_path = Some("overlay".into());
    config.drives[1].path_on_host = Some("not-here.iso".into());
    for wrong in [&layered, &config] {
        let told = plan(wrong, NET).unwrap_err();
        assert!(matches!(told, PlanError::Relative { .. }), "{told}");
    }
    let named = format!("{NET} --drive disk1=/other.iso");
    plan(&config, &named).unwrap();
    config.drives[1].path_on_host = Some("Cargo.toml".into());
    plan(&config, NET).unwrap();
}

#[test]
fn a_file_that_would_be_made_and_is_there_is_refused_before_there_is_a_snapshot() {
    let files = tempfile::tempdir().unwrap();
    let at = |name: &str| files.path().join(name).display().to_string();
    fs::write(at("d-2"), "precious").unwrap();
    std::os::unix::fs::symlink("nowhere", at("l-1")).unwrap();
    for (named, refused) in [
        ("d-{n},overlay", true),
        ("l-{n},copy", true),
        ("d-{n}", false),
    ] {
        let more = format!("{NET} --drive disk0={}", at(named));
        let told = plan(&config(files.path()), &more);
        let exists = matches!(told, Err(PlanError::Exists { .. }));
        assert_eq!(exists, refused, "{named}: {told:?}");
    }
}

#[test]
fn a_vsock_socket_that_no_clone_can_have_is_refused_before_there_is_a_snapshot() {
    let files = tempfile::tempdir().unwrap();
    let at = |name: &str| files.path().join(name).display().to_string();
    fs::write(at("file-2"), "").unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(at("used-1")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(at("dead-1")).unwrap());
    let long = "v".repeat(107);
    for (named, refused) in [
        (at("file-{n}"), "file-2 exists and is not a socket"),
        (at("used-{n}"), "used-1 is in use"),
        (at(&long), "longer than 107 bytes"),
        (at("dead-{n}"), ""),
    ] {
        let told = plan(&config(files.path()), &format!("{NET} --vsock {named}"));
        let told = told.map_or_else(
            |error| crate::cli::output::report(&error),
            |_| String::new(),
        );
        assert!(
            told.contains(refused) && told.is_empty() == refused.is_empty(),
            "{told}"
        );
    }
}
