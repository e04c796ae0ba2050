//! `vmgenie clone`: several machines from one snapshot, at once.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;
use vmgenie_api::wire::SnapshotLoad;
use vmgenie_snapshot::own_files::{self, DirLock, LockError, OwnDir, Purpose, TrustError};
use vmm_sys_util::signal::register_signal_handler;

use super::args::{CloneArgs, Generation};
use super::client_commands::load_request;
use super::clone_process::{CloneError, CloneProcess, CloneReport, check_socket};
use super::host_things::{self, Shared, Warning};
use super::output::{show, table};
use super::requests::{OverrideError, override_devices};
use super::{FAILURE, Failure};

/// The stack of a thread that starts one clone, in bytes.
const STACK_SIZE: usize = 256 << 10;

/// Why there are no clones.
#[derive(Debug, Error)]
enum ClonesError {
    #[error(
        "{0} machines with --generation keep would be one machine several times, with the same secrets: keep it in one (-n 1), or leave the option out"
    )]
    Keep(u16),
    #[error(transparent)]
    Shared(#[from] Shared),
    #[error("clones cannot have their sockets and logs in {0}")]
    Directory(PathBuf, #[source] TrustError),
    #[error("could not tell where the directory {0} is")]
    Absolute(PathBuf, #[source] io::Error),
    #[error(
        "the directory {0} is in use by another `vmgenie clone`, or cannot be locked; choose another --dir"
    )]
    InUse(PathBuf, #[source] LockError),
    #[error("could not tell where this program is")]
    Program(#[source] io::Error),
    #[error("could not start a thread")]
    Thread(#[source] io::Error),
    #[error("clone {0} failed, so none was kept")]
    Clone(u16, #[source] CloneError),
    #[error("clone {0} could not be started, so none was")]
    Socket(u16, #[source] CloneError),
    #[error("interrupted, so no clone was kept")]
    Interrupted,
}

impl ClonesError {
    /// With the status that the process of a clone has ended with, where that tells more.
    fn into_failure(self) -> Failure {
        let status = match &self {
            Self::Clone(_, error) => error.status(),
            _ => FAILURE,
        };
        Failure {
            error: self.into(),
            status,
        }
    }
}

#[derive(Debug, Serialize)]
struct Clones {
    dir: PathBuf,
    clones: Vec<CloneReport>,
    warnings: Vec<Warning>,
}

/// Set by SIGINT, SIGTERM and SIGHUP: end the clones that were started, then this process.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

pub(super) fn clone(args: &CloneArgs, json: bool) -> Result<(), Failure> {
    if args.number > 1 && args.generation == Generation::Keep {
        return Err(ClonesError::Keep(args.number).into());
    }
    let requests = requests(args)?;
    // Whatever can be refused is refused before there is a process, a socket or a log.
    let devices = host_things::check(&requests)?;
    host_things::check_shared(&devices).map_err(ClonesError::from)?;
    let warnings = host_things::warnings(&devices);
    let program = std::env::current_exe().map_err(ClonesError::Program)?;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // Without a handler an interrupted run would leave machines behind; that is no reason not
        // to start them.
        let _ = register_signal_handler(signal, on_signal);
    }
    let dir = CloneDir::make(args.dir.as_deref())?;
    for number in 1..=args.number {
        check_socket(dir.dir.path(), number).map_err(|error| ClonesError::Socket(number, error))?;
    }
    host_things::tell(&devices);
    for warning in &warnings {
        eprintln!("warning: {}", warning.message);
    }
    let started = start_all(&program, &dir.dir, &requests).map_err(ClonesError::into_failure)?;
    if INTERRUPTED.load(Ordering::Relaxed) {
        return Err(ClonesError::Interrupted.into());
    }
    let (processes, clones): (Vec<_>, Vec<_>) = started.into_iter().unzip();
    processes.into_iter().for_each(CloneProcess::release);
    let shown = Clones {
        dir: dir.keep(),
        clones,
        warnings,
    };
    show(json, &shown, text)
}

/// What each clone's VMM will be asked for.
fn requests(args: &CloneArgs) -> Result<Vec<SnapshotLoad>, Failure> {
    let request = load_request(&args.snapshot, args.generation.into(), true)?;
    let requests = (1..=args.number)
        .map(|number| {
            let mut request = request.clone();
            override_devices(&mut request, &args.overrides, Some(number))?;
            Ok(request)
        })
        .collect::<Result<Vec<_>, OverrideError>>()?;
    Ok(requests)
}

/// Starts the clones, each in a thread of its own. Those that were started are ended when one
/// fails.
fn start_all(
    program: &Path,
    dir: &Arc<OwnDir>,
    requests: &[SnapshotLoad],
) -> Result<Vec<(CloneProcess, CloneReport)>, ClonesError> {
    std::thread::scope(|scope| {
        let start = |number, request| {
            let mut process = CloneProcess::start(program, Arc::clone(dir), number, request)?;
            let report = process.load(request, &INTERRUPTED)?;
            Ok((process, report))
        };
        let threads: Vec<_> = (1..)
            .zip(requests)
            .map(|(number, request)| {
                std::thread::Builder::new()
                    .stack_size(STACK_SIZE)
                    .spawn_scoped(scope, move || {
                        start(number, request).map_err(|error| ClonesError::Clone(number, error))
                    })
                    .map_err(ClonesError::Thread)
            })
            .collect();
        let joined = threads.into_iter().map(|thread| {
            thread?
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        // All are waited for before the first error is looked at: what they have started is
        // dropped, and so ended, here.
        let results: Vec<Result<_, ClonesError>> = joined.collect();
        results.into_iter().collect()
    })
}

fn text(shown: &Clones) -> String {
    let row = |clone: &CloneReport| {
        [
            clone.pid.to_string(),
            clone.socket.display().to_string(),
            clone.generation_id.clone(),
            format!("{:.2}", clone.running_ms),
            format!("{:.2}", clone.load_ms),
        ]
    };
    table(
        [
            "PID",
            "SOCKET",
            "GENERATION ID",
            "MS TO RUNNING",
            "MS TO LOAD",
        ],
        shown.clones.iter().map(row).collect(),
    )
}

/// The directory of sockets and logs, in which no other `vmgenie clone` is at work. One that was
/// made here is removed again when there are no clones.
struct CloneDir {
    dir: Arc<OwnDir>,
    /// While clones are started.
    lock: Option<DirLock>,
    remove: bool,
}

impl CloneDir {
    fn make(wanted: Option<&Path>) -> Result<Self, ClonesError> {
        let dir = match wanted {
            Some(path) => {
                let path = std::path::absolute(path)
                    .map_err(|error| ClonesError::Absolute(path.to_owned(), error))?;
                OwnDir::make(&path).map_err(|error| ClonesError::Directory(path, error))?
            }
            None => Self::make_fresh()?,
        };
        let lock = own_files::lock(dir.file(), Purpose::Clones, Duration::ZERO)
            .map_err(|error| ClonesError::InUse(dir.path().to_owned(), error))?;
        Ok(Self {
            dir: Arc::new(dir),
            lock: Some(lock),
            remove: true,
        })
    }

    fn make_fresh() -> Result<OwnDir, ClonesError> {
        let parent = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        // Root may have that of another user, who could exchange what is in it.
        let parent = parent
            .filter(|dir| own_files::is_trusted_dir(dir))
            .unwrap_or_else(std::env::temp_dir);
        let name = format!("vmgenie-clones-{}", std::process::id());
        for attempt in 0..1000 {
            let path = parent.join(match attempt {
                0 => name.clone(),
                more => format!("{name}-{more}"),
            });
            match OwnDir::make_new(&path) {
                Ok(dir) => return Ok(dir),
                Err(TrustError::Make(_, error)) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(ClonesError::Directory(path, error)),
            }
        }
        let error = TrustError::Make(parent.join(name), ErrorKind::AlreadyExists.into());
        Err(ClonesError::Directory(parent, error))
    }

    fn keep(mut self) -> PathBuf {
        self.remove = false;
        self.dir.path().to_owned()
    }
}

impl Drop for CloneDir {
    fn drop(&mut self) {
        // Its file is in the directory.
        self.lock = None;
        if self.remove {
            self.dir.remove_if_made();
        }
    }
}
