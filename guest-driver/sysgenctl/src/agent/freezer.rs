//! Freezes all programs but a few by the freezer of the unified hierarchy, and thaws them.
//!
//! A frozen program is stopped at the boundary to user mode: no system call of it is under way, so none
//! has drawn random numbers that it has not handed over yet. What is frozen is written down *before* it
//! is, so that `sysgenctl thaw` finds it whoever was killed, and undoes nobody else's freezing.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::cgroup::{Place, has_line};

/// What hooks and the service manager need, below the hierarchy's root.
pub(crate) const KEPT: [&str; 4] = [
    "init.scope",
    "system.slice/systemd-journald.service",
    "system.slice/dbus.service",
    "system.slice/dbus-broker.service",
];

/// The file with the frozen groups, in the agent's directory of `/run`.
const RECORD: &str = "frozen";
/// How often to look whether all are frozen.
const LOOK: Duration = Duration::from_millis(2);
/// Of `/proc/PID/stat`: a thread of the kernel.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// Why programs are not frozen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum FreezeError {
    #[error("there is no unified hierarchy of control groups")]
    NoHierarchy,
    #[error("process {0} is in the root control group, which cannot be frozen")]
    InRoot(u32),
    #[error("could not list the control groups in {0}")]
    List(PathBuf, #[source] io::Error),
    #[error("could not freeze the control group {0}")]
    Freeze(PathBuf, #[source] io::Error),
    #[error("could not thaw the control group {0}")]
    Thaw(PathBuf, #[source] io::Error),
    #[error("could not use the list of frozen control groups {0}")]
    Record(PathBuf, #[source] io::Error),
    #[error("the freezing was called off")]
    CalledOff,
}

/// What has been frozen.
#[derive(Debug)]
pub(crate) struct Frozen {
    /// How many groups.
    pub(crate) groups: usize,
    /// Those that were not frozen in time, relative to the root: they have been thawed.
    pub(crate) late: Vec<PathBuf>,
}

/// Where the control groups are, and which of them are left alone.
#[derive(Clone, Debug)]
pub(crate) struct Freezer {
    root: PathBuf,
    /// Relative to the root. They, what is below them and what is above them are not frozen.
    kept: Vec<PathBuf>,
    record: PathBuf,
}

impl Freezer {
    /// That of this machine; its record is in the directory `run`. Never frozen are this process's
    /// slice, what `KEPT` names and what `keep` names.
    ///
    /// # Errors
    /// [`FreezeError::NoHierarchy`].
    pub(crate) fn of_machine(run: &Path, keep: &[PathBuf]) -> Result<Self, FreezeError> {
        let place = Place::of_this_process().ok_or(FreezeError::NoHierarchy)?;
        let own = own_slice(&place.own);
        let kept = KEPT.iter().map(PathBuf::from);
        let kept = kept.chain(keep.iter().map(|path| relative(path)));
        Ok(Self {
            kept: kept.chain(own).collect(),
            ..Self::at(place.root, run)
        })
    }

    pub(super) fn at(root: PathBuf, run: &Path) -> Self {
        Self {
            root,
            kept: Vec::new(),
            record: run.join(RECORD),
        }
    }

    /// Keeps this group as well.
    #[cfg(test)]
    pub(super) fn keeping(mut self, group: &str) -> Self {
        self.kept.push(group.into());
        self
    }

    /// Freezes all groups that are not kept, and waits until they are, for at most `limit` or until
    /// `called_off`. Those that are late are thawed; the others stay frozen. After an error some may be:
    /// thaw.
    ///
    /// # Errors
    /// [`FreezeError`].
    pub(crate) fn freeze(
        &self,
        limit: Duration,
        called_off: &dyn Fn() -> bool,
    ) -> Result<Frozen, FreezeError> {
        let start = Instant::now();
        self.look_at_root()?;
        let (mut ours, mut late) = (Vec::new(), Vec::new());
        loop {
            // Who is started by a service manager that is not frozen comes while we wait. All are looked
            // at each time: a group may be made anew under the name of another one.
            let mut targets = Vec::new();
            self.targets(Path::new(""), &mut targets)?;
            targets.retain(|group| !late.contains(group));
            let all = targets.len();
            targets.retain(|group| !self.is_frozen(group));
            if targets.is_empty() || !late.is_empty() {
                let groups = all - targets.len();
                return Ok(Frozen { groups, late });
            }
            for group in &targets {
                if self.freeze_one(group)? {
                    ours.push(group.clone());
                }
            }
            for group in targets {
                if self.wait(&group, start, limit, called_off)? {
                    continue;
                }
                if ours.contains(&group) {
                    self.thaw_one(&group)?;
                }
                late.push(group);
            }
        }
    }

    fn is_frozen(&self, group: &Path) -> bool {
        let directory = self.root.join(group);
        has_line(&directory, "cgroup.freeze", "1")
            && has_line(&directory, "cgroup.events", "frozen 1")
    }

    /// Thaws the group, and says whether it was there.
    fn thaw_one(&self, group: &Path) -> Result<bool, FreezeError> {
        let directory = self.root.join(group);
        match fs::write(directory.join("cgroup.freeze"), "0") {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(FreezeError::Thaw(directory, error)),
        }
    }

    /// Thaws what `freeze` has frozen, whoever called it. Returns how many groups.
    ///
    /// # Errors
    /// [`FreezeError`]; what could not be thawed stays in the record.
    pub(crate) fn thaw(&self) -> Result<usize, FreezeError> {
        let failed = |error| FreezeError::Record(self.record.clone(), error);
        let record = match fs::read(&self.record) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            record => record.map_err(failed)?,
        };
        let (mut thawed, mut left, mut first) = (0, Vec::new(), None);
        // No name of a group holds a line's end.
        for line in record.split(|byte| *byte == b'\n').rev() {
            let group = relative(Path::new(OsStr::from_bytes(line)));
            if group.as_os_str().is_empty() {
                continue;
            }
            match self.thaw_one(&group) {
                Ok(there) => thawed += usize::from(there),
                Err(error) => {
                    left.splice(..0, [line, b"\n"].concat());
                    first.get_or_insert(error);
                }
            }
        }
        match first {
            None => fs::remove_file(&self.record).map_err(failed)?,
            Some(error) => {
                fs::write(&self.record, left).map_err(failed)?;
                return Err(error);
            }
        }
        Ok(thawed)
    }

    /// Programs in the root group would run on.
    fn look_at_root(&self) -> Result<(), FreezeError> {
        let list = |error| FreezeError::List(self.root.clone(), error);
        let procs = fs::read_to_string(self.root.join("cgroup.procs")).map_err(list)?;
        let own = std::process::id();
        let mut pids = procs.lines().filter_map(|line| line.parse().ok());
        match pids.find(|pid| *pid != own && !is_kernel_thread(*pid)) {
            Some(pid) => Err(FreezeError::InRoot(pid)),
            None => Ok(()),
        }
    }

    /// The groups below `parent` to be frozen: with all that is in them, unless something in them is kept.
    fn targets(&self, parent: &Path, found: &mut Vec<PathBuf>) -> Result<(), FreezeError> {
        let directory = self.root.join(parent);
        let entries = match fs::read_dir(&directory) {
            // It has ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries,
        };
        let failed = |error| FreezeError::List(directory.clone(), error);
        for entry in entries.map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let group = parent.join(entry.file_name());
            if self.kept.iter().any(|kept| group.starts_with(kept)) {
                continue;
            }
            match self.kept.iter().any(|kept| kept.starts_with(&group)) {
                true => self.targets(&group, found)?,
                false => found.push(group),
            }
        }
        Ok(())
    }

    /// Has the group freeze, unless it is to be frozen already: that was somebody else. Says whether it did.
    fn freeze_one(&self, group: &Path) -> Result<bool, FreezeError> {
        let directory = self.root.join(group);
        if has_line(&directory, "cgroup.freeze", "1") {
            return Ok(false);
        }
        self.note(group)?;
        let file = directory.join("cgroup.freeze");
        match OpenOptions::new()
            .write(true)
            .open(file)
            .and_then(|mut file| file.write_all(b"1"))
        {
            Err(error) if directory.exists() => Err(FreezeError::Freeze(directory, error)),
            _ => Ok(true),
        }
    }

    fn note(&self, group: &Path) -> Result<(), FreezeError> {
        let failed = |error| FreezeError::Record(self.record.clone(), error);
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.record);
        let line = [group.as_os_str().as_bytes(), b"\n"].concat();
        file.and_then(|mut file| file.write_all(&line))
            .map_err(failed)
    }

    /// Says whether the group was frozen in time, or is gone.
    fn wait(
        &self,
        group: &Path,
        start: Instant,
        limit: Duration,
        called_off: &dyn Fn() -> bool,
    ) -> Result<bool, FreezeError> {
        let directory = self.root.join(group);
        while !has_line(&directory, "cgroup.events", "frozen 1") && directory.exists() {
            if start.elapsed() >= limit {
                return Ok(false);
            }
            if called_off() {
                return Err(FreezeError::CalledOff);
            }
            thread::sleep(LOOK);
        }
        Ok(true)
    }
}

/// The slice that this group is in if it is the agent's alone, else the group; nothing of the root.
fn own_slice(own: &Path) -> Option<PathBuf> {
    let first = own.iter().next()?;
    let shared = ["system.slice", "user.slice", "machine.slice"];
    match shared.iter().any(|name| first == *name) || !first.as_encoded_bytes().ends_with(b".slice")
    {
        true => Some(own.into()),
        false => Some(first.into()),
    }
}

/// The path without its root and without steps upwards.
fn relative(path: &Path) -> PathBuf {
    path.components()
        .filter(|part| matches!(part, std::path::Component::Normal(_)))
        .collect()
}

/// Whether the process is a thread of the kernel, or gone.
fn is_kernel_thread(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    // Behind the name, which may hold anything: state, parent, group, session, terminal, its group, flags.
    let flags = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(6));
    flags
        .and_then(|flags| flags.parse::<u64>().ok())
        .is_some_and(|flags| flags & KERNEL_THREAD != 0)
}

/// `sysgenctl thaw`: as [`Freezer::thaw`], of this machine.
///
/// # Errors
/// As [`Freezer::thaw`].
pub(crate) fn thaw(run: &Path) -> Result<usize, FreezeError> {
    match Place::of_this_process() {
        Some(place) => Freezer::at(place.root, run).thaw(),
        // Then nothing can have been frozen.
        None => Ok(0),
    }
}

#[cfg(test)]
#[path = "freezer_test.rs"]
mod tests;
