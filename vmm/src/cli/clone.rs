//! `vmgenie clone`: several machines from one snapshot, at once.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use thiserror::Error;
use vmm_sys_util::signal::register_signal_handler;

use super::Failure;
use super::args::CloneArgs;
use super::client_commands::load_request;
use super::clone_process::{CloneError, CloneProcess, CloneReport};
use super::devices::{OverrideError, override_devices};
use super::host_things;
use super::output::{show, table};
use crate::api::wire::SnapshotLoad;

/// The stack of a thread that starts one clone, in bytes.
const STACK_SIZE: usize = 256 << 10;

/// Why there are no clones.
#[derive(Debug, Error)]
enum ClonesError {
    #[error("could not make the directory {0}")]
    Directory(PathBuf, #[source] io::Error),
    #[error("could not tell where this program is")]
    Program(#[source] io::Error),
    #[error("could not start a thread")]
    Thread(#[source] io::Error),
    #[error("clone {0} failed, so none was kept")]
    Clone(u16, #[source] CloneError),
    #[error("interrupted, so no clone was kept")]
    Interrupted,
}

#[derive(Debug, Serialize)]
struct Clones {
    dir: PathBuf,
    clones: Vec<CloneReport>,
}

/// Set by SIGINT, SIGTERM and SIGHUP: end the clones that were started, then this process.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

pub(super) fn clone(args: &CloneArgs, json: bool) -> Result<(), Failure> {
    let request = load_request(&args.snapshot, args.generation.into(), true)?;
    let program = std::env::current_exe().map_err(ClonesError::Program)?;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // Without a handler an interrupted run would leave machines behind; that is no reason not
        // to start them.
        let _ = register_signal_handler(signal, on_signal);
    }
    let dir = CloneDir::make(args.dir.as_deref())?;
    let requests = (1..=args.number)
        .map(|number| {
            let mut request = request.clone();
            override_devices(&mut request, &args.overrides, Some(number))?;
            Ok(request)
        })
        .collect::<Result<Vec<_>, OverrideError>>()?;
    host_things::tell(&requests);
    let started = start_all(&program, &dir.path, &requests)?;
    if INTERRUPTED.load(Ordering::Relaxed) {
        return Err(ClonesError::Interrupted.into());
    }
    let (processes, clones): (Vec<_>, Vec<_>) = started.into_iter().unzip();
    processes.into_iter().for_each(CloneProcess::release);
    let shown = Clones {
        dir: dir.keep(),
        clones,
    };
    show(json, &shown, text)
}

/// Starts the clones, each in a thread of its own. Those that were started are ended when one
/// fails.
fn start_all(
    program: &Path,
    dir: &Path,
    requests: &[SnapshotLoad],
) -> Result<Vec<(CloneProcess, CloneReport)>, ClonesError> {
    std::thread::scope(|scope| {
        let start = |number, request| {
            let mut process = CloneProcess::start(program, dir, number, request)?;
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

/// The directory of sockets and logs. One that was made here is removed again when there are no
/// clones.
struct CloneDir {
    path: PathBuf,
    remove: bool,
}

impl CloneDir {
    fn make(wanted: Option<&Path>) -> Result<Self, ClonesError> {
        let Some(path) = wanted else {
            return Self::make_fresh();
        };
        let failed = |error| ClonesError::Directory(path.to_owned(), error);
        let path = std::path::absolute(path).map_err(failed)?;
        let remove = !path.exists();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(failed)?;
        Ok(Self { path, remove })
    }

    fn make_fresh() -> Result<Self, ClonesError> {
        let parent = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let parent = parent
            .filter(|dir| dir.is_dir())
            .unwrap_or_else(std::env::temp_dir);
        let name = format!("vmgenie-clones-{}", std::process::id());
        let mut attempt = 0_u32;
        loop {
            let path = parent.join(match attempt {
                0 => name.clone(),
                more => format!("{name}-{more}"),
            });
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path, remove: true }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists && attempt < 1000 => {
                    attempt += 1;
                }
                Err(error) => return Err(ClonesError::Directory(path, error)),
            }
        }
    }

    fn keep(mut self) -> PathBuf {
        self.remove = false;
        std::mem::take(&mut self.path)
    }
}

impl Drop for CloneDir {
    fn drop(&mut self) {
        if self.remove {
            let _ = fs::remove_dir(&self.path); // only an empty one goes
        }
    }
}
