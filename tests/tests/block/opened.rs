//! A snapshot's drives that were opened and not written to: they are still the snapshot's.

use std::os::unix::net::UnixListener;

use serde_json::{Value, json};
use vmgenie_tests::disk::{self, Image, with};
use vmgenie_tests::http::{done, refused};
use vmgenie_tests::{Guest, Snapshot, Vm};

/// The request that loads `snapshot` and lets it stand still, if its drives are what they were.
fn load(snapshot: &Snapshot, overrides: &Value) -> String {
    let request: Value = serde_json::from_str(&disk::load_request(snapshot, overrides)).unwrap();
    let fields = json!({ "changed_drives": "refuse", "resume_vm": false });
    with(request, &fields).to_string()
}

/// A machine that has not written to its drive and whose sockets are at `vsock`.
fn machine(image: &Image) -> Vm {
    let mut vm = Vm::empty();
    let drive = with(image.drive("data"), &json!({ "cache_type": "Unsafe" }));
    disk::configure(&mut vm, Guest::Tiny, 1, &[drive]);
    let vsock = json!({ "guest_cid": 3, "uds_path": image.beside("vsock") });
    done(&mut vm.client, "PUT /vsock", vsock.to_string());
    vm.client.start().unwrap();
    vm
}

fn snapshot(vm: &mut Vm, copy_drives: bool) -> Snapshot {
    let snapshot = Snapshot::new();
    vm.client.pause().unwrap();
    let request = json!({
        "snapshot_path": snapshot.state(), "mem_file_path": snapshot.memory(), "copy_drives": copy_drives,
    });
    done(&mut vm.client, "PUT /snapshot/create", request.to_string());
    snapshot
}

#[test]
fn a_snapshot_is_loaded_again_after_loads_that_failed_or_were_not_resumed() {
    for copies in [false, true] {
        let image = Image::new(4);
        let mut vm = machine(&image);
        let snapshot = snapshot(&mut vm, copies);
        vm.kill();
        let modified = || std::fs::metadata(image.path()).unwrap().modified().unwrap();
        let before = modified();
        // Its drive is opened before it is seen that somebody else listens there.
        let _ = std::fs::remove_file(image.beside("vsock"));
        let listener = UnixListener::bind(image.beside("vsock")).unwrap();
        let mut failed = Vm::empty();
        let told = refused(
            &mut failed.client,
            "PUT /snapshot/load",
            load(&snapshot, &json!([])),
        );
        assert!(told.contains("vsock"), "{told}");
        drop(listener);
        std::fs::remove_file(image.beside("vsock")).unwrap();
        drop(failed);
        for turn in 0..2 {
            let mut again = Vm::empty();
            done(
                &mut again.client,
                "PUT /snapshot/load",
                load(&snapshot, &json!([])),
            );
            // Opened anew, as after a change of its size.
            let patch = json!({ "drive_id": "data" }).to_string();
            done(&mut again.client, "PATCH /drives/data", patch);
            again.kill();
            println!("load {turn} with copies: {copies}");
        }
        let mut cloned = Vm::empty();
        let path = image.beside("overlay");
        let overlay = json!([{ "drive_id": "data", "path_on_host": path, "overlay": true }]);
        done(
            &mut cloned.client,
            "PUT /snapshot/load",
            load(&snapshot, &overlay),
        );
        // One more, of the clone, whose overlay is opened again.
        let files = Snapshot::new();
        let create = json!({ "snapshot_path": files.state(), "mem_file_path": files.memory() });
        done(
            &mut cloned.client,
            "PUT /snapshot/create",
            create.to_string(),
        );
        cloned.kill();
        for _ in 0..2 {
            let mut again = Vm::empty();
            done(
                &mut again.client,
                "PUT /snapshot/load",
                load(&files, &json!([])),
            );
            again.kill();
        }
        assert_eq!(modified(), before);
    }
}
