//! Guests that were booted once, and are restored from then on: most tests begin with a guest that has just booted, and are
//! not about that.
//!
//! The first test that asks for one boots it and takes a snapshot, which lies in the directory of the run; all others wait for that, and
//! restore it. A restored guest is in the generation that it had: nothing tells it from the one that was booted, but its clocks.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use vmgenie_api::wire::{SnapshotCreate, SnapshotType};

use crate::room::on_a_disk;
use crate::vm::Boot;
use crate::{Vm, http};

/// The snapshot of a guest that has booted. It stays until the run is over.
#[derive(Debug, Clone)]
pub struct Booted {
    dir: PathBuf,
}

impl Booted {
    /// The guest of this description, which has to say all that makes it different from others. `boot` makes it unless a test did before.
    pub fn of(description: &str, boot: impl FnOnce() -> Vm) -> Self {
        let name = Sha256::digest(description.as_bytes());
        let name: String = name[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let place = place();
        let booted = Self {
            dir: place.join(name),
        };
        let lock = File::create(booted.dir.with_extension("lock")).expect("a file to lock");
        lock.lock().expect("nobody holds the lock for ever");
        if !booted.is_complete().exists() {
            booted.make(boot);
        }
        booted
    }

    /// What is there when all else is.
    fn is_complete(&self) -> PathBuf {
        self.dir.join("complete")
    }

    fn make(&self, boot: impl FnOnce() -> Vm) {
        // Of a test that was ended in the midst of it.
        let _ = fs::remove_dir_all(&self.dir);
        fs::create_dir(&self.dir).expect("a directory for a snapshot");
        let mut vm = boot();
        vm.client.pause().expect("pause");
        let request = SnapshotCreate {
            snapshot_type: SnapshotType::Full,
            snapshot_path: self.dir.join("state"),
            mem_file_path: self.dir.join("memory"),
            resume_vm: false,
            copy_drives: false,
            cooperative: None,
            pause_vm: false,
        };
        let written = vm.client.create_snapshot(&request);
        written.expect("the snapshot is written");
        vm.kill();
        File::create(self.is_complete()).expect("room for a name");
    }

    /// Restores it into an empty VMM, running; `overrides` are more fields of PUT `/snapshot/load`.
    pub fn restore_into(&self, vm: &mut Vm, overrides: &Value) {
        let mut body = json!({
            "snapshot_path": self.dir.join("state"),
            "mem_file_path": self.dir.join("memory"),
            "resume_vm": true,
            "generation": "keep",
        });
        for (name, value) in overrides.as_object().expect("fields") {
            body[name] = value.clone();
        }
        http::done(&mut vm.client, "PUT /snapshot/load", body.to_string());
    }
}

impl Boot {
    /// A guest like that one in a VMM that is restored from a snapshot, which the first test that asks for such a guest takes: for tests that
    /// are not about booting.
    ///
    /// # Panics
    /// Where an option is none of the machine that a snapshot has.
    pub fn booted(self) -> Vm {
        let mut vm = Vm::empty();
        self.booted_into(&mut vm);
        vm
    }

    /// The same in an empty VMM, to which something may have been said before.
    ///
    /// # Panics
    /// As above.
    pub fn booted_into(self, vm: &mut Vm) {
        for option in &self.extra {
            assert_eq!(option, "--entropy", "not part of a snapshot");
        }
        let booted = Booted::of(&format!("{self:?}"), || self.ready());
        booted.restore_into(vm, &json!({}));
    }
}

/// A directory that all tests of a run have in common: each has one of its own in it. In the emulated host, where that is memory, it is on
/// the disk of the run.
fn place() -> PathBuf {
    let own = std::env::temp_dir();
    let common = match on_a_disk() {
        Some(dir) => dir,
        None => own.parent().unwrap_or(&own).to_owned(),
    };
    let place = Path::new(&common).join("booted");
    fs::create_dir_all(&place).expect("a directory for snapshots");
    place
}
