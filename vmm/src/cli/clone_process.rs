//! One clone: a detached `vmgenie api` process and the snapshot that is loaded into it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde::Serialize;
use thiserror::Error;
use vmgenie_api::client::{Client, ClientError};
use vmgenie_api::wire::{
    DriveOverride, GenerationWait, GenerationWaited, Ready, SnapshotLoad, Watchers,
};
use vmgenie_snapshot::own_files::OwnDir;

use vmgenie_machine::unix_socket::{MAX_PATH, is_listened_on};

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
/// How long a VMM that does not answer may take to end.
const LAST_MOMENT: Duration = Duration::from_secs(1);
/// How much of the end of a log is shown when a VMM ends by itself, in bytes.
const LOG_TAIL: u64 = 2048;

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

/// Where clone `number` has its socket.
fn socket_path(dir: &Path, number: u16) -> PathBuf {
    dir.join(format!("clone-{number}.sock"))
}

/// Looks whether clone `number` can have its socket in `dir`. Touches nothing.
pub(super) fn check_socket(dir: &Path, number: u16) -> Result<(), CloneError> {
    let socket = socket_path(dir, number);
    if socket.as_os_str().len() > MAX_PATH {
        return Err(CloneError::TooLong(socket));
    }
    match fs::symlink_metadata(&socket) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(CloneError::Look(socket, error)),
        Ok(metadata) if !metadata.file_type().is_socket() => Err(CloneError::NotASocket(socket)),
        Ok(_) if is_listened_on(&socket) => Err(CloneError::InUse(socket)),
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

/// The file of a clone's console and log: a new one, or that of an earlier clone, which is kept.
#[derive(Debug)]
struct Log {
    dir: Arc<OwnDir>,
    name: OsString,
    /// Device and inode.
    identity: (u64, u64),
    /// It was not there before.
    made: bool,
    /// Where this clone's part begins.
    begin: u64,
}

impl Log {
    fn open(dir: Arc<OwnDir>, name: OsString) -> io::Result<(Self, File)> {
        let (file, made) = dir.append(&name)?;
        let metadata = file.metadata()?;
        let log = Self {
            dir,
            name,
            identity: (metadata.dev(), metadata.ino()),
            made,
            begin: metadata.len(),
        };
        Ok((log, file))
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(&self.name)
    }

    /// The end of what this clone has said.
    fn tail(&self) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(self.path())?;
            let len = file.metadata()?.len();
            file.seek(SeekFrom::Start(
                len.saturating_sub(LOG_TAIL).max(self.begin),
            ))?;
            let mut tail = Vec::new();
            file.take(LOG_TAIL).read_to_end(&mut tail)?;
            Ok(String::from_utf8_lossy(&tail).trim().to_owned())
        };
        read().unwrap_or_default()
    }

    /// Has it be as it was before this clone.
    fn undo(&self) {
        if self.made {
            return self.dir.remove(&self.name, self.identity);
        }
        let undone = self.dir.append(&self.name).and_then(|(file, _)| {
            let metadata = file.metadata()?;
            match (metadata.dev(), metadata.ino()) == self.identity {
                true => file.set_len(self.begin),
                false => Ok(()),
            }
        });
        if let Err(error) = undone {
            tracing::debug!(log = %self.path().display(), %error, "a failed clone's words stay");
        }
    }
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

/// A VMM that was started. Unless [`CloneProcess::release`] is called it is killed and its files
/// are removed on drop; when this program is killed, the VMM ends itself and removes them.
#[derive(Debug)]
pub(super) struct CloneProcess {
    name: String,
    child: Child,
    started: Instant,
    socket: PathBuf,
    /// The socket that was there before, of a VMM that is gone.
    stale_socket: Option<(u64, u64)>,
    log: Log,
    /// The copies of drives that it makes.
    copies: Vec<PathBuf>,
    /// It was asked to.
    asked: bool,
    /// The process ends when this is closed before a word has come through it: when this program is killed.
    lifeline: Option<ChildStdin>,
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
        let copies = copies(request);
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
        let files = copies.iter().chain(log.made.then_some(&log_path));
        for made in files.map(PathBuf::as_path).chain(start.doomed) {
            command.arg("--doomed").arg(made);
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
            copies,
            asked: false,
            lifeline,
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
        self.asked = true;
        if copies {
            self.load_copying(&mut client, request, interrupted)?;
        } else {
            let failed = |error| CloneError::Load(self.socket.clone(), error);
            client.load_snapshot(request).map_err(failed)?;
        }
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

    /// Waits for at most `patience` until the machine is ready: its guest has adapted to its generation, with so many agents, and its gate is open.
    pub(super) fn wait_until_ready(
        &mut self,
        agents: Option<u32>,
        patience: Duration,
        interrupted: &AtomicBool,
    ) -> Result<(GenerationWaited, Ready), CloneError> {
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
            let (waited, ready) = told.map_err(|error| self.why_silent(error))?;
            if ready.ready || left <= now {
                return Ok((waited, ready));
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
                    let _ = self.child.kill();
                }
            }
            loading
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        match interrupted.load(Ordering::Relaxed) {
            true => Err(CloneError::Interrupted),
            false => loaded.map_err(|error| {
                // A VMM that refuses takes away what it has made; what is left there is somebody else's, who was faster.
                if matches!(error, ClientError::Fault { .. }) {
                    self.copies.clear();
                }
                CloneError::Load(self.socket.clone(), error)
            }),
        }
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
    }
}

/// A copy, or an overlay, which may be a copy of another one.
fn makes_a_file(drive: &DriveOverride) -> bool {
    drive.copy || drive.overlay
}

/// The copies of drives that `request` will have made: what is there already is somebody else's, and the request will fail.
fn copies(request: &SnapshotLoad) -> Vec<PathBuf> {
    let drives = request.drive_overrides.iter();
    drives
        .filter(|drive| makes_a_file(drive) && fs::symlink_metadata(&drive.path_on_host).is_err())
        .map(|drive| drive.path_on_host.clone())
        .collect()
}

impl Drop for CloneProcess {
    fn drop(&mut self) {
        if self.lifeline.is_none() {
            return; // released
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Before it was asked they would be somebody else's.
        for made in self.copies.iter().filter(|_| self.asked) {
            let _ = fs::remove_file(made);
        }
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
