//! Drives.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmgenie_devices::virtio::VirtioMmio;
use vmgenie_devices::virtio::block::{self, Block, BlockMetrics, BlockState};
use vmgenie_snapshot::NamedFile;

use super::kind::{Found, Kind, Model, Offer, Refusal};
use super::{DeviceConfig, DevicesConfig, SavedVirtio};
use crate::backends::drive::{Drive, DriveError};
use crate::config::{
    CacheMode, ConfigError, DeviceId, DriveConfig, DriveOverride, DriveSource, IoEngine, PartUuid,
};
use crate::metrics::ByName;
use crate::state::device_part;
use crate::virtio::VirtioError;
use crate::virtio::copies::DriveCopies;
use crate::virtio::drive_files::DriveFilePart;

/// What they count.
pub(in crate::virtio) static METRICS: ByName<BlockMetrics> = ByName::new();

device_part!(
    BlockPart,
    BlockState,
    "virtio-block",
    "A drive; one part for each, in the order of their slots."
);

/// The kind.
pub(super) enum DriveKind {}

impl Kind for DriveKind {
    type Config = DriveConfig;
    type State = BlockPart;
    type Model = Block<Drive>;
    const WHAT: &'static str = "a drive";

    fn boot(config: &DriveConfig) -> Result<Self::Model, VirtioError> {
        let drive = Drive::open(config).map_err(failed(config))?;
        let device = Block::new(config.id.as_str(), drive);
        Ok(device.with_metrics(METRICS.of(config.id.as_str())))
    }

    fn restore(
        config: &DriveConfig,
        state: &BlockPart,
        found: &mut Found,
    ) -> Result<Self::Model, VirtioError> {
        let found = found.next().ok_or(VirtioError::Missing(Self::WHAT))?;
        let drive = Drive::open_found(config, found).map_err(failed(config))?;
        let device = Block::from_state(&state.0, drive).map_err(failed(config))?;
        Ok(device.with_metrics(METRICS.of(config.id.as_str())))
    }

    fn check(config: &DriveConfig, BlockPart(state): &BlockPart) -> Result<Offer, Refusal> {
        state.check(config.read_only)?;
        Ok((&block::QUEUE_SIZES, state.features))
    }
}

impl Model for Block<Drive> {
    fn save_to(&self, saved: &mut SavedVirtio, copies: &DriveCopies) {
        saved.drives.push(BlockPart(self.save()));
        let file = copies.state_of(self.id(), self.store());
        saved.files.push(DriveFilePart(file));
    }

    fn as_drive(device: &VirtioMmio<Self>) -> Option<&VirtioMmio<Block<Drive>>> {
        Some(device)
    }
}

fn failed<E: Into<DriveError>>(config: &DriveConfig) -> impl FnOnce(E) -> VirtioError {
    let what = format!("set up the drive {:?}", config.id.as_str());
    |error| VirtioError::Device {
        what,
        source: error.into().into(),
    }
}

impl From<DriveConfig> for DeviceConfig {
    fn from(drive: DriveConfig) -> Self {
        Self::Drive(drive)
    }
}

impl DevicesConfig {
    /// The drives, the root drive first.
    pub fn drives(&self) -> &[DriveConfig] {
        &self.drives
    }

    /// The drive that the guest's root file system is on.
    pub fn root_drive(&self) -> Option<&DriveConfig> {
        self.drives.first().filter(|drive| drive.is_root)
    }

    /// Adds a drive, or replaces the one of the same name where it is. A root drive goes to the first place.
    ///
    /// # Errors
    /// There is another root drive already, or nothing to be written to an overlay.
    pub fn put_drive(&mut self, drive: DriveConfig) -> Result<(), ConfigError> {
        if drive.read_only && drive.overlay.is_some() {
            return Err(ConfigError::ReadOnlyOverlay(drive.id));
        }
        let other_root = self.root_drive().is_some_and(|root| root.id != drive.id);
        if drive.is_root && other_root {
            return Err(ConfigError::SecondRoot);
        }
        let place = self.drives.iter().position(|other| other.id == drive.id);
        match place {
            Some(place) if !drive.is_root => self.drives[place] = drive,
            _ => {
                if let Some(place) = place {
                    self.drives.remove(place);
                }
                let place = if drive.is_root { 0 } else { self.drives.len() };
                self.drives.insert(place, drive);
            }
        }
        Ok(())
    }

    /// Another file behind a drive, without an overlay.
    ///
    /// # Errors
    /// There is no drive of that name.
    pub fn set_drive_path(&mut self, id: &DeviceId, path: PathBuf) -> Result<(), ConfigError> {
        let drive = self.drive_mut(id)?;
        drive.path = path;
        drive.overlay = None;
        Ok(())
    }

    /// The copy of a drive that a snapshot has: of its overlay, or else of its file. Nothing if there is no such drive.
    pub(crate) fn set_drive_copy(&mut self, id: &DeviceId, copy: PathBuf) {
        if let Ok(drive) = self.drive_mut(id) {
            match &mut drive.overlay {
                Some(overlay) => *overlay = copy,
                None => drive.path = copy,
            }
        }
    }

    pub(super) fn override_drives(
        &mut self,
        overrides: &[DriveOverride],
    ) -> Result<(), ConfigError> {
        for (index, DriveOverride { id, path, source }) in overrides.iter().enumerate() {
            // Else it would depend on who looks what becomes of the drive.
            if overrides[..index].iter().any(|other| other.id == *id) {
                return Err(ConfigError::OverriddenTwice(id.clone()));
            }
            let drive = self.drive_mut(id)?;
            match source {
                DriveSource::Copy if drive.overlay.is_some() => {
                    return Err(ConfigError::CopyOfOverlay(id.clone()));
                }
                DriveSource::Existing | DriveSource::Copy => {
                    self.set_drive_path(id, path.clone())?;
                }
                DriveSource::Overlay if drive.read_only => {
                    return Err(ConfigError::ReadOnlyOverlay(id.clone()));
                }
                DriveSource::Overlay => drive.overlay = Some(path.clone()),
            }
        }
        Ok(())
    }

    fn drive_mut(&mut self, id: &DeviceId) -> Result<&mut DriveConfig, ConfigError> {
        let found = self.drives.iter_mut().find(|drive| drive.id == *id);
        found.ok_or_else(|| ConfigError::NoSuchDrive(id.clone()))
    }
}

/// One in the list of a state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDrive {
    id: DeviceId,
    path: PathBuf,
    overlay: Option<PathBuf>,
    read_only: bool,
    is_root: bool,
    cache: SavedCache,
    io_engine: SavedEngine,
    partuuid: Option<PartUuid>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum SavedCache {
    Unsafe,
    Writeback,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum SavedEngine {
    Sync,
    Async,
}

impl From<&DriveConfig> for SavedDrive {
    fn from(drive: &DriveConfig) -> Self {
        // Whole, so that whoever adds a field has to say here what becomes of it.
        let DriveConfig {
            id,
            path,
            overlay,
            read_only,
            is_root,
            cache,
            io_engine,
            partuuid,
        } = drive.clone();
        Self {
            id,
            path,
            overlay,
            read_only,
            is_root,
            cache: match cache {
                CacheMode::Unsafe => SavedCache::Unsafe,
                CacheMode::Writeback => SavedCache::Writeback,
            },
            io_engine: match io_engine {
                IoEngine::Sync => SavedEngine::Sync,
                IoEngine::Async => SavedEngine::Async,
            },
            partuuid,
        }
    }
}

impl From<SavedDrive> for DriveConfig {
    fn from(saved: SavedDrive) -> Self {
        Self {
            id: saved.id,
            path: saved.path,
            overlay: saved.overlay,
            read_only: saved.read_only,
            is_root: saved.is_root,
            cache: match saved.cache {
                SavedCache::Unsafe => CacheMode::Unsafe,
                SavedCache::Writeback => CacheMode::Writeback,
            },
            io_engine: match saved.io_engine {
                SavedEngine::Sync => IoEngine::Sync,
                SavedEngine::Async => IoEngine::Async,
            },
            partuuid: saved.partuuid,
        }
    }
}

/// A drive whose file cannot be used.
#[derive(Debug, Error)]
#[error("could not open the drive {path}")]
struct DriveFileError {
    path: String,
    #[source]
    source: std::io::Error,
}

/// Whether the drive's files could be opened. They are not: that does something to devices, and to overlays on overlayfs.
pub(super) fn check_host(drive: &DriveConfig) -> Result<(), Refusal> {
    let checked = match &drive.overlay {
        None => check_file(&drive.path, !drive.read_only),
        Some(overlay) => check_file(&drive.path, false).and_then(|()| check_file(overlay, true)),
    };
    checked.map_err(|source| {
        let path = drive.path.display().to_string();
        DriveFileError { path, source }.into()
    })
}

fn check_file(path: &Path, write: bool) -> std::io::Result<()> {
    if !NamedFile::at(path)?.is_file_or_block_device() {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "neither a regular file nor a block device",
        ));
    }
    let wanted = match write {
        true => Access::READ_OK | Access::WRITE_OK,
        false => Access::READ_OK,
    };
    Ok(accessat(CWD, path, wanted, AtFlags::EACCESS)?)
}
