//! One clone: a detached `vmgenie api` process and the snapshot that is loaded into it.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde::Serialize;
use thiserror::Error;
use vmgenie_api::client::{Client, ClientError};
use vmgenie_api::wire::{
    DriveOverride, GenerationWait, GenerationWaited, Ready, SnapshotLoad, Watchers,
};
use vmgenie_snapshot::MadeFile;
use vmgenie_snapshot::own_files::OwnDir;

use vmgenie_machine::unix_socket::{MAX_PATH, is_listened_on};

use super::NOT_ADAPTED;
use super::clone_log::Log;

/// How long a VMM may take to open its socket.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a VMM may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How often to look for the socket.
const POLL: Duration = Duration::from_micros(200);
/// How often to look for an interruption while drives are copied.
const LOOK: Duration = Duration::from_millis(20);
/// How often to look for an interruption while a guest adapts.
const LOOK_AT_WAIT: Duration = Duration::from_millis(200);
/// How long a VMM that does not answer, or was told to end, may take to end.
const LAST_MOMENT: Duration = Duration::from_secs(5);

/// Why a clone is not there.
#[derive(Debug, Error)]
pub(super) enum CloneError {
    #[error("{0} is in use: a VMM listens on it; choose another --dir")]
    InUse(PathBuf),
    #[error(
        "the path {0} is longer than {MAX_PATH} bytes, the most that a socket can have: choose a shorter --dir"
    )]
    TooLong(PathBuf),
    #[error("{0} exists and is not a socket: choose another --dir or remove it")]
    NotASocket(PathBuf),
    #[error("could not look at {0}")]
    Look(PathBuf, #[source] io::Error),
    #[error("could not write to the log {0}")]
    Log(PathBuf, #[source] io::Error),
    #[error("could not start a VMM")]
    Spawn(#[source] io::Error),
    #[error("the VMM for {socket} ended ({status}); its log says: {log}")]
    Ended {
        socket: PathBuf,
        status: ExitStatus,
        log: String,
    },
    #[error("the VMM for {0} did not open its socket within {START_TIMEOUT:?}")]
    Slow(PathBuf),
    #[error("could not restore the snapshot in the VMM at {0}")]
    Load(PathBuf, #[source] ClientError),
    #[error("the VMM at {0} did not say how far its guest has adapted")]
    Wait(PathBuf, #[source] ClientError),
    #[error("interrupted")]
    Interrupted,
}

impl CloneError {
    /// The exit status that says most: the VMM's own, which tells that KVM is not usable, for example.
    pub(super) fn status(&self) -> u8 {
        let ended = match self {
            Self::Ended { status, .. } => status.code().and_then(|code| u8::try_from(code).ok()),
            _ => None,
        };
        ended.filter(|code| *code > 0).unwrap_or(super::FAILURE)
    }
}

/// Where clone `number` has its API socket.
pub(super) fn socket_path(dir: &Path, number: u16) -> PathBuf {
    dir.join(format!("clone-{number}.sock"))
}

/// Looks whether a clone can have its socket there. Touches nothing.
pub(super) fn check_socket(socket: &Path) -> Result<(), CloneError> {
    let owned = || socket.to_owned();
    if socket.as_os_str().len() > MAX_PATH {
        return Err(CloneError::TooLong(owned()));
    }
    match fs::symlink_metadata(socket) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(CloneError::Look(owned(), error)),
        Ok(metadata) if !metadata.file_type().is_socket() => Err(CloneError::NotASocket(owned())),
        Ok(_) if is_listened_on(socket) => Err(CloneError::InUse(owned())),
        // What a dead VMM has left.
        Ok(_) => Ok(()),
    }
}

/// Device and inode of the socket at `path`, if there is one.
fn socket_at(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    let is_socket = metadata.file_type().is_socket();
    is_socket.then(|| (metadata.dev(), metadata.ino()))
}

/// What became of one clone.
#[derive(Debug, Serialize)]
pub(super) struct CloneReport {
    pub(super) pid: u32,
    pub(super) socket: PathBuf,
    /// The guest's console and the VMM's log.
    pub(super) log: PathBuf,
    pub(super) generation_id: String,
    /// From before the process was started to the answer that the snapshot is loaded and the guest
    /// runs, in milliseconds.
    pub(super) running_ms: f64,
    /// The request that loads the snapshot, alone, in milliseconds.
    pub(super) load_ms: f64,
}

/// How far a clone has come.
#[derive(Debug)]
pub(super) enum Fate {
    /// It runs.
    Runs(GenerationWaited, Ready),
    /// Its guest had not adapted in time, and its gate has ended it. This is the end of its log.
    Ended(String),
}

/// What the VMMs of clones are started with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start<'a> {
    pub(super) program: &'a Path,
    /// Where their sockets and logs are.
    pub(super) dir: &'a Arc<OwnDir>,
    /// What their names begin with.
    pub(super) name: &'a str,
    /// The directory goes with the last of them.
    pub(super) dir_goes: bool,
    /// A directory that they remove when this program is killed before it releases them.
    pub(super) doomed: Option<&'a Path>,
}

/// A VMM that was started. Unless [`CloneProcess::release`] is called it is told to end on drop, and removes what it has made; when this
/// program is killed, it does so by itself.
#[derive(Debug)]
pub(super) struct CloneProcess {
    name: String,
    child: Child,
    started: Instant,
    socket: PathBuf,
    /// The socket that was there before, of a VMM that is gone.
    stale_socket: Option<(u64, u64)>,
    log: Log,
    /// The files that it makes for drives.
    wanted: Vec<PathBuf>,
    /// Those that it has made, by its own word.
    made: Vec<MadeFile>,
    /// The process ends when this is closed before a word has come through it: when this program is killed.
    lifeline: Option<ChildStdin>,
    /// It lives on.
    released: bool,
}

impl CloneProcess {
    /// Starts clone number `number`, which will be asked for `request`, in a session of its own. [`check_socket`] comes first.
    pub(super) fn start(
        start: &Start<'_>,
        number: u16,
        request: &SnapshotLoad,
    ) -> Result<Self, CloneError> {
        let name = format!("{}-{number}", start.name);
        let dir = Arc::clone(start.dir);
        let socket = socket_path(dir.path(), number);
        let stale_socket = socket_at(&socket);
        let log_name = format!("clone-{number}.log");
        let log_path = dir.path().join(&log_name);
        let log_failed = |error| CloneError::Log(log_path.clone(), error);
        let (log, out) = Log::open(dir, log_name.into()).map_err(log_failed)?;
        let err = out.try_clone().map_err(log_failed)?;
        let mut command = Command::new(start.program);
        command
            .arg("api")
            .arg("--api-sock")
            .arg(&socket)
            .arg("--id")
            .arg(&name)
            .arg("--lifeline")
            .arg("--rotate")
            .arg(&log_path);
        // What it makes itself it knows: others may make files of the same names before it does.
        let own_log = log.made.then_some(log_path.as_path());
        for doomed in own_log.into_iter().chain(start.doomed) {
            command.arg("--doomed").arg(doomed);
        }
        if start.dir_goes {
            command.arg("--shared-dir").arg(start.dir.path());
        }
        command.stdin(Stdio::piped()).stdout(out).stderr(err);
        // SAFETY: between fork and exec only setsid is called, which is async-signal-safe. It
        // cannot fail in a fresh child.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                Ok(())
            });
        }
        let started = Instant::now();
        let mut child = command.spawn().map_err(|error| {
            log.undo();
            CloneError::Spawn(error)
        })?;
        let lifeline = child.stdin.take();
        Ok(Self {
            name,
            child,
            started,
            socket,
            stale_socket,
            log,
            wanted: wanted(request),
            made: Vec::new(),
            lifeline,
            released: false,
        })
    }

    /// The machine's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Waits until the VMM can be asked.
    pub(super) fn wait_for_socket(&mut self, interrupted: &AtomicBool) -> Result<(), CloneError> {
        let mut client = self.client()?;
        self.connect(&mut client, interrupted)
    }

    fn client(&self) -> Result<Client, CloneError> {
        let mut client = Client::new(&self.socket)
            .map_err(|error| CloneError::Load(self.socket.clone(), error))?;
        client.expect_peer(self.child.id());
        Ok(client)
    }

    /// Waits for the VMM's socket and loads the snapshot.
    pub(super) fn load(
        &mut self,
        request: &SnapshotLoad,
        interrupted: &AtomicBool,
    ) -> Result<CloneReport, CloneError> {
        let mut client = self.client()?;
        // How long a copy of a drive takes nobody knows.
        let copies = request.drive_overrides.iter().any(makes_a_file);
        client.set_timeout((!copies).then_some(ANSWER_TIMEOUT));
        self.connect(&mut client, interrupted)?;
        let asked = Instant::now();
        if copies {
            self.load_copying(&mut client, request, interrupted)?;
        } else {
            let failed = |error| CloneError::Load(self.socket.clone(), error);
            client.load_snapshot(request).map_err(failed)?;
        }
        let made = self.wanted.iter().map(|path| MadeFile::at(path));
        self.made = made.filter_map(Result::ok).collect();
        let failed = |error| CloneError::Load(self.socket.clone(), error);
        let (load, running) = (asked.elapsed(), self.started.elapsed());
        Ok(CloneReport {
            pid: self.child.id(),
            socket: self.socket.clone(),
            log: self.log.path(),
            generation_id: client.generation().map_err(failed)?.id,
            running_ms: running.as_secs_f64() * 1e3,
            load_ms: load.as_secs_f64() * 1e3,
        })
    }

    /// Waits for at most `patience` until the machine is ready: its guest has adapted to its generation, with so many agents, and its gate is open;
    /// or has ended, as its gate says.
    pub(super) fn wait_until_ready(
        &mut self,
        agents: Option<u32>,
        patience: Duration,
        interrupted: &AtomicBool,
    ) -> Result<Fate, CloneError> {
        let mut client = self.client()?;
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let now = left.min(LOOK_AT_WAIT);
            let wait = GenerationWait {
                timeout_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
                agents,
                watchers: Watchers::Required,
            };
            let told = client.wait_for(&wait);
            let told = told.and_then(|waited| Ok((waited, client.ready()?)));
            if interrupted.load(Ordering::Relaxed) {
                return Err(CloneError::Interrupted);
            }
            let (waited, ready) = match told.map_err(|error| self.why_silent(error)) {
                Ok(told) => told,
                Err(CloneError::Ended { status, log, .. })
                    if status.code() == Some(i32::from(NOT_ADAPTED)) =>
                {
                    return Ok(Fate::Ended(log));
                }
                Err(error) => return Err(error),
            };
            if ready.ready || left <= now {
                return Ok(Fate::Runs(waited, ready));
            }
            if waited.adapted {
                // Its gate is about to open.
                std::thread::sleep(POLL);
            }
        }
    }

    /// Why the VMM does not answer. It may have ended, as one does whose gate says so.
    fn why_silent(&mut self, error: ClientError) -> CloneError {
        let until = Instant::now() + LAST_MOMENT;
        while Instant::now() < until {
            if let Some(ended) = self.ended() {
                return ended;
            }
            std::thread::sleep(POLL);
        }
        CloneError::Wait(self.socket.clone(), error)
    }

    /// That the VMM has ended, if it has.
    fn ended(&mut self) -> Option<CloneError> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(CloneError::Ended {
            socket: self.socket.clone(),
            status,
            log: self.log.tail(),
        })
    }

    /// Has the snapshot loaded, however long that takes, unless this is interrupted.
    fn load_copying(
        &mut self,
        client: &mut Client,
        request: &SnapshotLoad,
        interrupted: &AtomicBool,
    ) -> Result<(), CloneError> {
        let loaded = std::thread::scope(|scope| {
            let (end, ended) = mpsc::channel();
            let loading = scope.spawn(move || {
                let loaded = client.load_snapshot(request);
                // Somebody waits for it.
                let _ = end.send(());
                loaded
            });
            while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                if interrupted.load(Ordering::Relaxed) {
                    // Its request ends with it.
                    self.end();
                }
            }
            loading
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        match interrupted.load(Ordering::Relaxed) {
            true => Err(CloneError::Interrupted),
            // A VMM that refuses takes away what it has made; what is left there is somebody else's, who was faster.
            false => loaded.map_err(|error| CloneError::Load(self.socket.clone(), error)),
        }
    }

    /// Has it end, and take along what it has made.
    fn end(&mut self) {
        let mut told = false;
        let until = Instant::now() + LAST_MOMENT;
        while Instant::now() < until {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            // Not before it is known that the number is still its.
            if !std::mem::replace(&mut told, true) {
                let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM);
            }
            std::thread::sleep(POLL);
        }
        tracing::warn!(
            pid = self.child.id(),
            "the VMM of a clone does not end: it is killed"
        );
        self.made.extend(opened(self.child.id(), &self.wanted));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn connect(&mut self, client: &mut Client, interrupted: &AtomicBool) -> Result<(), CloneError> {
        loop {
            match client.connect() {
                Ok(()) => return Ok(()),
                Err(ClientError::NoSocket(_) | ClientError::NotRunning(_)) => {}
                // Another VMM was faster; ours ends.
                Err(ClientError::Stranger { socket, .. }) => return Err(CloneError::InUse(socket)),
                Err(error) => return Err(CloneError::Load(self.socket.clone(), error)),
            }
            if interrupted.load(Ordering::Relaxed) {
                return Err(CloneError::Interrupted);
            }
            if let Some(ended) = self.ended() {
                return Err(ended);
            }
            if self.started.elapsed() > START_TIMEOUT {
                return Err(CloneError::Slow(self.socket.clone()));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Lets the VMM live on.
    pub(super) fn release(mut self) {
        if let Some(mut lifeline) = self.lifeline.take() {
            // One that has ended meanwhile needs no word.
            let _ = lifeline.write_all(b"\n");
        }
        self.released = true;
    }
}

/// A copy, or an overlay, which may be a copy of another one.
pub(super) fn makes_a_file(drive: &DriveOverride) -> bool {
    drive.copy || drive.overlay
}

/// The files that `request` has made for drives.
fn wanted(request: &SnapshotLoad) -> Vec<PathBuf> {
    let drives = request.drive_overrides.iter();
    let wanted = drives.filter(|drive| makes_a_file(drive));
    wanted.map(|drive| drive.path_on_host.clone()).collect()
}

/// What of `wanted` the process has open, and so has made: it opens nothing else of that name.
fn opened(pid: u32, wanted: &[PathBuf]) -> Vec<MadeFile> {
    let files = fs::read_dir(format!("/proc/{pid}/fd"));
    let files = files.into_iter().flatten().flatten();
    let open: Vec<_> = files
        .filter_map(|file| fs::metadata(file.path()).ok())
        .collect();
    let found = wanted.iter().filter_map(|path| MadeFile::at(path).ok());
    found
        .filter(|found| open.iter().any(|open| found.is(open)))
        .collect()
}

impl Drop for CloneProcess {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        self.end();
        // Of one that has ended by itself they are still there.
        self.made.iter().for_each(MadeFile::remove);
        self.log.undo();
        // Another VMM may have taken the path, and what was there before is not ours to remove; any other socket that nobody
        // listens on is ours.
        let ours = socket_at(&self.socket).filter(|found| Some(*found) != self.stale_socket);
        if let (Some(ours), Some(name)) = (ours, self.socket.file_name())
            && !is_listened_on(&self.socket)
        {
            self.log.dir.remove(name, ours);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_has_open_it_has_made_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = ["open", "closed", "missing"].map(|name| dir.path().join(name));
        let file = fs::File::create(&wanted[0]).unwrap();
        fs::write(&wanted[1], "").unwrap();
        let own = MadeFile::of(&wanted[0], &file).unwrap();
        assert_eq!(opened(std::process::id(), &wanted), [own]);
    }
}
