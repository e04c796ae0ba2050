//! Whether a snapshot is of this user's own making, or may be somebody else's.
//!
//! What decides is who could have put it there: owner and mode of the state file, of the directory that it was opened in, and of the memory file. All are
//! asked of what is open, so that nobody can change it between the look and the use. Nor may anybody exchange the directories above, by whose names
//! copies of drives are found later.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{StateError, StateReader};
use crate::own_files::{self, TrustError};

/// The bits of a mode that let others than the owner write.
const OTHERS_WRITE: u32 = 0o022;

/// Why a snapshot may be somebody else's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// Another user's file or directory.
    #[error("the {what} {path:?} belongs to the user {uid}")]
    Owner {
        /// What it is.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Others may write to it.
    #[error("others may write to the {what} {path:?} (its mode is {mode:o})")]
    Mode {
        /// What it is.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The state file is elsewhere.
    #[error("the state file {0:?} is a symbolic link")]
    Link(PathBuf),
    /// What is above it cannot be looked at.
    #[error("could not look at what is above the state file {path:?}: {why}")]
    Way {
        /// The state file.
        path: PathBuf,
        /// What went wrong.
        why: String,
    },
}

/// Opens a state file; with the reason, if it may be somebody else's.
pub(super) fn open_state(path: &Path) -> Result<(StateReader, Option<Distrust>), StateError> {
    let name = path.file_name().ok_or(StateError::NotAFile)?;
    let parent = path.parent().filter(|dir| *dir != Path::new(""));
    let parent = parent.unwrap_or(Path::new("."));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = File::from(rustix::fs::open(parent, flags, Mode::empty()).map_err(io_error)?);
    let of_directory = judge("directory", parent, &directory.metadata()?);
    let of_directory = of_directory.or_else(|| judge_way(path));
    match open_in(&directory, name) {
        Ok(file) => {
            let metadata = file.metadata()?;
            let distrust = of_directory.or_else(|| judge("state file", path, &metadata));
            Ok((StateReader::of_file(file, &metadata)?, distrust))
        }
        Err(Errno::LOOP) => {
            let link = Distrust::Link(path.to_owned());
            Ok((StateReader::open(path)?, of_directory.or(Some(link))))
        }
        Err(error) => Err(io_error(error).into()),
    }
}

/// Whether somebody else can exchange a directory above the file.
fn judge_way(path: &Path) -> Option<Distrust> {
    let what = "directory";
    match own_files::check_way(path) {
        Ok(()) => None,
        Err(TrustError::Above { path, uid }) => Some(Distrust::Owner { what, path, uid }),
        Err(TrustError::Writable { path, mode }) => Some(Distrust::Mode { what, path, mode }),
        Err(error) => Some(Distrust::Way {
            path: path.to_owned(),
            why: error.to_string(),
        }),
    }
}

/// Whether the open memory file may be somebody else's.
pub(super) fn judge_memory(path: &Path, memory: &File) -> io::Result<Option<Distrust>> {
    Ok(judge("memory file", path, &memory.metadata()?))
}

fn open_in(directory: &File, name: &OsStr) -> Result<File, Errno> {
    let flags = super::REGULAR | OFlags::NOFOLLOW;
    rustix::fs::openat(directory, name, flags, Mode::empty()).map(File::from)
}

fn io_error(error: Errno) -> io::Error {
    error.into()
}

fn judge(what: &'static str, path: &Path, metadata: &Metadata) -> Option<Distrust> {
    static OWN: OnceLock<u32> = OnceLock::new();
    let own = *OWN.get_or_init(|| rustix::process::geteuid().as_raw());
    let path = || path.to_owned();
    let (uid, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if uid != own && uid != 0 {
        let path = path();
        return Some(Distrust::Owner { what, path, uid });
    }
    (mode & OTHERS_WRITE != 0).then(|| Distrust::Mode {
        what,
        path: path(),
        mode,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use tempfile::TempDir;

    use super::*;
    use crate::not_looked_at::not_looked_at;
    use crate::{SnapshotId, StateWriter};

    const NOBODY: u32 = 65534;

    struct Place(TempDir);

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let id = SnapshotId::generate().unwrap();
            let state = StateWriter::new(id, 4096).finish().unwrap();
            fs::write(dir.path().join("state"), state).unwrap();
            let place = Self(dir);
            place.mode("state", 0o600);
            place.mode(".", 0o755);
            place
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn mode(&self, name: &str, mode: u32) {
            fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
        }

        /// Why it is not trusted, in words.
        fn told(&self) -> String {
            let (_, distrust) = open_state(&self.path("state")).unwrap();
            distrust.map_or(String::new(), |why| why.to_string())
        }
    }

    #[test]
    fn a_snapshot_of_ones_own_is_trusted_if_nobody_else_can_write_there() {
        let place = Place::new();
        assert_eq!(place.told(), "");
        for mode in [0o660, 0o606, 0o666] {
            place.mode("state", mode);
            let expected = format!(
                "others may write to the state file {:?}",
                place.path("state")
            );
            assert!(place.told().starts_with(&expected), "{}", place.told());
        }
        place.mode("state", 0o644);
        assert_eq!(place.told(), "");
        // A sticky directory as well: what is not there yet, anybody can put there.
        for mode in [0o775, 0o757, 0o1777] {
            place.mode(".", mode);
            let told = place.told();
            assert!(
                told.starts_with("others may write to the directory"),
                "{told}"
            );
            assert!(told.ends_with(&format!("(its mode is {mode:o})")), "{told}");
        }
    }

    #[test]
    fn what_belongs_to_another_user_is_not_trusted() {
        if !rustix::process::geteuid().is_root() {
            not_looked_at("only root may give files away");
            return;
        }
        let place = Place::new();
        chown(place.path("state"), Some(NOBODY), None).unwrap();
        let expected = format!(
            "the state file {:?} belongs to the user 65534",
            place.path("state")
        );
        assert_eq!(place.told(), expected);
        chown(place.path("state"), Some(0), None).unwrap();
        chown(place.path("."), Some(NOBODY), None).unwrap();
        assert!(
            place.told().starts_with("the directory"),
            "{}",
            place.told()
        );
        let memory = File::create(place.path("memory")).unwrap();
        assert_eq!(judge_memory(&place.path("memory"), &memory).unwrap(), None);
        chown(place.path("memory"), Some(NOBODY), None).unwrap();
        let distrust = judge_memory(&place.path("memory"), &memory).unwrap();
        assert!(
            matches!(distrust, Some(Distrust::Owner { .. })),
            "{distrust:?}"
        );
    }

    #[test]
    fn a_snapshot_below_a_directory_that_others_can_exchange_is_not_trusted() {
        let place = Place::new();
        let below = place.path("above/snap/state");
        fs::create_dir_all(place.path("above/snap")).unwrap();
        fs::copy(place.path("state"), &below).unwrap();
        for name in ["above", "above/snap"] {
            place.mode(name, 0o755);
        }
        let told = || open_state(&below).unwrap().1.map(|why| why.to_string());
        assert_eq!(told(), None);
        place.mode("above", 0o777);
        let expected = format!(
            "others may write to the directory {:?} (its mode is 777)",
            fs::canonicalize(place.path("above")).unwrap()
        );
        assert_eq!(told(), Some(expected));
        place.mode("above", 0o755);
        if chown(place.path("above"), Some(NOBODY), None).is_err() {
            not_looked_at("only root may give files away");
            return;
        }
        let told = told().unwrap();
        assert!(told.ends_with("belongs to the user 65534"), "{told}");
    }

    #[test]
    fn a_link_is_followed_and_not_trusted() {
        let place = Place::new();
        symlink(place.path("state"), place.path("link")).unwrap();
        let (reader, distrust) = open_state(&place.path("link")).unwrap();
        assert_eq!(reader.header().memory_length, 4096);
        assert_eq!(distrust, Some(Distrust::Link(place.path("link"))));
        assert!(open_state(&place.path("nothing")).is_err());
        assert!(open_state(&place.path(".")).is_err());
    }

    #[test]
    fn a_path_without_a_directory_is_in_the_working_directory() {
        let error = open_state(Path::new("no-such-state-file")).unwrap_err();
        assert!(matches!(error, StateError::Read(_)), "{error}");
        assert!(matches!(
            open_state(Path::new("/")),
            Err(StateError::NotAFile)
        ));
    }
}
