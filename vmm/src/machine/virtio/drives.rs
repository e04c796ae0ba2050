//! Other files behind the drives of a machine, and copies of them for a snapshot.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vmgenie_devices::virtio::block::BlockBackend;

use super::VirtioDevices;
use super::device::Device;
use super::files::{DriveFileState, FileStamp, copy_suffix};
use crate::config::DeviceId;
use crate::machine::backends::drive::{Drive, DriveError};
use crate::metrics::DEVICES;
use crate::snapshot::SnapshotId;

/// Why a drive could not be updated.
#[derive(Debug, Error)]
pub enum UpdateDriveError {
    /// There is no such drive.
    #[error("there is no drive {0} in this microVM")]
    NoSuchDrive(DeviceId),
    /// The file.
    #[error(transparent)]
    Drive(#[from] DriveError),
    /// The event loop.
    #[error("could not watch the drive's file")]
    Watch(#[from] std::io::Error),
}

impl VirtioDevices {
    /// Puts another file behind a drive, or opens the present one anew. The guest learns of another size. What was in flight has ended
    /// on the old file; after an error nothing has changed.
    pub(in crate::machine) fn update_drive(
        &mut self,
        id: &DeviceId,
        path: Option<PathBuf>,
    ) -> Result<(), UpdateDriveError> {
        let mut drives = self.config.drives().iter();
        // Drives have the first slots, in their order.
        let found = drives
            .position(|drive| drive.id == *id)
            .and_then(|slot| Some((slot, &self.slots.get(slot)?.device)));
        let Some((slot, Device::Block(device))) = found else {
            return Err(UpdateDriveError::NoSuchDrive(id.clone()));
        };
        let mut config = self.config.drives()[slot].clone();
        if let Some(path) = path {
            config.path = path;
            config.overlay = None;
        }
        let metrics = DEVICES.drive(id.as_str());
        let updated = device.with_device(|block, active| {
            let drive = block.store().reopen(&config)?;
            if let Some(fd) = drive.fd() {
                self.events.watch_backend(fd.as_raw_fd(), slot)?;
            }
            block
                .replace(drive, active)
                .map_err(|error| UpdateDriveError::Drive(error.into()))
        });
        match updated {
            Ok(()) => metrics.update_count.inc(),
            Err(error) => {
                metrics.update_fails.inc();
                return Err(error);
            }
        }
        let changed = match config.overlay {
            Some(_) => Ok(()),
            None => self.config.set_drive_path(id, config.path),
        };
        debug_assert!(changed.is_ok(), "it was there a moment ago");
        self.events.kick(slot);
        Ok(())
    }
}

/// A drive could not be copied.
#[derive(Debug, Error)]
#[error("could not copy the drive {id:?} to {}", .path.display())]
pub struct CopyDrivesError {
    id: String,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Copies of drives that belong to one snapshot. They go with this, unless they are kept.
#[derive(Debug)]
pub struct DriveCopies {
    state: PathBuf,
    id: SnapshotId,
    made: Vec<DriveCopy>,
    keep: bool,
}

#[derive(Debug)]
struct DriveCopy {
    drive: String,
    path: PathBuf,
    file: File,
}

/// What a copy's name ends with.
const COPY_SUFFIX: &str = ".drive";

impl DriveCopies {
    /// No copies, for the snapshot with this state file.
    pub fn none(state: &Path, id: SnapshotId) -> Self {
        Self {
            state: state.to_owned(),
            id,
            made: Vec::new(),
            keep: false,
        }
    }

    /// Where the copy of a drive goes: beside the state file, under a name that no other snapshot's copy has. So an older snapshot in the same
    /// place stays whole until this one is published.
    fn path_of(&self, drive: &str) -> Option<PathBuf> {
        let mut name = OsString::from(self.state.file_name()?);
        name.push(copy_suffix(drive, self.id));
        Some(self.state.with_file_name(name))
    }

    fn add(&mut self, id: &str, drive: &Drive) -> Result<(), CopyDrivesError> {
        let path = self.path_of(id).unwrap_or_default();
        match drive.copy_to(&path) {
            Ok(file) => {
                let drive = id.to_owned();
                self.made.push(DriveCopy { drive, path, file });
                Ok(())
            }
            Err(source) => Err(CopyDrivesError {
                id: id.to_owned(),
                path,
                source,
            }),
        }
    }

    /// What the snapshot says of a drive's files.
    pub(super) fn state_of(&self, id: &str, drive: &Drive) -> DriveFileState {
        let (file, overlay) = drive.stamps();
        let Some(copy) = self.made.iter().find(|copy| copy.drive == id) else {
            return DriveFileState {
                copy: None,
                file,
                overlay,
            };
        };
        let name = copy.path.file_name();
        let stamp = FileStamp::of(&copy.file).ok().flatten();
        let (file, overlay) = match overlay {
            Some(_) => (file, stamp),
            None => (stamp, None),
        };
        DriveFileState {
            copy: name.map(|name| name.to_string_lossy().into_owned()),
            file,
            overlay,
        }
    }

    /// Makes the copies durable. Publishing the snapshot does so with their names.
    ///
    /// # Errors
    /// The files'.
    pub fn sync(&self) -> Result<(), CopyDrivesError> {
        for DriveCopy { drive, path, file } in &self.made {
            file.sync_all().map_err(|source| CopyDrivesError {
                id: drive.clone(),
                path: path.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// The snapshot is there: its copies stay, and those of one that it has replaced go, unless a machine uses them.
    pub fn keep(mut self) {
        self.keep = true;
        let Some(state) = self.state.file_name() else {
            return;
        };
        let prefix = format!("{}.", state.to_string_lossy());
        let own = format!("{}{COPY_SUFFIX}", self.id);
        let dir = match self.state.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let is_old = name.strip_prefix(&prefix).is_some_and(is_copy) && !name.ends_with(&own);
            let path = entry.path();
            if is_old && is_unused(&path) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// `DRIVE.SNAPSHOT.drive`
fn is_copy(name: &str) -> bool {
    let Some((drive, id)) = name
        .strip_suffix(COPY_SUFFIX)
        .and_then(|it| it.rsplit_once('.'))
    else {
        return false;
    };
    DeviceId::new(drive).is_ok() && id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_unused(path: &Path) -> bool {
    let lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    File::open(path).is_ok_and(|file| rustix::fs::flock(file, lock).is_ok())
}

impl Drop for DriveCopies {
    fn drop(&mut self) {
        if !self.keep {
            for copy in &self.made {
                let _ = fs::remove_file(&copy.path);
            }
        }
    }
}

impl VirtioDevices {
    /// Copies the drives that the guest may write to. *vCPUs:* standing still; drained and synced.
    pub(in crate::machine) fn copy_drives(
        &self,
        state: &Path,
        id: SnapshotId,
    ) -> Result<DriveCopies, CopyDrivesError> {
        let mut copies = DriveCopies::none(state, id);
        for (slot, drive) in self.slots.iter().zip(self.config.drives()) {
            if let Device::Block(device) = &slot.device
                && !drive.read_only
            {
                device.with_device(|block, _| copies.add(block.id(), block.store()))?;
            }
        }
        Ok(copies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_a_name_of_its_own_and_older_ones_go_when_it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("s.state");
        let [old, new] = [b'1', b'2'].map(|byte| SnapshotId::from_bytes([byte; 16]));
        let copies = |id| DriveCopies::none(&state, id);
        let path = |id| copies(id).path_of("disk0").unwrap();
        assert_ne!(path(old), path(new));
        let others = [
            "s.state.disk0.drive",
            "s.state.disk0.0.drive",
            "t.state.disk0.drive",
        ];
        let others = others.map(|name| dir.path().join(name));
        for path in others.iter().chain(&[path(old), path(new)]) {
            fs::write(path, "").unwrap();
        }
        // One that a machine uses stays.
        let used = File::open(path(old)).unwrap();
        let lock = rustix::fs::FlockOperation::NonBlockingLockShared;
        rustix::fs::flock(&used, lock).unwrap();
        copies(new).keep();
        assert!(path(old).exists());
        drop(used);
        copies(new).keep();
        assert!(!path(old).exists() && path(new).exists());
        assert!(others.iter().all(|path| path.exists()));
    }

    #[test]
    fn copies_of_a_snapshot_that_failed_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copy");
        let mut copies = DriveCopies::none(&dir.path().join("s"), SnapshotId::from_bytes([1; 16]));
        copies.made.push(DriveCopy {
            drive: "d".to_owned(),
            path: path.clone(),
            file: File::create(&path).unwrap(),
        });
        drop(copies);
        assert!(!path.exists());
    }
}
