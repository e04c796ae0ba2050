//! Writing a snapshot of the machine, and restoring one.

use std::time::{Duration, Instant};

use vmgenie_machine::request::{CreateSnapshot, HostPaths, LoadSnapshot};
use vmgenie_machine::{DriveCopies, Host, Machine};
use vmgenie_snapshot::end_request;
use vmgenie_snapshot::{
    CreateError, LoadError, LoadedSnapshot, Staging, open_judged, open_snapshot,
};

use super::command::{CommandError, CommandResult, Reply, SnapshotCreated};
use super::{Controller, NOT_AFTER_CONFIGURING, NOT_AFTER_START, refused};

impl Controller {
    pub(super) fn load_snapshot(&mut self, request: &LoadSnapshot) -> CommandResult {
        let why_not = match (&self.machine, self.configured) {
            (None, false) => None,
            (None, true) => Some(NOT_AFTER_CONFIGURING),
            (Some(_), _) => Some(NOT_AFTER_START),
        };
        if let Some(sentence) = why_not {
            return Err(CommandError(format!(
                "{sentence} A snapshot can be loaded only into a VMM in which nothing was configured or started: start \
                 another vmgenie for it"
            )));
        }
        let begun = Instant::now();
        let loaded = open(request).map_err(refused)?;
        if let Some(wanted) = request.id.filter(|wanted| *wanted != loaded.id) {
            return Err(CommandError(format!(
                "{:?} is of the snapshot {}, not of {wanted} as it was when it was looked at: somebody has put another one there; look again",
                request.state, loaded.id
            )));
        }
        let vm = self.take_vm().map_err(refused)?;
        let io = self.io().map_err(refused)?;
        let restored = Machine::restore(&self.host, vm, loaded, request, io).map_err(refused);
        let restored = restored.and_then(|(mut machine, copies)| {
            machine.allow_self_fork(self.self_snapshots.is_some());
            if request.resume {
                machine.resume(&self.host).map_err(refused)?;
            }
            Ok((machine, copies))
        });
        // One that is not there has no gate.
        let (machine, copies) = restored.inspect_err(|_| self.readiness.begin(false, None))?;
        copies.keep();
        self.machine = Some(machine);
        self.restored_from = Some((request.state.clone(), request.memory.clone()));
        tracing::info!(took = ?begun.elapsed(), "snapshot restored");
        Ok(Reply::Done)
    }
}

/// Whose the snapshot is costs system calls, and matters to some requests only.
fn open(request: &LoadSnapshot) -> Result<LoadedSnapshot, LoadError> {
    match request.host_paths {
        HostPaths::Trusted => open_judged(&request.state, &request.memory),
        HostPaths::Any | HostPaths::NamedOnly => open_snapshot(&request.state, &request.memory),
    }
}

/// Whether the guest stands still at its fork point, and waits to be told how it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AtForkPoint {
    Yes,
    No,
}

/// Why there is no snapshot. A guest that stood at its fork point goes on.
#[derive(Debug)]
pub(super) enum NotCreated {
    /// Between the guest's word and the standstill it has given up.
    GaveUp,
    Failed(CommandError),
}

impl From<CommandError> for NotCreated {
    fn from(error: CommandError) -> Self {
        Self::Failed(error)
    }
}

impl From<NotCreated> for CommandError {
    fn from(why: NotCreated) -> Self {
        match why {
            NotCreated::Failed(error) => error,
            NotCreated::GaveUp => {
                Self("the guest stood still, but was not snapshotted in time: try again".to_owned())
            }
        }
    }
}

pub(super) fn create_snapshot(
    host: &Host,
    machine: &mut Machine,
    request: &CreateSnapshot,
    at: AtForkPoint,
) -> Result<SnapshotCreated, NotCreated> {
    let begun = Instant::now();
    let runs = machine.is_running();
    if runs && !request.pause && at == AtForkPoint::No {
        return Err(NotCreated::Failed(CommandError(
            "the microVM runs: pause it before a snapshot (PATCH /vm {\"state\": \"Paused\"}), or have it paused (\"pause_vm\": true)"
                .to_owned(),
        )));
    }
    let paused = match runs {
        true => machine.pause().map_err(refused),
        false => Ok(()),
    };
    let copied = match (paused, at) {
        (Err(error), _) => Err(NotCreated::Failed(error)),
        (Ok(()), AtForkPoint::Yes) if !machine.is_at_fork_point() => Err(NotCreated::GaveUp),
        (Ok(()), _) => copy_machine(host, machine, request).map_err(NotCreated::Failed),
    };
    if at == AtForkPoint::Yes {
        match &copied {
            Ok(_) => machine.end_fork_as_original(),
            Err(_) => machine.call_fork_off(),
        };
    }
    let standstill = begun.elapsed();
    // Also when the copy failed: the guest shall not pay for a full disk.
    if (request.resume || runs) && !machine.is_running() {
        machine.resume(host).map_err(refused)?;
    }
    let (staging, state, copies, memory_bytes) = copied?;
    // What waits for a disk cannot be called off: looked at before each such wait.
    end_request::check().map_err(refused)?;
    machine.sync_drives().map_err(refused)?;
    end_request::check().map_err(refused)?;
    copies.sync().map_err(refused)?;
    end_request::check().map_err(refused)?;
    publish(staging, &state, copies, request).map_err(refused)?;
    let created = created(begun, standstill, memory_bytes);
    tracing::info!(?created, "snapshot written");
    Ok(created)
}

/// What the machine stands still for: its state, copies of its drives, and its memory in a file that nobody sees yet; how many bytes that were.
fn copy_machine(
    host: &Host,
    machine: &Machine,
    request: &CreateSnapshot,
) -> Result<(Staging, Vec<u8>, DriveCopies, u64), CommandError> {
    let mut staging = Staging::new(&request.state, &request.memory).map_err(refused)?;
    let state_path = staging.state_path();
    let copies = match request.copy_drives {
        true => machine.copy_drives(&state_path, staging.id()),
        false => Ok(DriveCopies::none(&state_path, staging.id())),
    };
    let copies = copies.map_err(refused)?;
    let state = machine.save(host, staging.id(), &copies).map_err(refused)?;
    let sources = machine.memory_sources().map_err(refused)?;
    let written = staging.write_memory(&sources).map_err(refused)?;
    Ok((staging, state, copies, written.written))
}

/// Gives the snapshot its names. Its copies of drives stay exactly if its state file does.
fn publish(
    mut staging: Staging,
    state: &[u8],
    copies: DriveCopies,
    request: &CreateSnapshot,
) -> Result<(), CreateError> {
    staging.write_state(state)?;
    staging.sync()?;
    let state_path = staging.state_path();
    match staging.publish() {
        Ok(()) => {
            copies.keep();
            DriveCopies::remove_replaced(&state_path, &request.memory);
            Ok(())
        }
        // It is there, but perhaps not yet for good: after a crash of the host the older one may be, which needs its copies.
        Err(error @ CreateError::Unfinished { .. }) => {
            copies.keep();
            Err(error)
        }
        Err(error) => Err(error),
    }
}

fn created(begun: Instant, standstill: Duration, memory_bytes: u64) -> SnapshotCreated {
    SnapshotCreated {
        standstill,
        total: begun.elapsed(),
        memory_bytes,
        cooperation: None,
    }
}

#[cfg(test)]
#[path = "snapshots_test.rs"]
mod tests;
