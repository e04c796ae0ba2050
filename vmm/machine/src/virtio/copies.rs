//! Copies of drives that belong to a snapshot.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use thiserror::Error;
use vmgenie_snapshot::{SnapshotId, with_current};

use super::drive_files::{DriveFileState, copy_suffix};
use crate::backends::drive::lock::{self, Use};
use crate::backends::drive::{Drive, sync_name};
use crate::backends::found::FileStamp;
use crate::config::DeviceId;

/// A drive could not be copied.
#[derive(Debug, Error)]
#[error("could not copy the drive {id:?} to {path:?}")]
pub struct CopyDrivesError {
    id: String,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Copies of drives that belong to one snapshot. They go with this, unless they are kept.
///
/// They are locked (shared) for as long: until the state file that names them is in its place, nothing else tells other creates that they are needed.
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

    /// One copy, of an empty drive, as a create has it before it publishes.
    ///
    /// # Errors
    /// Its file cannot be made.
    #[cfg(any(test, feature = "testing"))]
    pub fn of_nothing(state: &Path, id: SnapshotId) -> io::Result<Self> {
        let mut copies = Self::none(state, id);
        let path = copies.path_of("d").unwrap_or_default();
        let file = File::create_new(&path)?;
        let drive = "d".to_owned();
        copies.made.push(DriveCopy { drive, path, file });
        Ok(copies)
    }

    /// Where the copy of a drive goes: beside the state file, under a name that no other snapshot's copy has. So an older snapshot in the same
    /// place stays whole until this one is published.
    fn path_of(&self, drive: &str) -> Option<PathBuf> {
        let mut name = OsString::from(self.state.file_name()?);
        name.push(copy_suffix(drive, self.id));
        Some(self.state.with_file_name(name))
    }

    pub(super) fn add(&mut self, id: &str, drive: &Drive) -> Result<(), CopyDrivesError> {
        let path = self.path_of(id).unwrap_or_default();
        let copied = drive.copy_to(&path).and_then(|file| match hold(&file) {
            Ok(()) => Ok(file),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(error)
            }
        });
        match copied {
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

    /// Makes the copies durable, and their names.
    ///
    /// # Errors
    /// The files'. They are worth nothing then: a second attempt could succeed, but not bring back what was lost.
    pub fn sync(&self) -> Result<(), CopyDrivesError> {
        for DriveCopy { drive, path, file } in &self.made {
            let synced = file.sync_all().and_then(|()| sync_name(path));
            synced.map_err(|source| CopyDrivesError {
                id: drive.clone(),
                path: path.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// The snapshot is there: its copies stay.
    pub fn keep(mut self) {
        self.keep = true;
    }

    /// Removes the copies of snapshots that have been replaced by the one which is in this place now, unless a machine or another create uses them.
    pub fn remove_replaced(state: &Path, memory: &Path) {
        // Who has published last may be another one than the caller; and nobody may while this looks.
        with_current(state, memory, |current| remove_others(state, current));
    }
}

/// Removes the copies beside `state` that belong to another snapshot than this one.
fn remove_others(state: &Path, current: SnapshotId) {
    let Some(name) = state.file_name() else {
        return;
    };
    let prefix = format!("{}.", name.to_string_lossy());
    let own = format!(".{current}{COPY_SUFFIX}");
    let dir = match state.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_old = name.strip_prefix(&prefix).is_some_and(is_copy) && !name.ends_with(&own);
        if is_old {
            remove_unused(&entry.path());
        }
    }
}

/// Locks a copy that was just made. Others may have found it before that, when nothing told them that it is needed.
fn hold(copy: &File) -> io::Result<()> {
    let removed = || io::Error::other("another snapshot in the same place has removed it");
    match lock::try_lock(copy, Use::Shared) {
        Ok(false) => return Err(removed()),
        Err(error) if !lock::is_unsupported(&error) => return Err(error),
        Ok(true) | Err(_) => {}
    }
    match copy.metadata()?.nlink() {
        0 => Err(removed()),
        _ => Ok(()),
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

/// Removes a copy unless somebody has it locked. Nobody can lock it between the look and the removal.
fn remove_unused(path: &Path) {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) else {
        return;
    };
    if lock::try_lock(&file.into(), Use::Exclusive).is_ok_and(|locked| locked) {
        let _ = fs::remove_file(path);
    }
}

impl Drop for DriveCopies {
    fn drop(&mut self) {
        for copy in &self.made {
            if !self.keep {
                let _ = fs::remove_file(&copy.path);
            }
            // Closing is not enough: a process that is being started has a copy of the descriptor until its exec.
            lock::unlock(&copy.file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DriveConfig;
    use vmgenie_snapshot::StateWriter;

    /// A directory in which the snapshot `current` is, as far as its state file tells.
    struct Place(tempfile::TempDir);

    impl Place {
        fn new(current: SnapshotId) -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            place.publish(current);
            place
        }

        fn state(&self) -> PathBuf {
            self.0.path().join("s.state")
        }

        fn publish(&self, current: SnapshotId) {
            let state = StateWriter::new(current, 0).finish().unwrap();
            fs::write(self.state(), state).unwrap();
        }

        fn remove_replaced(&self) {
            DriveCopies::remove_replaced(&self.state(), &self.0.path().join("s.mem"));
        }

        fn path(&self, id: SnapshotId) -> PathBuf {
            let copies = DriveCopies::none(&self.state(), id);
            copies.path_of("disk0").unwrap()
        }

        /// A create that has made its copy.
        fn copies(&self, id: SnapshotId) -> DriveCopies {
            let image = self.0.path().join("image");
            fs::write(&image, [7; 512]).unwrap();
            let config = DriveConfig {
                id: DeviceId::new("disk0").unwrap(),
                path: image,
                overlay: None,
                read_only: false,
                is_root: false,
                cache: Default::default(),
                io_engine: Default::default(),
                partuuid: None,
            };
            let mut copies = DriveCopies::none(&self.state(), id);
            let drive = Drive::open(&config).unwrap();
            copies.add("disk0", &drive).unwrap();
            copies
        }
    }

    fn writable(path: &Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    const IDS: [SnapshotId; 2] = [
        SnapshotId::from_bytes([b'1'; 16]),
        SnapshotId::from_bytes([b'2'; 16]),
    ];

    #[test]
    fn a_copy_has_a_name_of_its_own_and_older_ones_go_when_another_snapshot_is_there() {
        let [old, new] = IDS;
        let place = Place::new(new);
        let (old, new) = (place.path(old), place.path(new));
        assert_ne!(old, new);
        let others = [
            "s.state.disk0.drive",
            "s.state.disk0.0.drive",
            "t.state.disk0.drive",
        ];
        let others = others.map(|name| place.0.path().join(name));
        for path in others.iter().chain([&old, &new]) {
            fs::write(path, "").unwrap();
        }
        // One that a machine uses stays.
        let used = File::open(&old).unwrap();
        assert!(lock::try_lock(&used, Use::Shared).unwrap());
        place.remove_replaced();
        assert!(old.exists());
        drop(used);
        place.remove_replaced();
        assert!(!old.exists() && new.exists());
        assert!(others.iter().all(|path| path.exists()));
    }

    #[test]
    fn a_create_does_not_remove_the_copies_of_one_that_published_after_it() {
        let [first, second] = IDS;
        let place = Place::new(first);
        place.copies(first).keep();
        place.copies(second).keep();
        place.publish(second);
        // The first one comes to it only now.
        place.remove_replaced();
        assert!(place.path(second).exists() && !place.path(first).exists());
        // Without a state file that tells, none is known to be old.
        fs::write(place.state(), "").unwrap();
        place.remove_replaced();
        assert!(place.path(second).exists());
    }

    #[test]
    fn a_create_does_not_remove_the_copies_of_one_that_has_not_published_yet() {
        let [first, second] = IDS;
        let place = Place::new(first);
        let copies = place.copies(second);
        place.remove_replaced();
        assert!(place.path(second).exists());
        // Once kept they are locked no more, and a machine can have them.
        copies.keep();
        let copy = writable(&place.path(second));
        assert!(lock::try_lock(&copy, Use::Exclusive).unwrap());
    }

    #[test]
    fn a_create_whose_copy_was_removed_before_it_could_lock_it_fails() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copy");
        let copy = File::create_new(&path).map(|_| writable(&path)).unwrap();
        let other = writable(&path);
        assert!(lock::try_lock(&other, Use::Exclusive).unwrap());
        hold(&copy).unwrap_err();
        drop(other);
        hold(&copy).unwrap();
        fs::remove_file(&path).unwrap();
        hold(&copy).unwrap_err();
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
