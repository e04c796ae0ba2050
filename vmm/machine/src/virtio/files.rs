//! What a snapshot says of the files behind its drives, and whether they are still what they were.
//!
//! A snapshot refers to its drives by path: if the machine goes on, they move away from the memory that knows them. So each file is recorded as it was, and
//! looked at again at the restore; and a snapshot may have copies of its own, beside its state file.

use std::path::{Path, PathBuf};

use thiserror::Error;
use vmgenie_snapshot::{Distrust, NamedFile, SnapshotId};

use super::drive_files::{DriveFilePart, DriveFileState, copy_suffix};
use super::kinds::DevicesConfig;
use crate::backends::found::{DriveFiles, FileStamp};
use crate::config::{DeviceOverrides, DriveConfig, DriveSource};
use crate::request::{ChangedDrives, HostPaths};

/// Why the host's files, taps or sockets cannot be what a snapshot says.
#[derive(Debug, Error)]
pub enum HostPathError {
    /// The request names less than it was said to.
    #[error(
        "the snapshot refers to {0} on this host, which was not named: name one (--drive, --net or --vsock; an override \
         in the API), or allow the snapshot's own (without --only-named; host_paths other than \"named-only\" in \
         the API)"
    )]
    NotNamed(String),
    /// The snapshot may be anybody's, and refers to something on this host.
    #[error(
        "the snapshot refers to {what} on this host, and may be somebody else's: {why}. Name what it may open (--drive, \
         --net or --vsock; an override in the API), make the snapshot this user's or root's alone (chown, chmod go-w), \
         or trust its paths (--trust-paths; host_paths \"any\" in the API)"
    )]
    NotTrusted {
        /// What it refers to.
        what: String,
        /// Why it may be somebody else's.
        why: Distrust,
    },
    /// A drive's file has moved on.
    #[error(
        "the drive {id} is not what it was when the snapshot was taken: {what}, {path:?}. A guest that goes on with it damages its file system. Have \
         snapshots made with copies of the drives (--copy-drives; copy_drives in the API), give the file that belongs to the snapshot (--drive; \
         drive_overrides in the API), or have it so (--changed-drives allow; changed_drives \"allow\" in the API)"
    )]
    Changed {
        /// The drive.
        id: String,
        /// What has changed.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The state file names a copy that is none.
    #[error("the snapshot's own copy of the drive {id} is not there: {name:?}")]
    Copy {
        /// The drive.
        id: String,
        /// What the state file calls it.
        name: String,
    },
}

/// The devices of a snapshot, with its own copies of drives, and the files of each drive.
#[derive(Debug)]
pub(crate) struct Located {
    /// The devices.
    pub(crate) devices: DevicesConfig,
    /// What was found, one for each drive.
    pub(crate) found: Vec<DriveFiles>,
}

/// The devices of the snapshot `id` whose state file is in `dir`: drives of which it has copies are behind those, unless `overrides` name another
/// file. Nothing is opened; but what is found here is what is opened later, whatever has its name then.
pub(crate) fn located(
    devices: &DevicesConfig,
    files: &[DriveFilePart],
    dir: &Path,
    id: SnapshotId,
    overrides: &DeviceOverrides,
) -> Result<Located, HostPathError> {
    let mut located = Located {
        devices: devices.clone(),
        found: Vec::new(),
    };
    for (drive, DriveFilePart(file)) in devices.drives().iter().zip(files) {
        if has_file(overrides, drive) {
            located.found.push(DriveFiles::default());
            continue;
        }
        // What cannot be looked at is told when it is opened.
        let find = |path: &PathBuf| NamedFile::at(path).ok();
        let Some(name) = &file.copy else {
            located.found.push(DriveFiles {
                file: find(&drive.path),
                overlay: drive.overlay.as_ref().and_then(find),
            });
            continue;
        };
        let copy = own_copy(drive, dir, name, id)?;
        let devices = &mut located.devices;
        devices.set_drive_copy(&drive.id, copy.path().to_owned());
        located.found.push(match &drive.overlay {
            None => DriveFiles {
                file: Some(copy),
                overlay: None,
            },
            Some(_) => DriveFiles {
                file: find(&drive.path),
                overlay: Some(copy),
            },
        });
    }
    Ok(located)
}

/// The copy that the snapshot `id` has of a drive. The state file may say anything: the copy is a file in its directory, not by a detour, and has a
/// name that nothing but a copy of this snapshot has. Else a state file in somebody's home could have any file there opened.
fn own_copy(
    drive: &DriveConfig,
    dir: &Path,
    name: &str,
    id: SnapshotId,
) -> Result<NamedFile, HostPathError> {
    let own = name.ends_with(&copy_suffix(drive.id.as_str(), id));
    let copy = own.then(|| NamedFile::in_directory(dir, name).ok());
    let copy = copy.flatten().filter(|copy| copy.metadata().is_file());
    copy.ok_or_else(|| HostPathError::Copy {
        id: drive.id.to_string(),
        name: name.chars().take(256).collect(),
    })
}

/// Whether the request names a file for the drive that is there already.
fn has_file(overrides: &DeviceOverrides, drive: &DriveConfig) -> bool {
    let mut named = overrides.drives.iter();
    named.any(|named| named.id == drive.id && named.source == DriveSource::Existing)
}

/// Whether the request names all that the machine has of the host, as far as it has to. `devices` are [`located`]; `distrust` says why the snapshot
/// may be somebody else's.
pub(crate) fn check_named(
    devices: &DevicesConfig,
    files: &[DriveFilePart],
    overrides: &DeviceOverrides,
    wanted: HostPaths,
    distrust: Option<Distrust>,
) -> Result<(), HostPathError> {
    if wanted == HostPaths::Any || wanted == HostPaths::Trusted && distrust.is_none() {
        return Ok(());
    }
    let refuse = |what: String| {
        Err(match distrust.clone() {
            Some(why) if wanted == HostPaths::Trusted => HostPathError::NotTrusted { what, why },
            _ => HostPathError::NotNamed(what),
        })
    };
    for (drive, DriveFilePart(file)) in devices.drives().iter().zip(files) {
        let named = overrides.drives.iter().find(|named| named.id == drive.id);
        // The snapshot's own copies came with what the caller has named.
        let own_file = file.copy.is_some() && drive.overlay.is_none();
        let source = named.map(|named| named.source);
        match (&drive.overlay, source) {
            (_, Some(DriveSource::Existing)) => {}
            _ if own_file => {}
            _ => return refuse(format!("the file {:?}", drive.path)),
        }
    }
    for net in devices.nets() {
        let named = overrides.nets.iter().find(|named| named.id == net.id);
        if named.is_none_or(|named| named.host_dev_name.is_none()) {
            return refuse(format!("the tap {}", net.host_dev_name));
        }
    }
    match devices.vsock() {
        Some(vsock) if overrides.vsock.uds_path.is_none() => {
            refuse(format!("the socket {:?}", vsock.uds_path))
        }
        _ => Ok(()),
    }
}

/// Whether the drives' files are as they were.
pub(crate) fn check_unchanged(
    located: &Located,
    files: &[DriveFilePart],
    overrides: &DeviceOverrides,
    changed: ChangedDrives,
) -> Result<(), HostPathError> {
    let drives = located.devices.drives().iter().zip(&located.found);
    for ((drive, found), DriveFilePart(file)) in drives.zip(files) {
        if has_file(overrides, drive) {
            // The caller knows which file it is.
            continue;
        }
        for (path, what, own) in difference(found, file) {
            let refused = match changed {
                ChangedDrives::Allow => continue,
                ChangedDrives::Refuse => true,
                ChangedDrives::OwnCopies => own,
            };
            let error = HostPathError::Changed {
                id: drive.id.to_string(),
                what,
                path,
            };
            if refused {
                return Err(error);
            }
            tracing::warn!("{error}");
        }
    }
    Ok(())
}

/// The files of a drive that are not what they were: which, how, and whether it is the snapshot's own copy.
fn difference(found: &DriveFiles, saved: &DriveFileState) -> Vec<(PathBuf, &'static str, bool)> {
    let copied = saved.copy.is_some();
    let own_file = copied && found.overlay.is_none();
    let files = [
        (&found.file, saved.file, own_file),
        (&found.overlay, saved.overlay, copied),
    ];
    files
        .into_iter()
        .filter_map(|(found, then, own)| {
            let (found, then) = (found.as_ref()?, then?);
            let now = FileStamp::by(found.metadata())?;
            let what = then.difference(&now, own)?;
            Some((found.path().to_owned(), what, own))
        })
        .collect()
}

#[cfg(test)]
#[path = "files_test.rs"]
mod tests;
