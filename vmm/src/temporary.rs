//! Directories that go with the last process that uses them.
//!
//! Each process that uses one holds a shared lock on it, which ends with the process, however that ends. Whoever leaves removes the directory if no
//! other lock is on it. What processes leave behind that were killed together is removed by whoever comes next: [`sweep`].

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};

/// How often to try to remove a directory in which somebody still makes files.
const ATTEMPTS: usize = 100;

/// A directory that this process uses together with others. It is private: nobody else can lock it.
#[derive(Debug)]
pub struct SharedDir {
    path: PathBuf,
    directory: File,
}

impl SharedDir {
    /// Begins to use a directory that is there.
    ///
    /// # Errors
    /// It cannot be opened, or its file system has no locks.
    pub fn join(path: &Path) -> io::Result<Self> {
        let directory = open(path)?;
        flock(&directory, FlockOperation::NonBlockingLockShared)?;
        Ok(Self {
            path: path.to_owned(),
            directory,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SharedDir {
    fn drop(&mut self) {
        // The kernel takes the shared lock away first: of two who leave at once the second one gets this.
        if flock(&self.directory, FlockOperation::NonBlockingLockExclusive).is_ok()
            && is_at(&self.directory, &self.path)
        {
            remove(&self.path);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// Whether `directory` is still what `path` names.
fn is_at(directory: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let (Ok(open), Ok(named)) = (directory.metadata(), fs::symlink_metadata(path)) else {
        return false;
    };
    identity(open) == identity(named)
}

/// Removes a file, or a directory with all that is in it, also when somebody makes more files in it meanwhile.
pub fn remove(path: &Path) {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return;
    };
    if !metadata.is_dir() {
        let _ = fs::remove_file(path);
        return;
    }
    for _ in 0..ATTEMPTS {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
            _ => return,
        }
    }
}

/// Where temporary directories are made. Other processes hear of them, which may be elsewhere: it is absolute, whatever `TMPDIR` is.
pub fn parent() -> PathBuf {
    absolute(std::env::temp_dir())
}

fn absolute(dir: PathBuf) -> PathBuf {
    // Only an empty one has no absolute path, and it names no directory.
    std::path::absolute(&dir).unwrap_or_else(|_| PathBuf::from("/tmp"))
}

/// The name of a directory that this process makes, with this prefix; another one for each attempt.
pub fn name(prefix: &str, attempt: usize) -> String {
    let pid = std::process::id();
    match attempt {
        0 => format!("{prefix}-{pid}"),
        more => format!("{prefix}-{pid}-{more}"),
    }
}

/// Removes the directories in `parent` that have such a [`name`], are this user's, and are used by nobody any more.
pub fn sweep(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| maker(name, prefix));
        // Its maker may not have locked it yet.
        if maker.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove_unused(&entry.path());
        }
    }
}

/// The process that has made the directory of this name.
fn maker(name: &str, prefix: &str) -> Option<u32> {
    let rest = name.strip_prefix(prefix)?.strip_prefix('-')?;
    let (pid, attempt) = rest.split_once('-').unwrap_or((rest, "0"));
    attempt.parse::<usize>().ok()?;
    pid.parse().ok()
}

fn remove_unused(path: &Path) {
    let own = |directory: &File| {
        let metadata = directory.metadata();
        metadata.is_ok_and(|it| it.uid() == rustix::process::geteuid().as_raw())
    };
    let Ok(directory) = open(path) else {
        return;
    };
    if own(&directory)
        && flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok()
        && is_at(&directory, path)
    {
        remove(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(parent: &Path, name: &str) -> PathBuf {
        let path = parent.join(name);
        fs::create_dir_all(path.join("more")).unwrap();
        fs::write(path.join("more/file"), "x").unwrap();
        path
    }

    /// A process that has ended, so that nothing has its number.
    fn dead() -> u32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    #[test]
    fn a_directory_goes_with_the_last_who_uses_it() {
        let place = tempfile::tempdir().unwrap();
        let path = made(place.path(), "shared");
        let users: Vec<_> = (0..3).map(|_| SharedDir::join(&path).unwrap()).collect();
        for (left, user) in (0..3).rev().zip(users) {
            drop(user);
            assert_eq!(path.exists(), left > 0, "{left} use it");
        }
    }

    #[test]
    fn of_many_who_leave_at_once_one_removes_the_directory() {
        for _ in 0..50 {
            let place = tempfile::tempdir().unwrap();
            let path = made(place.path(), "shared");
            let users: Vec<_> = (0..8).map(|_| SharedDir::join(&path).unwrap()).collect();
            std::thread::scope(|scope| {
                for user in users {
                    scope.spawn(move || drop(user));
                }
            });
            assert!(!path.exists());
        }
    }

    #[test]
    fn another_directory_in_its_place_stays() {
        let place = tempfile::tempdir().unwrap();
        let path = made(place.path(), "shared");
        let user = SharedDir::join(&path).unwrap();
        fs::rename(&path, place.path().join("moved")).unwrap();
        made(place.path(), "shared");
        drop(user);
        assert!(path.join("more/file").exists());
    }

    #[test]
    fn what_dead_processes_have_left_is_swept_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let (dead, alive) = (dead(), std::process::id());
        let gone = [format!("a-{dead}"), format!("a-{dead}-3")].map(|it| made(place.path(), &it));
        let stays = [
            format!("a-{alive}"),
            format!("b-{dead}"),
            format!("a-{dead}-x"),
            "a-".to_owned(),
            "a".to_owned(),
        ]
        .map(|it| made(place.path(), &it));
        let used = made(place.path(), &format!("a-{dead}-1"));
        let user = SharedDir::join(&used).unwrap();
        let link = place.path().join(format!("a-{dead}-2"));
        std::os::unix::fs::symlink(&stays[1], &link).unwrap();
        sweep(place.path(), "a");
        for path in gone {
            assert!(!path.exists(), "{path:?}");
        }
        for path in stays.iter().chain([&used]) {
            assert!(path.join("more/file").exists(), "{path:?}");
        }
        drop(user);
        assert!(!used.exists());
    }

    #[test]
    fn other_processes_can_be_told_where_temporary_directories_are() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute("t/mp".into()), here.join("t/mp"));
        assert_eq!(absolute("".into()), Path::new("/tmp"));
    }

    #[test]
    fn a_directory_is_removed_while_somebody_makes_files_in_it() {
        let place = tempfile::tempdir().unwrap();
        let path = made(place.path(), "busy");
        let making = path.clone();
        let maker = std::thread::spawn(move || {
            let mut number = 0;
            while fs::write(making.join(number.to_string()), "x").is_ok() {
                number += 1;
            }
        });
        remove(&path);
        maker.join().unwrap();
        assert!(!path.exists());
        remove(&path);
    }
}
