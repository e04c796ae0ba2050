//! Disks for guests.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::booted::Booted;
use crate::http::done;
use crate::{Guest, Snapshot, Vm};

/// An image of its own; it is removed when this is dropped.
#[derive(Debug)]
pub struct Image {
    dir: TempDir,
}

impl Image {
    /// An image of so many MiB, all of it a hole.
    pub fn new(mib: u64) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let image = Self { dir };
        File::create(image.path()).expect("an image");
        image.set_len(mib << 20);
        image
    }

    /// Makes it so many bytes long.
    pub fn set_len(&self, len: u64) {
        let file = File::options().write(true).open(self.path());
        file.and_then(|file| file.set_len(len)).expect("an image");
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    /// Another file beside it.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What is in it.
    pub fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).expect("the image")
    }

    /// The body of PUT `/drives`: writable, flushes are honoured, by io_uring.
    pub fn drive(&self, id: &str) -> Value {
        json!({
            "drive_id": id,
            "path_on_host": self.path(),
            "is_root_device": false,
            "cache_type": "Writeback",
            "io_engine": "Async",
        })
    }
}

/// The same with some fields otherwise.
pub fn with(mut drive: Value, fields: &Value) -> Value {
    for (name, value) in fields.as_object().expect("fields") {
        drive[name] = value.clone();
    }
    drive
}

/// Configures an empty VMM for a guest with these drives.
pub fn configure(vm: &mut Vm, guest: Guest, cpus: u8, drives: &[Value]) {
    let memory: u64 = guest.memory().trim_end_matches('M').parse().expect("MiB");
    let machine = json!({ "vcpu_count": cpus, "mem_size_mib": memory });
    let source = guest.boot_source();
    done(&mut vm.client, "PUT /machine-config", machine.to_string());
    done(&mut vm.client, "PUT /boot-source", source.to_string());
    put_drives(vm, drives);
}

/// Adds drives.
pub fn put_drives(vm: &mut Vm, drives: &[Value]) {
    for drive in drives {
        let id = drive["drive_id"].as_str().expect("a drive_id");
        done(
            &mut vm.client,
            &format!("PUT /drives/{id}"),
            drive.to_string(),
        );
    }
}

/// A guest with this drive, which has booted. It booted with an empty one of the same size: a guest keeps nothing of what it looks for on a
/// disk at its boot.
pub fn booted(guest: Guest, cpus: u8, drive: &Value) -> Vm {
    let path = Path::new(drive["path_on_host"].as_str().expect("a path"));
    let mut file = File::open(path).expect("the drive's file");
    // A block device has no length of a file.
    let len = file.seek(SeekFrom::End(0)).expect("a size");
    let mut described = drive.clone();
    described["path_on_host"] = json!(len);
    let booted = Booted::of(&format!("{guest:?} {cpus} with {described}"), || {
        let image = Image::new(0);
        image.set_len(len);
        let drive = with(drive.clone(), &json!({ "path_on_host": image.path() }));
        boot(guest, cpus, &[drive])
    });
    let mut vm = Vm::empty();
    let own = json!({ "drive_id": drive["drive_id"], "path_on_host": path });
    booted.restore_into(&mut vm, &json!({ "drive_overrides": [own] }));
    vm
}

/// Boots a guest with these drives, and waits for its shell.
pub fn boot(guest: Guest, cpus: u8, drives: &[Value]) -> Vm {
    let mut vm = Vm::empty();
    configure(&mut vm, guest, cpus, drives);
    vm.client.start().expect("the guest starts");
    vm.wait_ready();
    vm
}

/// The body of PUT `/snapshot/load` that lets the guest run with these `drive_overrides`.
pub fn load_request(snapshot: &Snapshot, overrides: &Value) -> String {
    json!({
        "snapshot_path": snapshot.state(),
        "mem_file_path": snapshot.memory(),
        "resume_vm": true,
        "drive_overrides": overrides,
    })
    .to_string()
}
