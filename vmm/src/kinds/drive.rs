//! Drives.

use std::path::{Path, PathBuf};

use clap::Args;
use vmgenie_api::wire::{self, CacheType, ConfigFile, Drive, FullConfig, IoEngine, PartialDrive};
use vmgenie_machine::config::{
    CacheMode, ConfigError, DeviceId, DriveConfig, IoEngine as Engine, PartUuid,
};
use vmgenie_machine::virtio::kinds::DevicesConfig;

use super::kind::{BodyError, Kind, Put, PutCounters};
use crate::checked::{Checked, Convert, WireError, lossy, not_empty, same_id, unlimited};
use crate::words::{Words, unknown};

/// The kind.
pub(super) struct DriveKind;

static COUNTERS: PutCounters = PutCounters::new("drive_count", "drive_fails");

impl Kind for DriveKind {
    fn path(&self) -> &'static str {
        "/drives/{drive_id}"
    }

    fn counters(&self) -> &'static PutCounters {
        &COUNTERS
    }

    fn put(&self, id: &str, body: &[u8]) -> Result<Put, BodyError> {
        Ok(put_drive(id, serde_json::from_slice(body)?)?)
    }

    fn show(&self, devices: &DevicesConfig, shown: &mut FullConfig) {
        shown.drives = devices.drives().iter().map(Convert::convert).collect();
    }

    fn read(&self, file: &mut ConfigFile, devices: &mut DevicesConfig) -> Result<(), WireError> {
        for drive in std::mem::take(&mut file.drives) {
            devices.put_drive(drive.checked()?)?;
        }
        Ok(())
    }
}

/// Adds or replaces a drive; before the start only.
#[utoipa::path(put, tag = "devices", path = "/drives/{drive_id}", params(("drive_id" = String, Path)), request_body = wire::Drive, responses(
    (status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) fn put_drive(id: &str, body: Drive) -> Result<Put, WireError> {
    same_id(id, &body.drive_id)?;
    Ok(Put::of(body.checked()?))
}

impl Checked<DriveConfig> for Drive {
    fn checked(self) -> Result<DriveConfig, WireError> {
        let wire = self;
        let id = DeviceId::new(&wire.drive_id)?;
        if wire.socket.is_some() {
            return Err(WireError::VhostUser);
        }
        unlimited("rate_limiter", wire.rate_limiter.as_ref())?;
        let path = wire
            .path_on_host
            .ok_or(WireError::Missing("path_on_host"))?;
        let partuuid = wire.partuuid.filter(|_| wire.is_root_device);
        Ok(DriveConfig {
            id,
            path: not_empty("path_on_host", path)?,
            overlay: (wire.overlay_path)
                .map(|path| not_empty("overlay_path", path))
                .transpose()?,
            read_only: wire.is_read_only.unwrap_or(false),
            is_root: wire.is_root_device,
            cache: match wire.cache_type {
                CacheType::Unsafe => CacheMode::Unsafe,
                CacheType::Writeback => CacheMode::Writeback,
            },
            io_engine: match wire.io_engine.unwrap_or_default() {
                IoEngine::Sync => Engine::Sync,
                IoEngine::Async => Engine::Async,
            },
            partuuid: partuuid.as_deref().map(PartUuid::new).transpose()?,
        })
    }
}

impl Convert<Drive> for &DriveConfig {
    fn convert(self) -> Drive {
        let drive = self;
        Drive {
            drive_id: drive.id.to_string(),
            partuuid: drive.partuuid.as_ref().map(|p| p.as_str().to_owned()),
            is_root_device: drive.is_root,
            cache_type: match drive.cache {
                CacheMode::Unsafe => CacheType::Unsafe,
                CacheMode::Writeback => CacheType::Writeback,
            },
            is_read_only: Some(drive.read_only),
            path_on_host: Some(lossy(&drive.path)),
            overlay_path: drive.overlay.as_deref().map(lossy),
            rate_limiter: None,
            io_engine: Some(match drive.io_engine {
                Engine::Sync => IoEngine::Sync,
                Engine::Async => IoEngine::Async,
            }),
            socket: None,
        }
    }
}

/// The drive and its new file.
impl Checked<(DeviceId, Option<PathBuf>)> for PartialDrive {
    fn checked(self) -> Result<(DeviceId, Option<PathBuf>), WireError> {
        unlimited("rate_limiter", self.rate_limiter.as_ref())?;
        let path = self
            .path_on_host
            .map(|path| not_empty("path_on_host", path));
        Ok((DeviceId::new(&self.drive_id)?, path.transpose()?))
    }
}

/// Drives for `vmgenie run`: `disk0`, `disk1`, ...
#[derive(Debug, Args)]
pub struct DriveFlags {
    /// The drive with the root file system (/dev/vda), a raw image or block device:
    /// PATH[,ro][,writeback][,async][,overlay=PATH]. With an overlay, which a clone has left, PATH is only read.
    /// A comma of the path is written twice.
    #[arg(long, value_name = "DRIVE", value_parser = parse_drive)]
    pub disk: Option<DriveArg>,
    /// Another drive, written the same way, a comma of the path twice; may be given several times.
    #[arg(long, value_name = "DRIVE", value_parser = parse_drive)]
    pub drive: Vec<DriveArg>,
}

impl DriveFlags {
    pub(super) fn add_to(&self, devices: &mut DevicesConfig) -> Result<(), ConfigError> {
        let root = self.disk.iter().map(|drive| (drive, true));
        let drives = root.chain(self.drive.iter().map(|drive| (drive, false)));
        for (number, (drive, is_root)) in drives.enumerate() {
            devices.put_drive(DriveConfig {
                overlay: drive.overlay.clone(),
                id: DeviceId::new(&format!("disk{number}"))?,
                path: drive.path.clone(),
                read_only: drive.read_only,
                is_root,
                cache: drive.cache,
                io_engine: drive.io_engine,
                partuuid: None,
            })?;
        }
        Ok(())
    }
}

/// A drive without its name and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveArg {
    path: PathBuf,
    overlay: Option<PathBuf>,
    read_only: bool,
    cache: CacheMode,
    io_engine: Engine,
}

/// `PATH[,ro][,writeback][,async][,overlay=PATH]`.
fn parse_drive(text: &str) -> Result<DriveArg, String> {
    let words = Words::of(text);
    let (path, options) = words.parts();
    if path.is_empty() {
        return Err("the path is missing".to_owned());
    }
    let mut drive = DriveArg {
        path: path.into(),
        overlay: None,
        read_only: false,
        cache: CacheMode::Unsafe,
        io_engine: Engine::Sync,
    };
    for option in options {
        match option {
            ("ro", None) => drive.read_only = true,
            ("writeback", None) => drive.cache = CacheMode::Writeback,
            ("async", None) => drive.io_engine = Engine::Async,
            ("overlay", Some(path)) if !path.is_empty() => drive.overlay = Some(path.into()),
            (name, _) => return unknown(name, "ro, writeback, async, overlay=PATH"),
        }
    }
    Ok(drive)
}

impl DriveArg {
    /// The image.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_drive_is_read_with_its_options() {
        let drive = parse_drive("/a/b.ext4,ro,async").unwrap();
        assert_eq!(
            (drive.path.as_path(), drive.read_only),
            (Path::new("/a/b.ext4"), true)
        );
        assert_eq!(
            (drive.io_engine, drive.cache),
            (Engine::Async, CacheMode::Unsafe)
        );
        assert!(parse_drive("").is_err() && parse_drive("/a,rw").is_err());
    }
}
