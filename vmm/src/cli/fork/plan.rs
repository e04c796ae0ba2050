//! What the clones of a machine that runs are asked to load: known before there is a snapshot.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vmgenie_api::wire::{
    ChangedDrives, Drive, DriveOverride, FullConfig, GenerationChoice, SnapshotLoad,
};
use vmgenie_machine::request::{MEMORY_FILE, STATE_FILE};

use super::super::args::ClonesArgs;
use super::super::clone_process::{CloneError, check_socket, makes_a_file};
use super::super::requests::{OverrideError, override_devices};

/// Why a machine cannot be forked so.
#[derive(Debug, Error)]
pub(super) enum PlanError {
    #[error(transparent)]
    Override(#[from] OverrideError),
    #[error(
        "the tap of {0} stays with the original: give each clone its own, --net '{0}=TAP{{n}}'"
    )]
    Tap(String),
    #[error(
        "the drive {id} is the block device {path}, which is not copied and on which the original goes on: give each clone its own, --drive '{id}=PATH-{{n}}'"
    )]
    BlockDevice { id: String, path: PathBuf },
    #[error(
        "the file below the drive {id} has no name any more ({path}), so that no clone could open it: this machine was forked without a SNAPSHOT_DIR. Fork its original with one"
    )]
    NoBase { id: String, path: PathBuf },
    #[error(
        "the file of the drive {id} has a relative path ({path}), and is not there for this command, whose clones would look for it: fork the machine in the directory in which its VMM was started"
    )]
    Relative { id: String, path: PathBuf },
    #[error(
        "clone {number} cannot have {path} made for its drive {id}: it is there already. Name another file, or remove it"
    )]
    Exists {
        number: u16,
        id: String,
        path: PathBuf,
    },
    #[error("clone {0} cannot have its vsock socket: name another --vsock or --dir")]
    Vsock(u16, #[source] CloneError),
}

/// A request for each clone of a machine with this configuration, whose snapshot will lie in `snapshot`. What a clone must have of its own, and was
/// given by nobody, is made: overlays there, vsock sockets in `sockets`.
pub(super) fn requests(
    args: &ClonesArgs,
    config: &FullConfig,
    snapshot: &Path,
    sockets: &Path,
) -> Result<Vec<SnapshotLoad>, PlanError> {
    (1..=args.number)
        .map(|number| {
            let mut request = request(snapshot);
            request.resume_vm = true;
            override_devices(&mut request, &args.overrides, Some(number))?;
            add_overlays(&mut request, config, snapshot, number)?;
            check_new(&request, number)?;
            check_taps(&request, config)?;
            if config.vsock.is_some() {
                let vsock = request.vsock_override.get_or_insert_default();
                let path = vsock
                    .uds_path
                    .get_or_insert_with(|| sockets.join(format!("clone-{number}.vsock")));
                check_socket(path).map_err(|error| PlanError::Vsock(number, error))?;
            }
            Ok(request)
        })
        .collect()
}

/// The machine with all that the original has, to be looked at alone.
pub(super) fn as_it_was(snapshot: &Path) -> SnapshotLoad {
    SnapshotLoad {
        changed_drives: Some(ChangedDrives::Allow),
        ..request(snapshot)
    }
}

fn request(snapshot: &Path) -> SnapshotLoad {
    SnapshotLoad {
        generation: GenerationChoice::New,
        ..SnapshotLoad::of(snapshot.join(STATE_FILE), snapshot.join(MEMORY_FILE))
    }
}

fn add_overlays(
    request: &mut SnapshotLoad,
    config: &FullConfig,
    snapshot: &Path,
    number: u16,
) -> Result<(), PlanError> {
    for drive in &config.drives {
        let id = &drive.drive_id;
        let named = request.drive_overrides.iter().find(|it| &it.drive_id == id);
        // A file that is there already needs nothing of the original's.
        let needs_original = named.is_none_or(|named| named.copy || named.overlay);
        if needs_original {
            check_file(drive)?;
        }
        if named.is_none() && drive.is_read_only != Some(true) {
            request.drive_overrides.push(DriveOverride {
                drive_id: id.clone(),
                path_on_host: own_overlay(snapshot, number, id),
                copy: false,
                overlay: true,
            });
        }
    }
    Ok(())
}

/// Where the overlay of a clone lies. The directory may have those of an earlier fork, which may still run, and another fork may be at work there.
fn own_overlay(dir: &Path, number: u16, drive: &str) -> PathBuf {
    let fork = std::process::id();
    dir.join(format!("clone-{number}.{drive}.{fork}.overlay"))
}

/// Whether nothing is yet where the clone has files made: a load replaces nothing.
fn check_new(request: &SnapshotLoad, number: u16) -> Result<(), PlanError> {
    let mut made = request.drive_overrides.iter();
    match made.find(|drive| makes_a_file(drive) && drive.path_on_host.symlink_metadata().is_ok()) {
        None => Ok(()),
        Some(there) => Err(PlanError::Exists {
            number,
            id: there.drive_id.clone(),
            path: there.path_on_host.clone(),
        }),
    }
}

/// Whether a clone can have what it needs of the original's drive: a copy in the snapshot to begin with, or a file that it opens itself. What cannot
/// be looked at from here (the VMM may have another root) is told by the VMMs.
fn check_file(drive: &Drive) -> Result<(), PlanError> {
    let Some(path) = &drive.path_on_host else {
        return Ok(());
    };
    let (id, path) = (drive.drive_id.clone(), path.clone());
    let read_only = drive.is_read_only == Some(true);
    let is_base = drive.overlay_path.is_some();
    match fs::metadata(&path) {
        Ok(file) if file.file_type().is_block_device() && !read_only && !is_base => {
            Err(PlanError::BlockDevice { id, path })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            match (path.is_relative(), is_base) {
                // The VMM has found it where it was started, and a clone would not.
                (true, _) if is_base || read_only => Err(PlanError::Relative { id, path }),
                (false, true) => Err(PlanError::NoBase { id, path }),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn check_taps(request: &SnapshotLoad, config: &FullConfig) -> Result<(), PlanError> {
    let has_tap = |id: &String| {
        let mut overrides = request.network_overrides.iter();
        overrides.any(|it| &it.iface_id == id && it.host_dev_name.is_some())
    };
    let mut nets = config.network_interfaces.iter();
    match nets.find(|net| !has_tap(&net.iface_id)) {
        Some(net) => Err(PlanError::Tap(net.iface_id.clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
