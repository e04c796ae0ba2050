//! `vmgenie clone`: several machines from one snapshot, at once.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use thiserror::Error;
use vmgenie_api::wire::SnapshotLoad;
use vmm_sys_util::signal::register_signal_handler;

use super::args::{CloneArgs, Generation};
use super::client_commands::load_request;
use super::clone_dir::{CloneDir, CloneDirError};
use super::clone_process::{
    CloneError, CloneProcess, CloneReport, Start, check_socket, socket_path,
};
use super::host_things::{self, Shared, Warning};
use super::output::{show, table};
use super::requests::{OverrideError, override_devices};
use super::{FAILURE, Failure};

/// The stack of a thread that starts one clone, in bytes.
const STACK_SIZE: usize = 256 << 10;

/// Why there are no clones.
#[derive(Debug, Error)]
pub(super) enum ClonesError {
    #[error(
        "{0} machines with --generation keep would be one machine several times, with the same secrets: keep it in one (-n 1), or leave the option out"
    )]
    Keep(u16),
    #[error(transparent)]
    Shared(#[from] Shared),
    #[error(transparent)]
    Directory(#[from] CloneDirError),
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
    pub(super) fn into_failure(self) -> Failure {
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
pub(super) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

pub(super) fn clone(args: &CloneArgs, json: bool) -> Result<(), Failure> {
    let number = args.clones.number;
    if number > 1 && args.generation == Generation::Keep {
        return Err(ClonesError::Keep(number).into());
    }
    let requests = requests(args)?;
    // Whatever can be refused is refused before there is a process, a socket or a log.
    let devices = host_things::check(&requests)?;
    host_things::check_shared(None, &devices).map_err(ClonesError::from)?;
    let warnings = host_things::warnings(&devices);
    let program = program()?;
    end_on_signals();
    let dir =
        CloneDir::make(args.clones.dir.as_deref(), "vmgenie-clones").map_err(ClonesError::from)?;
    check_sockets(&dir, number)?;
    host_things::tell(&devices);
    for warning in &warnings {
        eprintln!("warning: {}", warning.message);
    }
    let start = Start {
        program: &program,
        dir: dir.dir(),
        name: "clone",
        dir_goes: false,
        doomed: None,
    };
    let started = in_parallel(requests.iter().collect(), |number, request| {
        let mut process = CloneProcess::start(&start, number, request)?;
        let report = process.load(request, &INTERRUPTED)?;
        Ok((process, report))
    })
    .map_err(ClonesError::into_failure)?;
    check_interrupted()?;
    let (processes, clones): (Vec<_>, Vec<_>) = started.into_iter().unzip();
    processes.into_iter().for_each(CloneProcess::release);
    let shown = Clones {
        dir: dir.keep(),
        clones,
        warnings,
    };
    show(json, &shown, text)
}

/// The program that a clone runs: this one.
pub(super) fn program() -> Result<PathBuf, ClonesError> {
    std::env::current_exe().map_err(ClonesError::Program)
}

/// Has the signals that end a program be looked for: [`INTERRUPTED`].
pub(super) fn end_on_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // Without a handler an interrupted run would leave machines behind; that is no reason not
        // to start them.
        let _ = register_signal_handler(signal, on_signal);
    }
}

pub(super) fn check_interrupted() -> Result<(), ClonesError> {
    match INTERRUPTED.load(Ordering::Relaxed) {
        true => Err(ClonesError::Interrupted),
        false => Ok(()),
    }
}

/// Looks whether all clones can have their sockets.
pub(super) fn check_sockets(dir: &CloneDir, number: u16) -> Result<(), ClonesError> {
    (1..=number).try_for_each(|number| {
        check_socket(&socket_path(dir.dir().path(), number))
            .map_err(|error| ClonesError::Socket(number, error))
    })
}

/// What each clone's VMM will be asked for.
fn requests(args: &CloneArgs) -> Result<Vec<SnapshotLoad>, Failure> {
    let request = load_request(&args.snapshot, args.generation.into(), true)?;
    let requests = (1..=args.clones.number)
        .map(|number| {
            let mut request = request.clone();
            override_devices(&mut request, &args.clones.overrides, Some(number))?;
            Ok(request)
        })
        .collect::<Result<Vec<_>, OverrideError>>()?;
    Ok(requests)
}

/// Does a piece of work for each clone, each in a thread of its own. All are waited for. When one fails, what the others have come to is dropped.
pub(super) fn in_parallel<T: Send, R: Send>(
    clones: Vec<T>,
    work: impl Fn(u16, T) -> Result<R, CloneError> + Sync,
) -> Result<Vec<R>, ClonesError> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (1..)
            .zip(clones)
            .map(|(number, clone)| {
                std::thread::Builder::new()
                    .stack_size(STACK_SIZE)
                    .spawn_scoped(scope, move || {
                        work(number, clone).map_err(|error| ClonesError::Clone(number, error))
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
