//! `vmgenie ps` and `vmgenie stop`: the machines of this host.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use thiserror::Error;

use super::Failure;
use super::args::StopArgs;
use super::output::{show, table};
use crate::api::wire::{Action, ActionType, State};
use crate::client::Client;
use crate::registry::{self, Entry};

/// How long a machine may take to tell its state.
const ASK: Duration = Duration::from_secs(1);
/// How long a process may take to end after SIGTERM.
const TERM: Duration = Duration::from_secs(5);
/// How often to look whether it has.
const POLL: Duration = Duration::from_millis(10);

/// Why a machine was not stopped.
#[derive(Debug, Error)]
pub(super) enum StopError {
    #[error("there is no machine {0}: see `vmgenie ps`")]
    None(String),
    #[error("{1} machines are named {0}: name one by its process, see `vmgenie ps`")]
    Several(String, usize),
    #[error("the process {0} could not be ended")]
    Signal(i32, #[source] std::io::Error),
    #[error("the process {0} has not ended within {1:?}")]
    Slow(i32, Duration),
}

#[derive(Debug, Serialize)]
struct Shown {
    pid: i32,
    id: String,
    /// None if it serves no API or does not answer.
    state: Option<State>,
    api_socket: Option<std::path::PathBuf>,
}

pub(super) fn ps(json: bool) -> Result<(), Failure> {
    let shown: Vec<Shown> = registry::list().into_iter().map(look_at).collect();
    show(json, &shown, |shown| {
        let row = |machine: &Shown| {
            [
                machine.pid.to_string(),
                machine.id.clone(),
                machine.state.map_or("-", State::as_str).to_owned(),
                machine
                    .api_socket
                    .as_ref()
                    .map_or("-".to_owned(), |socket| socket.display().to_string()),
            ]
        };
        table(
            ["PID", "ID", "STATE", "SOCKET"],
            shown.iter().map(row).collect(),
        )
    })
}

fn look_at(entry: Entry) -> Shown {
    let state = entry.api_socket.as_deref().and_then(state_of);
    Shown {
        pid: entry.pid,
        id: entry.id,
        state,
        api_socket: entry.api_socket,
    }
}

fn state_of(socket: &Path) -> Option<State> {
    let mut client = Client::new(socket).ok()?;
    client.set_timeout(Some(ASK));
    client.info().ok().map(|info| info.state)
}

#[derive(Debug, Serialize)]
struct Stopped {
    pid: i32,
    id: String,
    /// The guest powered itself off, and was not ended from outside.
    powered_off: bool,
}

pub(super) fn stop(args: &StopArgs, json: bool) -> Result<(), Failure> {
    let entry = find(&args.machine)?;
    let powered_off = match (args.power_off, &entry.api_socket) {
        (Some(patience), Some(socket)) => {
            // One that does not answer is ended from outside.
            press_power_button(socket).unwrap_or(false) && ended(&entry, patience)
        }
        _ => false,
    };
    if !powered_off && entry.lives() {
        terminate(&entry)?;
    }
    let stopped = Stopped {
        pid: entry.pid,
        id: entry.id,
        powered_off,
    };
    show(json, &stopped, |stopped| {
        let how = if stopped.powered_off {
            "Powered off"
        } else {
            "Ended"
        };
        format!("{how}: {} ({}).", stopped.id, stopped.pid)
    })
}

fn press_power_button(socket: &Path) -> Result<bool, Failure> {
    let mut client = Client::new(socket)?;
    client.set_timeout(Some(ASK));
    // One that has no guest yet, or stands still, is ended from outside.
    let pressed = client.info()?.state == State::Running
        && client
            .action(&Action {
                action_type: ActionType::SendCtrlAltDel,
            })
            .is_ok();
    Ok(pressed)
}

fn terminate(entry: &Entry) -> Result<(), StopError> {
    let failed = |error: rustix::io::Errno| StopError::Signal(entry.pid, error.into());
    let pid = Pid::from_raw(entry.pid).ok_or(StopError::None(entry.id.clone()))?;
    match kill_process(pid, Signal::TERM) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(failed(error)),
    }
    match ended(entry, TERM) {
        true => Ok(()),
        false => Err(StopError::Slow(entry.pid, TERM)),
    }
}

fn ended(entry: &Entry, patience: Duration) -> bool {
    let begun = Instant::now();
    while entry.lives() {
        if begun.elapsed() > patience {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// The machine of this name, process number or socket.
pub(super) fn find(wanted: &str) -> Result<Entry, StopError> {
    let socket = std::path::absolute(wanted).ok();
    let is_meant = |entry: &Entry| {
        entry.id == wanted
            || entry.pid.to_string() == wanted
            || entry.api_socket == socket && socket.is_some()
    };
    let mut found: Vec<Entry> = registry::list().into_iter().filter(is_meant).collect();
    match (found.pop(), found.len()) {
        (Some(entry), 0) => Ok(entry),
        (None, _) => Err(StopError::None(wanted.to_owned())),
        (Some(_), others) => Err(StopError::Several(wanted.to_owned(), others + 1)),
    }
}
