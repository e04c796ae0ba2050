//! Takes a snapshot of a machine, which goes on as it was: `snapshot SOCKET DIRECTORY`.

use std::error::Error;
use std::path::Path;

use vmgenie_api::client::Client;
use vmgenie_api::wire::{SnapshotCreate, SnapshotType};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(directory)) = (arguments.next(), arguments.next()) else {
        return Err("usage: snapshot SOCKET DIRECTORY".into());
    };
    // The VMM opens the files: it may work in another directory.
    let directory = std::path::absolute(Path::new(&directory))?;
    let mut client = Client::new(socket)?;
    let made = client.create_snapshot(&SnapshotCreate {
        snapshot_type: SnapshotType::Full,
        snapshot_path: directory.join("state"),
        mem_file_path: directory.join("memory"),
        resume_vm: true,
        pause_vm: true,
        copy_drives: false,
        cooperative: None,
    })?;
    println!(
        "{} bytes of memory; the guest stood still for {:?}",
        made.memory_bytes, made.standstill
    );
    Ok(())
}
