//! The places where the two files of a snapshot go, held as open directories.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crc64fast_nvme::Digest;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::SnapshotId;
use crate::own_files::{self, DirLock, LockError, Purpose, TrustError};

/// Longest file name that leaves room for what a staged name adds to it.
const MAX_NAME_LENGTH: usize = 255 - ".".len() - ".".len() - 32 - ".".len() - 16 - SUFFIX.len();
const SUFFIX: &str = ".staged";

/// Why a path cannot be the target of a snapshot file.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The path ends in no file name, as `/` and `..` do.
    #[error("{0:?} does not name a file")]
    NoName(PathBuf),
    /// The file name is too long.
    #[error("the file name of {0:?} is longer than {MAX_NAME_LENGTH} bytes")]
    NameTooLong(PathBuf),
    /// A directory, a device or the like has that name.
    #[error("{0:?} exists and is not a regular file; a snapshot does not replace it")]
    NotAFile(PathBuf),
    /// The directory does not exist, or the symbolic link leads nowhere, or may not be followed.
    #[error("could not find the place of {path:?}")]
    Unreachable {
        /// The path as it was given.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// A symbolic link that somebody else could have put there.
    #[error("could not follow the symbolic link {path:?}")]
    Link {
        /// The path as it was given.
        path: PathBuf,
        /// Why it is not trusted.
        source: TrustError,
    },
    /// Both paths lead to one file.
    #[error("{0:?} is given for both the state file and the memory file")]
    SameFile(PathBuf),
}

/// One target: an open directory, so that a renamed directory or a changed working directory does
/// no harm, and a file name in it.
#[derive(Debug)]
pub(super) struct Target {
    directory: File,
    /// Device and inode of the directory.
    identity: (u64, u64),
    directory_path: PathBuf,
    name: OsString,
}

impl Target {
    /// Finds the place of `path`. Symbolic links are followed, also the last one if nobody else can
    /// have put it there: the file that it leads to is the target.
    fn resolve(path: &Path) -> Result<Self, TargetError> {
        let unreachable = |source| TargetError::Unreachable {
            path: path.to_owned(),
            source,
        };
        let resolved = own_files::follow(path).map_err(|error| match error {
            TrustError::Look(_, error) => unreachable(error),
            source => TargetError::Link {
                path: path.to_owned(),
                source,
            },
        })?;
        if resolved != path {
            // A link that leads nowhere is a mistake.
            fs::symlink_metadata(&resolved).map_err(unreachable)?;
        }
        let no_name = || TargetError::NoName(path.to_owned());
        let name = resolved.file_name().ok_or_else(no_name)?.to_owned();
        if name.len() > MAX_NAME_LENGTH {
            return Err(TargetError::NameTooLong(path.to_owned()));
        }
        let directory_path = match resolved.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&directory_path, flags, Mode::empty())
            .map_err(|error| unreachable(error.into()))?;
        let directory = File::from(directory);
        let metadata = directory.metadata().map_err(unreachable)?;
        let identity = (metadata.dev(), metadata.ino());
        let target = Self {
            directory,
            identity,
            directory_path,
            name,
        };
        if target.is_replaceable().map_err(unreachable)? {
            Ok(target)
        } else {
            Err(TargetError::NotAFile(path.to_owned()))
        }
    }

    /// The directory of the target.
    pub(super) fn directory(&self) -> &File {
        &self.directory
    }

    /// The name of the target in its directory.
    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// A path to `name` in the directory of the target, for opening and for messages.
    pub(super) fn sibling(&self, name: &OsStr) -> PathBuf {
        self.directory_path.join(name)
    }

    /// A path to the target.
    pub(super) fn path(&self) -> PathBuf {
        self.sibling(&self.name)
    }

    /// Whether a rename may replace what has the target's name now, or nothing has.
    pub(super) fn is_replaceable(&self) -> io::Result<bool> {
        match rustix::fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile),
            Err(Errno::NOENT) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the file that is called `from` the name of the target, replacing what has it.
    pub(super) fn replace_by(&self, from: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::renameat(
            &self.directory,
            from,
            &self.directory,
            &self.name,
        )?)
    }

    /// Makes the names in the directory durable.
    pub(super) fn sync_directory(&self) -> io::Result<()> {
        own_files::sync_directory(&self.directory)
    }

    /// Whether there are staged files for this target, or the lock of one who publishes or was
    /// killed while it did.
    fn has_left_overs(&self) -> io::Result<bool> {
        Ok(
            own_files::is_locked_name(&self.directory, Purpose::Snapshots)
                || !self.staged()?.is_empty(),
        )
    }

    /// The staged names of files for this target that are in the directory.
    pub(super) fn staged(&self) -> io::Result<Vec<StagedName>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.directory)? {
            let entry = entry?;
            names.extend(StagedName::parse(&self.name, entry.file_name().to_bytes()));
        }
        Ok(names)
    }
}

/// A name that a file has beside its target before it is renamed to it:
/// `.TARGET.SNAPSHOT-ID.TAG.staged`. The tag says which state file it belongs to, so that a create
/// for another state file beside the same memory file leaves it alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StagedName {
    pub(super) id: SnapshotId,
    pub(super) tag: u64,
    pub(super) name: OsString,
}

impl StagedName {
    fn new(target: &OsStr, id: SnapshotId, tag: u64) -> Self {
        let mut name = OsString::from(".");
        name.push(target);
        name.push(format!(".{id}.{tag:016x}{SUFFIX}"));
        Self { id, tag, name }
    }

    fn parse(target: &OsStr, name: &[u8]) -> Option<Self> {
        let rest = name.strip_prefix(b".")?.strip_prefix(target.as_bytes())?;
        let rest = rest.strip_prefix(b".")?.strip_suffix(SUFFIX.as_bytes())?;
        let (id, tag) = rest.split_at_checked(32)?;
        let id = SnapshotId::from_hex(id)?;
        let tag = str::from_utf8(tag.strip_prefix(b".")?).ok()?;
        let staged = Self::new(target, id, u64::from_str_radix(tag, 16).ok()?);
        (staged.name.as_bytes() == name).then_some(staged)
    }
}

/// Both targets of a snapshot.
#[derive(Debug)]
pub(super) struct Targets {
    pub(super) state: Target,
    pub(super) memory: Target,
    /// Stands for the state file's place in staged names.
    tag: u64,
}

impl Targets {
    pub(super) fn resolve(state: &Path, memory: &Path) -> Result<Self, TargetError> {
        let same = TargetError::SameFile(state.to_owned());
        let (state, memory) = (Target::resolve(state)?, Target::resolve(memory)?);
        if state.identity == memory.identity && state.name == memory.name {
            return Err(same);
        }
        // The inode, not the path: it survives a moved directory and is the same in a container.
        let mut digest = Digest::new();
        digest.write(&state.identity.1.to_le_bytes());
        digest.write(state.name.as_bytes());
        Ok(Self {
            tag: digest.sum64(),
            state,
            memory,
        })
    }

    /// The staged name of snapshot `id`'s file for `target`, one of the two.
    pub(super) fn staged_name(&self, target: &Target, id: SnapshotId) -> OsString {
        StagedName::new(&target.name, id, self.tag).name
    }

    /// Whether a staged name belongs to the same state file as these targets do.
    pub(super) fn owns(&self, staged: &StagedName) -> bool {
        staged.tag == self.tag
    }

    /// Locks the directories of both targets against every other process of this user's that
    /// publishes or sweeps there, waiting for at most `patience`. The lock ends with the
    /// value, or with the process.
    ///
    /// A file system without locks (NFS may be one) is used without: publishing to the same
    /// targets from two processes at once is not safe there.
    pub(super) fn lock(&self, patience: Duration) -> Result<DirectoryLock, LockError> {
        let mut directories = [&self.state, &self.memory];
        // Everybody takes two locks in the same order, so that nobody waits in a circle.
        directories.sort_by_key(|target| target.identity);
        let deadline = Instant::now() + patience;
        let lock = |target: &Target| {
            let patience = deadline.saturating_duration_since(Instant::now());
            own_files::lock(&target.directory, Purpose::Snapshots, patience)
        };
        let first = lock(directories[0])?;
        let apart = directories[0].identity != directories[1].identity;
        let second = apart.then(|| lock(directories[1])).transpose()?;
        Ok(DirectoryLock(first, second))
    }

    /// Whether there is anything to tidy up beside the targets, or perhaps soon.
    pub(super) fn has_left_overs(&self) -> io::Result<bool> {
        let [state, memory] = [&self.state, &self.memory].map(Target::has_left_overs);
        Ok(state? || memory?)
    }
}

/// Holds the lock on one or two directories.
#[derive(Debug)]
#[must_use]
pub(super) struct DirectoryLock(
    #[allow(dead_code, reason = "held")] DirLock,
    #[allow(dead_code, reason = "held")] Option<DirLock>,
);

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_staged_name_is_read_back_and_no_other_name_is_taken_for_one() {
        let id = SnapshotId::generate().unwrap();
        let target = OsStr::new("vm.mem");
        let staged = StagedName::new(target, id, 0xab);
        let name = staged.name.as_bytes();
        assert_eq!(StagedName::parse(target, name), Some(staged.clone()));
        assert_eq!(StagedName::parse(OsStr::new("vm"), name), None);
        assert_eq!(StagedName::parse(OsStr::new("vm.mem2"), name), None);
        for broken in [
            &name[1..],
            &name[..name.len() - 1],
            b".vm.mem",
            b".vm.mem..staged",
        ] {
            assert_eq!(StagedName::parse(target, broken), None);
        }
    }

    #[test]
    fn paths_without_a_file_name_are_refused() {
        let dir = TempDir::new().unwrap();
        let good = dir.path().join("state");
        for path in ["/", "..", ""] {
            let error = Targets::resolve(&good, Path::new(path)).unwrap_err();
            assert!(matches!(error, TargetError::NoName(_)), "{path:?}: {error}");
        }
        let long = dir.path().join("x".repeat(MAX_NAME_LENGTH + 1));
        let error = Targets::resolve(&long, &good).unwrap_err();
        assert!(matches!(error, TargetError::NameTooLong(_)), "{error}");
    }

    #[test]
    fn directories_and_devices_are_not_replaced() {
        let dir = TempDir::new().unwrap();
        let good = dir.path().join("state");
        for path in [dir.path(), Path::new("/dev/null")] {
            let error = Targets::resolve(path, &good).unwrap_err();
            assert!(matches!(error, TargetError::NotAFile(_)), "{error}");
        }
    }

    #[test]
    fn a_missing_directory_and_a_dangling_link_are_refused() {
        let dir = TempDir::new().unwrap();
        let good = dir.path().join("state");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        for path in [&link, &dir.path().join("missing/memory")] {
            let error = Targets::resolve(&good, path).unwrap_err();
            assert!(matches!(error, TargetError::Unreachable { .. }), "{error}");
        }
    }

    #[test]
    fn one_file_for_both_is_refused_by_whatever_path() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("both");
        let link = dir.path().join("link");
        fs::write(&path, "").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for other in [&path, &link, &dir.path().join("./both")] {
            let error = Targets::resolve(&path, other).unwrap_err();
            assert!(matches!(error, TargetError::SameFile(_)), "{error}");
        }
    }

    #[test]
    fn a_lock_is_exclusive_until_it_is_dropped() {
        let dir = TempDir::new().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let targets = Targets::resolve(&one, &two).unwrap();
        let others = Targets::resolve(&two, &one).unwrap();
        let lock = targets.lock(Duration::ZERO).unwrap();
        let error = others.lock(Duration::from_millis(5)).unwrap_err();
        assert!(matches!(error, LockError::Held(_)), "{error}");
        drop(lock);
        let _lock = others.lock(Duration::ZERO).unwrap();
    }
}
