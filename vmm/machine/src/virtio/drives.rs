//! Other files behind the drives of a machine, and copies of them for a snapshot: what the devices do for it.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vmgenie_devices::virtio::block::BlockBackend;
use vmgenie_snapshot::SnapshotId;

use super::VirtioDevices;
use super::copies::{CopyDrivesError, DriveCopies};
use super::device::{DeviceBusy, PATIENCE};
use super::kinds::DRIVE_METRICS;
use crate::backends::drive::DriveError;
use crate::config::DeviceId;

/// Why a drive could not be updated.
#[derive(Debug, Error)]
pub enum UpdateDriveError {
    /// There is no such drive.
    #[error("there is no drive {0} in this microVM")]
    NoSuchDrive(DeviceId),
    /// The file.
    #[error(transparent)]
    Drive(#[from] DriveError),
    /// A vCPU is in it.
    #[error(transparent)]
    Busy(#[from] DeviceBusy),
    /// The event loop.
    #[error("could not watch the drive's file")]
    Watch(#[from] std::io::Error),
}

impl VirtioDevices {
    /// Puts another file behind a drive, or opens the present one anew. The guest learns of another size. What was in flight has ended
    /// on the old file; after an error nothing has changed.
    pub(crate) fn update_drive(
        &mut self,
        id: &DeviceId,
        path: Option<PathBuf>,
    ) -> Result<(), UpdateDriveError> {
        let mut drives = self.config.drives().iter();
        // Drives have the first slots, in their order.
        let found = drives
            .position(|drive| drive.id == *id)
            .and_then(|slot| Some((slot, self.slots.get(slot)?.device.as_drive()?)));
        let Some((slot, device)) = found else {
            return Err(UpdateDriveError::NoSuchDrive(id.clone()));
        };
        let mut config = self.config.drives()[slot].clone();
        if let Some(path) = path {
            config.path = path;
            config.overlay = None;
        }
        let metrics = DRIVE_METRICS.of(id.as_str());
        let updated = device.with_device_within(PATIENCE, |block, active| {
            let drive = block.store().reopen(&config)?;
            if let Some(fd) = drive.fd() {
                self.events.watch_backend(fd.as_raw_fd(), slot)?;
            }
            block
                .replace(drive, active)
                .map_err(|error| UpdateDriveError::Drive(error.into()))
        });
        match updated.unwrap_or_else(|| Err(DeviceBusy(id.clone()).into())) {
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

impl VirtioDevices {
    /// Copies the drives that the guest may write to. *vCPUs:* standing still; drained.
    pub(crate) fn copy_drives(
        &self,
        state: &Path,
        id: SnapshotId,
    ) -> Result<DriveCopies, CopyDrivesError> {
        let mut copies = DriveCopies::none(state, id);
        for (slot, drive) in self.slots.iter().zip(self.config.drives()) {
            if let Some(device) = slot.device.as_drive()
                && !drive.read_only
            {
                device.with_device(|block, _| copies.add(block.id(), block.store()))?;
            }
        }
        Ok(copies)
    }
}
