//! The snapshot of the original.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use thiserror::Error;
use vmgenie_api::client::{Client, ClientError, SnapshotCreated};
use vmgenie_api::wire::{SnapshotCreate, SnapshotType};
use vmgenie_machine::request::{MEMORY_FILE, STATE_FILE};

use super::super::args::ForkArgs;
use super::super::clone::{ClonesError, check_interrupted};
use super::super::cooperation::{FallbackArg, asked};

/// How often to look for an interruption.
const LOOK: Duration = Duration::from_millis(20);

/// Why there is no snapshot.
#[derive(Debug, Error)]
pub(super) enum TakingError {
    #[error(transparent)]
    Interrupted(#[from] ClonesError),
    #[error("could not start a thread")]
    Thread(#[source] std::io::Error),
    #[error("{0} was not forked; `--fallback plain` forks a guest that takes no part")]
    NoPart(String, #[source] ClientError),
    #[error("{machine} was not forked: there is no snapshot of it in {dir}")]
    Failed {
        machine: String,
        dir: PathBuf,
        #[source]
        source: ClientError,
    },
}

/// Has the snapshot taken, with the guest. When this is interrupted, the request is left alone, and this program ends.
pub(super) fn take(
    mut client: Client,
    args: &ForkArgs,
    dir: &Path,
) -> Result<SnapshotCreated, TakingError> {
    let request = SnapshotCreate {
        snapshot_type: SnapshotType::Full,
        snapshot_path: dir.join(STATE_FILE),
        mem_file_path: dir.join(MEMORY_FILE),
        resume_vm: false,
        pause_vm: true,
        // The original goes on, and writes to its own.
        copy_drives: true,
        cooperative: Some(asked(args.quiesce, args.fallback)),
    };
    let (tell, told) = mpsc::sync_channel(1);
    thread::Builder::new()
        .spawn(move || {
            // Who was interrupted does not listen any more.
            let _ = tell.send(client.create_snapshot(&request));
        })
        .map_err(TakingError::Thread)?;
    loop {
        match told.recv_timeout(LOOK) {
            Ok(made) => return made.map_err(|error| failed(error, args, dir)),
            Err(RecvTimeoutError::Timeout) => check_interrupted()?,
            // A thread that panics ends the program, or has said why.
            Err(RecvTimeoutError::Disconnected) => {
                return Err(TakingError::Thread(std::io::ErrorKind::Other.into()));
            }
        }
    }
}

fn failed(error: ClientError, args: &ForkArgs, dir: &Path) -> TakingError {
    let machine = args.machine.clone();
    match &error {
        ClientError::Fault { message, .. }
            if args.fallback == FallbackArg::Refuse && message.contains("does not take part") =>
        {
            TakingError::NoPart(machine, error)
        }
        _ => TakingError::Failed {
            machine,
            dir: dir.to_owned(),
            source: error,
        },
    }
}
