//! Other files behind the drives of a machine.

use std::os::fd::AsRawFd;
use std::path::PathBuf;

use thiserror::Error;
use vmgenie_devices::virtio::block::BlockBackend;

use super::VirtioDevices;
use super::device::Device;
use crate::config::DeviceId;
use crate::machine::backends::drive::DriveError;

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
        config.path = path.unwrap_or(config.path);
        device.with_device(|block, active| {
            let drive = block.store().reopen(&config)?;
            if let Some(fd) = drive.fd() {
                self.events.watch_backend(fd.as_raw_fd(), slot)?;
            }
            block
                .replace(drive, active)
                .map_err(|error| UpdateDriveError::Drive(error.into()))
        })?;
        let changed = self.config.set_drive_path(id, config.path);
        debug_assert!(changed.is_ok(), "it was there a moment ago");
        self.events.kick(slot);
        Ok(())
    }
}
