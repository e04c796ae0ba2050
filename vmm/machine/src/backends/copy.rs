//! Copies of drives' images, and overlays on them, made when a clone is restored; and copies for a snapshot.
//!
//! Where the file system can, original and copy share their blocks until one is written (FICLONE); elsewhere the data is copied and holes stay
//! holes. That is a plain image again, which needs no layer of ours on the way of each request. An overlay costs what is written.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vmgenie_snapshot::{MadeFile, NamedFile};

use super::drive::copy_file::{copy_file, new_file, no_file};
use super::drive::{self, OverlayError, overlay};
use super::found::DriveFiles;
use crate::config::{DeviceOverrides, DriveConfig, DriveOverride, DriveSource};

/// A clone's own file could not be made.
#[derive(Debug, Error)]
pub enum CopyError {
    /// A copy.
    #[error("could not copy the drive {0:?} to {1:?}")]
    Copy(PathBuf, PathBuf, #[source] io::Error),
    /// There is something.
    #[error(
        "could not make {0:?} for the drive {1:?}, because it is there: a load replaces nothing. Name another file, or remove this one; of several \
         clones each needs a file of its own"
    )]
    Exists(PathBuf, PathBuf, #[source] io::Error),
    /// An overlay.
    #[error("could not make the overlay {1:?} on the drive {0:?}")]
    Overlay(PathBuf, PathBuf, #[source] OverlayError),
}

impl CopyError {
    fn of_copy(from: &Path, to: &Path, error: io::Error) -> Self {
        let (from, to) = (from.to_owned(), to.to_owned());
        match error.kind() {
            io::ErrorKind::AlreadyExists => Self::Exists(to, from, error),
            _ => Self::Copy(from, to, error),
        }
    }

    fn of_overlay(on: &Path, to: &Path, error: OverlayError) -> Self {
        match error {
            OverlayError::Io(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Self::of_copy(on, to, error)
            }
            error => Self::Overlay(on.to_owned(), to.to_owned(), error),
        }
    }
}

/// Copies of images, and overlays. They go with this, unless they are kept.
#[derive(Debug, Default)]
pub struct Copies(Vec<MadeFile>);

impl Copies {
    /// What they are.
    pub(crate) fn files(&self) -> Vec<MadeFile> {
        self.0.clone()
    }

    /// The machine that they are for is there.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.0.iter().for_each(MadeFile::remove);
    }
}

/// Makes the files that `overrides` ask for, of those that were found, one for each drive. If one fails, none stays. Those that the machine will have
/// otherwise are no longer among the found.
pub(crate) fn make_drives(
    drives: &[DriveConfig],
    found: &mut [DriveFiles],
    overrides: &DeviceOverrides,
) -> Result<Copies, CopyError> {
    let mut made = Copies::default();
    for DriveOverride { id, path, source } in &overrides.drives {
        let mut both = drives.iter().zip(&mut *found);
        let Some((drive, found)) = both.find(|(drive, _)| drive.id == *id) else {
            continue; // refused elsewhere
        };
        let (from, file) = match (source, &drive.overlay) {
            (DriveSource::Existing, _) => continue,
            (DriveSource::Overlay, None) => {
                let overlay = make_overlay(&drive.path, &mut found.file, path)
                    .map_err(|error| CopyError::of_overlay(&drive.path, path, error))?;
                made.0.push(overlay);
                continue;
            }
            (DriveSource::Overlay, Some(overlay)) => (overlay, found.overlay.take()),
            (DriveSource::Copy, _) => (&drive.path, std::mem::take(found).file),
        };
        let layered = drive.overlay.is_some();
        let copied = copy(from, file, path, layered);
        made.0
            .push(copied.map_err(|error| CopyError::of_copy(from, path, error))?);
    }
    Ok(made)
}

/// An empty overlay, on what was found at `base`, in a place where nothing is.
fn make_overlay(
    base: &Path,
    found: &mut Option<NamedFile>,
    to: &Path,
) -> Result<MadeFile, OverlayError> {
    let found = match found {
        Some(found) => found,
        none => none.insert(NamedFile::at(base)?),
    };
    let len = drive::base_len(found)?;
    let file = new_file(to)?;
    let made = MadeFile::of(to, &file)?;
    overlay::format(&file, len).inspect_err(|_| made.remove())?;
    Ok(made)
}

/// Copies a regular file, what was found at `from`, to a place where nothing is.
fn copy(from: &Path, found: Option<NamedFile>, to: &Path, layered: bool) -> io::Result<MadeFile> {
    let source = found.map_or_else(|| NamedFile::at(from), Ok)?;
    // The path may be a state file's: what is no file is not even opened.
    match source.metadata().is_file() {
        true => {
            copy_file(source.open(false)?, to, layered).and_then(|file| MadeFile::of(to, &file))
        }
        false => Err(no_file()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use rustix::fs::inotify;

    use std::fs::{self, File};
    use std::io::{Seek, SeekFrom};

    use rustix::io::Errno;

    use super::*;
    use crate::backends::drive::copy_file::copy_data;

    #[test]
    fn a_copy_has_the_same_bytes_and_the_same_holes_and_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let mut file = File::create(&from).unwrap();
        file.write_all(b"begin").unwrap();
        file.seek(SeekFrom::Start(8 << 20)).unwrap();
        file.write_all(b"middle").unwrap();
        file.set_len(32 << 20).unwrap();
        copy(&from, None, &to, false).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        let sized = |len| {
            let file = dir.path().join(len);
            (File::open(&from).unwrap(), File::create(file).unwrap())
        };
        let (mut source, mut target) = sized("told");
        let ended = vmgenie_snapshot::end_request::told_to_end(|| {
            copy_data(&mut source, &mut target, 32 << 20)
        });
        assert!(ended.unwrap_err().to_string().contains("told to end"));
        let refused = copy(&from, None, &to, false).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert!(to.exists(), "what was there stays");
        // Nobody writes to it: an open that waits for that would hang. And no device is to notice that it was named.
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        let opens = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&opens, &pipe, inotify::WatchFlags::OPEN).unwrap();
        assert!(copy(&pipe, None, &dir.path().join("x"), false).is_err());
        assert!(drive::base_len(&NamedFile::at(&pipe).unwrap()).is_err());
        assert!(vmgenie_snapshot::open_regular(&pipe).unwrap().is_none());
        let opened = rustix::io::read(&opens, &mut [0; 64]);
        assert_eq!(opened, Err(Errno::AGAIN), "it was opened");
        assert!(copy(dir.path(), None, &dir.path().join("x"), false).is_err());
        assert!(!dir.path().join("x").exists());
    }

    #[test]
    fn an_overlay_is_made_on_a_file_and_a_copy_of_it_on_the_same() {
        use crate::config::DeviceId;
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("image"), [7; 10_000]).unwrap();
        let with = |overlay: Option<&str>, source, to| {
            let drive = DriveConfig {
                id: DeviceId::new("d").unwrap(),
                path: path("image"),
                overlay: overlay.map(path),
                read_only: false,
                is_root: false,
                cache: Default::default(),
                io_engine: Default::default(),
                partuuid: None,
            };
            let overrides = DeviceOverrides {
                drives: vec![DriveOverride {
                    id: drive.id.clone(),
                    path: path(to),
                    source,
                }],
                ..DeviceOverrides::default()
            };
            make_drives(&[drive], &mut [DriveFiles::default()], &overrides).map(Copies::keep)
        };
        with(None, DriveSource::Overlay, "first").unwrap();
        with(Some("first"), DriveSource::Overlay, "second").unwrap();
        assert_eq!(
            fs::read(path("first")).unwrap(),
            fs::read(path("second")).unwrap()
        );
        for there in ["image", "second"] {
            let refused = with(None, DriveSource::Overlay, there).unwrap_err();
            let told = refused.to_string();
            assert!(
                told.contains("it is there") && told.contains(there),
                "{told}"
            );
        }
        assert_eq!(fs::read(path("image")).unwrap(), [7; 10_000]);
        let refused = with(None, DriveSource::Overlay, "not/there").unwrap_err();
        assert!(refused.to_string().contains("overlay"), "{refused}");
    }

    #[test]
    fn copies_go_unless_the_machine_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copy");
        for kept in [false, true] {
            let file = File::create(&path).unwrap();
            let copies = Copies(vec![MadeFile::of(&path, &file).unwrap()]);
            if kept {
                copies.keep();
            } else {
                drop(copies);
            }
            assert_eq!(path.exists(), kept);
        }
    }
}
