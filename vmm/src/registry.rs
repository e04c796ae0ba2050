//! Which machines run on this host: each process has a file in one directory, so that `vmgenie ps` and `vmgenie stop` find it.
//!
//! The directory is `$XDG_RUNTIME_DIR/vmgenie`, or `/run/vmgenie` for root without that variable or with another user's. A file is removed when its process
//! ends; one that was left behind by a process that was killed is removed by whoever lists the machines next. A process is
//! known by its number, the time of its start, because numbers are used again, and its PID namespace, because each has its own.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use vmgenie_snapshot::own_files::is_trusted_dir;

/// The longest file that is read, in bytes.
const MAX_LEN: u64 = 64 << 10;

/// How old a file is that makes no sense before it is removed: 30 days.
const FORGOTTEN: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// One machine's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The process.
    pub pid: i32,
    /// When it was started, in clock ticks since the host booted (`/proc/PID/stat`).
    pub start_ticks: u64,
    /// The PID namespace in which it has this number: the inode of `/proc/self/ns/pid`.
    pub pid_namespace: u64,
    /// The machine's name.
    pub id: String,
    /// Where its API listens.
    pub api_socket: Option<PathBuf>,
}

/// A file of the registry; it is removed when this is dropped.
#[derive(Debug)]
pub struct Registered(PathBuf);

impl Drop for Registered {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The directory.
pub fn directory() -> PathBuf {
    std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        // Root may have that of another user, who could exchange what is in it.
        .filter(|dir| dir.is_absolute() && is_trusted_dir(dir))
        .unwrap_or_else(|| PathBuf::from("/run"))
        .join("vmgenie")
}

/// Adds this process. Nothing depends on it: without a place for the file, the machine is not listed.
pub fn register(id: &str, api_socket: Option<&Path>) -> Option<Registered> {
    register_in(&directory(), id, api_socket)
        .inspect_err(|error| tracing::debug!(%error, "this machine will not be listed"))
        .ok()
}

fn register_in(dir: &Path, id: &str, api_socket: Option<&Path>) -> io::Result<Registered> {
    let pid = std::process::id().cast_signed();
    let entry = Entry {
        pid,
        start_ticks: start_ticks(pid)
            .ok_or_else(|| io::Error::other("/proc does not tell when this process was started"))?,
        pid_namespace: pid_namespace()?,
        id: id.to_owned(),
        api_socket: api_socket.map(std::path::absolute).transpose()?,
    };
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if !is_ours(dir) {
        return Err(io::Error::other(format!(
            "{} is no directory of this user's alone",
            dir.display()
        )));
    }
    // Two processes of different PID namespaces may have one number.
    let path = dir.join(format!("{pid}-{}.json", entry.pid_namespace));
    let staged = path.with_extension("tmp");
    // Left by an earlier process of this number.
    let _ = fs::remove_file(&staged);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&staged)?;
    let staged = Registered(staged);
    file.write_all(&serde_json::to_vec(&entry)?)?;
    // Whoever lists sees all of it or nothing.
    fs::rename(&staged.0, &path)?;
    std::mem::forget(staged);
    Ok(Registered(path))
}

/// The machines that run, in the order of their names.
pub fn list() -> Vec<Entry> {
    list_in(&directory())
}

/// Whether nobody else can put entries there, by which a process of this user's would be ended.
fn is_ours(dir: &Path) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|metadata| {
        metadata.is_dir()
            && metadata.uid() == rustix::process::geteuid().as_raw()
            && metadata.mode() & 0o022 == 0
    })
}

fn list_in(dir: &Path) -> Vec<Entry> {
    if !is_ours(dir) {
        return Vec::new();
    }
    let Ok(namespace) = pid_namespace() else {
        return Vec::new();
    };
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut entries: Vec<Entry> = files
        .filter_map(|file| {
            let path = file.path();
            match path.extension()?.to_str()? {
                "json" => read(&path, namespace),
                "tmp" => {
                    match is_of_dead(&path, namespace) {
                        true => drop(fs::remove_file(&path)),
                        false => remove_if_old(&path),
                    }
                    None
                }
                _ => None,
            }
        })
        .collect();
    entries.sort_by(|a, b| (&a.id, a.pid).cmp(&(&b.id, b.pid)));
    entries
}

/// What a file says, if its process lives and has its number in the PID namespace `namespace`: of the others nobody here can tell.
fn read(path: &Path, namespace: u64) -> Option<Entry> {
    let mut text = Vec::new();
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .ok()?
        .take(MAX_LEN)
        .read_to_end(&mut text)
        .ok()?;
    let Ok(entry) = serde_json::from_slice::<Entry>(&text) else {
        // Of another version, which may still run.
        remove_if_old(path);
        return None;
    };
    if entry.pid_namespace != namespace {
        return None;
    }
    if start_ticks(entry.pid) == Some(entry.start_ticks) {
        return Some(entry);
    }
    let _ = fs::remove_file(path);
    None
}

impl Entry {
    /// Does its process still live?
    pub fn lives(&self) -> bool {
        start_ticks(self.pid) == Some(self.start_ticks)
    }
}

/// Was a process of the PID namespace `namespace` about to make this an entry, and has ended?
fn is_of_dead(staged: &Path, namespace: u64) -> bool {
    let of = || {
        let (pid, of) = staged.file_stem()?.to_str()?.split_once('-')?;
        Some((pid.parse::<i32>().ok()?, of.parse::<u64>().ok()?))
    };
    of().is_some_and(|(pid, of)| of == namespace && start_ticks(pid).is_none())
}

/// Removes what nobody can make sense of, once it is so old that nobody will come back to it.
fn remove_if_old(path: &Path) {
    let modified = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    let age = modified.map(|time| time.elapsed().unwrap_or_default());
    if age.is_ok_and(|age| age > FORGOTTEN) {
        let _ = fs::remove_file(path);
    }
}

/// The PID namespace of this process.
///
/// # Errors
/// `/proc` is not there.
pub fn pid_namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/self/ns/pid")?.ino())
}

/// When a process was started; none if it is not there or is a zombie.
pub(crate) fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the state is the first field behind it, the start the 20th.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_directory_that_others_can_write_to_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        let registered = register_in(&real, "a", None).unwrap();
        assert_eq!(list_in(&real).len(), 1);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(register_in(&link, "b", None).is_err());
        assert_eq!(list_in(&link), []);
        fs::set_permissions(&real, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(register_in(&real, "b", None).is_err());
        assert_eq!(list_in(&real), []);
        fs::set_permissions(&real, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(list_in(&real).len(), 1);
        drop(registered);
    }

    #[test]
    fn a_process_is_listed_while_it_is_registered() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("vmgenie");
        assert_eq!(list_in(&dir), []);
        let registered = register_in(&dir, "a", Some(Path::new("api.sock"))).unwrap();
        let entries = list_in(&dir);
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].id, "a");
        assert!(entries[0].lives());
        assert!(entries[0].api_socket.as_ref().unwrap().is_absolute());
        drop(registered);
        assert_eq!(list_in(&dir), []);
    }

    #[test]
    fn what_a_dead_process_left_is_removed_and_what_makes_no_sense_is_not_listed() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id().cast_signed();
        child.wait().unwrap();
        let pids = [pid, std::process::id().cast_signed()];
        for pid in pids {
            // The second one is ours, but for the time of its start.
            let entry = Entry {
                pid,
                start_ticks: 1,
                pid_namespace: pid_namespace().unwrap(),
                id: String::new(),
                api_socket: None,
            };
            let path = dir.path().join(format!("{pid}.json"));
            fs::write(path, serde_json::to_vec(&entry).unwrap()).unwrap();
        }
        let here = pid_namespace().unwrap();
        let staged = [
            format!("{pid}-{here}.tmp"),
            // Of one that lives, and of one of whom nobody here can tell.
            format!("{}-{here}.tmp", std::process::id()),
            format!("{pid}-{}.tmp", here + 1),
        ];
        let names = ["new.json", "old.json", "new.tmp", "old.tmp"];
        for name in names.into_iter().chain(staged.iter().map(String::as_str)) {
            let file = fs::File::create(dir.path().join(name)).unwrap();
            let age = if name.starts_with("old") { 40 } else { 20 };
            let age = Duration::from_secs(age * 24 * 60 * 60);
            file.set_modified(std::time::SystemTime::now() - age)
                .unwrap();
        }
        assert_eq!(list_in(dir.path()), []);
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|file| file.unwrap().file_name())
            .collect();
        left.sort();
        let mut expected = ["new.json", "new.tmp", &staged[1], &staged[2]].map(String::from);
        expected.sort();
        assert_eq!(left, expected.map(std::ffi::OsString::from));
    }

    #[test]
    fn a_machine_of_another_pid_namespace_is_not_listed_and_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let pid = std::process::id().cast_signed();
        let here = pid_namespace().unwrap();
        for (name, start_ticks, pid_namespace) in [
            // One that has our number, and one whose number nobody has here.
            ("a", start_ticks(pid).unwrap(), here + 1),
            ("b", 1, here + 1),
        ] {
            let entry = Entry {
                pid,
                start_ticks,
                pid_namespace,
                id: name.to_owned(),
                api_socket: None,
            };
            let path = dir.path().join(format!("{name}.json"));
            fs::write(path, serde_json::to_vec(&entry).unwrap()).unwrap();
        }
        assert_eq!(list_in(dir.path()), []);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
