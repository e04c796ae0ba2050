use super::*;

fn parse(text: &str) -> ConfigFile {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_firecracker_configuration_file_is_taken_whole() {
    let file = parse(
        r#"{
        "boot-source": {"kernel_image_path": "vmlinux", "boot_args": "console=ttyS0", "initrd_path": null},
        "drives": [{"drive_id": "rootfs", "partuuid": null, "is_root_device": true, "cache_type": "Unsafe",
            "is_read_only": false, "path_on_host": "root.ext4", "io_engine": "Sync", "rate_limiter": null, "socket": null}],
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 1024, "smt": false, "track_dirty_pages": false, "huge_pages": "None"},
        "cpu-config": null, "balloon": null,
        "network-interfaces": [{"iface_id": "eth0", "guest_mac": "06:00:ac:10:00:02", "host_dev_name": "tap0"}],
        "vsock": {"guest_cid": 3, "uds_path": "v.sock"},
        "logger": {"log_path": "log.fifo", "level": "Debug"}, "metrics": {"metrics_path": "m.fifo"},
        "mmds-config": null, "entropy": null, "pmem": [], "memory-hotplug": null}"#,
    );
    let (first, (machine, source, devices)) = file.checked().unwrap();
    assert!(matches!(
        first[..],
        [Command::SetLog(_), Command::SetMetrics(_)]
    ));
    assert_eq!((machine.vcpus(), machine.memory_mib()), (2, 1024));
    assert_eq!(source.cmdline.as_str(), "console=ttyS0");
    assert_eq!(devices.len(), 3);
    assert!(devices.root_drive().is_some());
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let file =
        parse(r#"{"boot-source": {"kernel_image_path": "k"}, "balloon": {"amount_mib": 1}}"#);
    assert_eq!(file.checked(), Err(WireError::NotInConfigFile("balloon")));
    let unknown = r#"{"boot-source": {"kernel_image_path": "k", "kernel": "k"}}"#;
    assert!(serde_json::from_str::<ConfigFile>(unknown).is_err());
    assert!(serde_json::from_str::<ConfigFile>("{}").is_err());
}

#[test]
fn cfg_04_an_unknown_name_at_the_top_is_passed_over_and_told_of() {
    let text = r#"{"boot-source": {"kernel_image_path": "k"}, "drive": [1], "baloon": null}"#;
    assert!(parse(text).checked().is_ok());
    let unknown = ConfigFile::unknown_names(text.as_bytes()).unwrap();
    assert_eq!(unknown, ["baloon", "drive"]);
}

#[test]
fn cfg_03_what_is_shown_is_a_configuration_file_with_names_that_are_known() {
    let machine = MachineConfig::new(2, 256).unwrap().convert();
    let mut shown = FullConfig::without_devices(machine);
    shown.boot_source.kernel_image_path = "k".into();
    let text = serde_json::to_vec(&shown).unwrap();
    // In Firecracker's order.
    let expected = r#"{"balloon":null,"drives":[],"boot-source":{"kernel_image_path":"k","initrd_path":null,"boot_args":null},"cpu-config":null,"logger":null,"machine-config":{"vcpu_count":2,"mem_size_mib":256,"smt":false,"track_dirty_pages":false,"huge_pages":"None"},"metrics":null,"mmds-config":null,"network-interfaces":[],"vsock":null,"entropy":null,"pmem":[],"memory-hotplug":null}"#;
    assert_eq!(str::from_utf8(&text).unwrap(), expected);
    assert_eq!(ConfigFile::unknown_names(&text).unwrap(), [""; 0]);
    let file: ConfigFile = serde_json::from_slice(&text).unwrap();
    let (_, (machine, ..)) = file.checked().unwrap();
    assert_eq!((machine.vcpus(), machine.memory_mib()), (2, 256));
}
