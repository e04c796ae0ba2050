//! Directories, and links in them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use vmgenie_tests::vm::Vm;
use vmgenie_tests::{Snapshot, tiny};

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn drive_copies_lie_beside_the_state_file_and_not_beside_a_link_to_it() {
    let place = Snapshot::new();
    let at = |name: &str| place.dir().join(name);
    fs::write(at("disk.img"), vec![7; 1 << 20]).unwrap();
    let drive = format!("--drive={}", at("disk.img").display());
    let boot = vmgenie_tests::vm::Boot::new(vmgenie_tests::Guest::Tiny).option(&drive);
    let mut vm = tiny::boot_with(boot);
    for dir in ["real", "links"] {
        fs::create_dir(at(dir)).unwrap();
    }
    vm.client.pause().unwrap();
    let mut request = place.request();
    request.copy_drives = true;
    request.snapshot_path = at("real/state");
    request.mem_file_path = at("real/memory");
    vm.client.create_snapshot(&request).unwrap();
    symlink(at("real/state"), at("links/state")).unwrap();
    request.snapshot_path = at("links/state");
    vm.client.create_snapshot(&request).unwrap();
    assert_eq!(names(&at("links")), ["state"]);
    // Of the older one, which was replaced, nothing stays.
    assert_eq!(names(&at("real")).len(), 3, "{:?}", names(&at("real")));
    drop(vm);
    for state in ["real/state", "links/state"] {
        let load = vmgenie::api::wire::SnapshotLoad {
            resume_vm: true,
            // Whether it has changed is not the question here.
            changed_drives: Some(vmgenie::api::wire::ChangedDrives::Allow),
            ..vmgenie::api::wire::SnapshotLoad::of(at(state), at("real/memory"))
        };
        let mut vm = Vm::spawn(&["api".to_owned()], &[]);
        vm.client.load_snapshot(&load).unwrap();
        let config = vm.client.config().unwrap();
        let config = serde_json::to_value(config).unwrap();
        let path = config["drives"][0]["path_on_host"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(path.contains("real/state.disk0."), "{path}");
    }
}
