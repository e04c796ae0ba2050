//! `vmgenie ps` and `vmgenie stop`: the machines of this host.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};
use serde::Serialize;
use thiserror::Error;
use vmgenie_api::client::{self, Client, ClientError};
use vmgenie_api::wire::{Action, ActionType, Stage, State};

use super::Failure;
use super::args::StopArgs;
use super::output::{plain, show, table};
use super::units::parse_id;
use crate::registry::{self, Entry};

/// How long a machine may take to tell its state.
const ASK: Duration = Duration::from_secs(1);
/// How long a process may take to end after SIGTERM.
const TERM: Duration = Duration::from_secs(5);

/// Why a machine was not stopped.
#[derive(Debug, Error)]
pub(super) enum StopError {
    #[error("there is no machine {0}: see `vmgenie ps`")]
    None(String),
    #[error("{1} machines are named {0}: name one by its process, see `vmgenie ps`")]
    Several(String, usize),
    #[error(
        "the machine {0} serves no API, by which its power button could be pressed: stop it without --power-off, or power it off in its guest"
    )]
    NoApi(String),
    #[error(
        "the machine {0} serves no API: start it with --api-sock, or --serve when it is restored"
    )]
    Silent(String),
    #[error(
        "the process of the machine behind {0} cannot be seen from here: it is in another PID namespace"
    )]
    Elsewhere(PathBuf),
    #[error(
        "the machine behind {0} belongs to another user ({1}): only that user and root may end it"
    )]
    Foreign(PathBuf, u32),
    #[error(
        "the process {1}, which opened {0}, is not to be found any more: another user's may have its number. Look for the machine with ps(1), and end it with kill(1)"
    )]
    Replaced(PathBuf, i32),
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
    /// How far its guest has come with its generation; none if it has no guest yet.
    stage: Option<Stage>,
    api_socket: Option<PathBuf>,
}

pub(super) fn ps(json: bool) -> Result<(), Failure> {
    let shown: Vec<Shown> = registry::list().into_iter().map(look_at).collect();
    show(json, &shown, |shown| {
        let row = |machine: &Shown| {
            [
                machine.pid.to_string(),
                machine.id.clone(),
                machine.state.map_or("-", State::as_str).to_owned(),
                machine.stage.map_or("-", Stage::as_str).to_owned(),
                machine
                    .api_socket
                    .as_ref()
                    .map_or("-".to_owned(), |socket| socket.display().to_string()),
            ]
        };
        table(
            ["PID", "ID", "STATE", "STAGE", "SOCKET"],
            shown.iter().map(row).collect(),
        )
    })
}

fn look_at(entry: Entry) -> Shown {
    let (state, stage) = entry
        .api_socket
        .as_deref()
        .map_or((None, None), look_behind);
    Shown {
        pid: entry.pid,
        id: entry.id,
        state,
        stage,
        api_socket: entry.api_socket,
    }
}

fn look_behind(socket: &Path) -> (Option<State>, Option<Stage>) {
    let Ok(mut client) = Client::new(socket) else {
        return (None, None);
    };
    client.set_timeout(Some(ASK));
    let state = client.info().ok().map(|info| info.state);
    let has_guest = state.is_some_and(|state| state != State::NotStarted);
    // An older VMM does not tell.
    let ready = has_guest.then(|| client.ready().ok()).flatten();
    (state, ready.map(|ready| ready.stage))
}

#[derive(Debug, Serialize)]
struct Stopped {
    pid: i32,
    id: String,
    /// The guest powered itself off, and was not ended from outside.
    powered_off: bool,
}

pub(super) fn stop(args: &StopArgs, json: bool) -> Result<(), Failure> {
    let (entry, process) = match find(&args.machine) {
        Ok(entry) => {
            let process = Process::of(&entry)?;
            (entry, process)
        }
        Err(StopError::None(_)) if Path::new(&args.machine).exists() => {
            let (entry, process) = behind(Path::new(&args.machine))?;
            (entry, Some(process))
        }
        Err(error) => return Err(error.into()),
    };
    let powered_off = match (args.power_off, &process, &entry.api_socket) {
        (Some(_), Some(_), None) => return Err(StopError::NoApi(entry.id.clone()).into()),
        (Some(patience), Some(process), Some(socket)) => {
            // One that does not answer is ended from outside.
            press_power_button(socket).unwrap_or(false) && process.ended(patience)?
        }
        _ => false,
    };
    if !powered_off && let Some(process) = process {
        process.terminate()?;
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
        format!("{how}: {} ({}).", plain(&stopped.id), stopped.pid)
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

/// A machine's process, and no other one that comes to have its number.
struct Process {
    pid: i32,
    fd: OwnedFd,
}

impl Process {
    /// None if it has ended.
    fn of(entry: &Entry) -> Result<Option<Self>, StopError> {
        let pid = Pid::from_raw(entry.pid).ok_or_else(|| StopError::None(entry.id.clone()))?;
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => return Err(StopError::Signal(entry.pid, error.into())),
        };
        // Whose number it is, is looked at once no other process can come behind the descriptor.
        let pid = entry.pid;
        Ok(entry.lives().then_some(Self { pid, fd }))
    }

    /// Checks that it may be the one that `uid` had listen at `socket`. The kernel tells who called listen(2). That process
    /// may have ended since, a child of its may answer, and its number may be any other user's process by now. One of the
    /// same user's that user could have ended as well.
    fn check_is_of(&self, uid: u32, socket: &Path) -> Result<(), StopError> {
        let own = geteuid();
        if uid != own.as_raw() && !own.is_root() {
            return Err(StopError::Foreign(socket.to_owned(), uid));
        }
        let owner = owner_of(self.pid);
        // If it has not ended by now, it was the one that was looked at.
        let is_it = owner == Some(uid) && !self.ended(Duration::ZERO)?;
        // Without /proc nobody can tell. What belongs to us is then taken for it.
        let cannot_tell = owner.is_none() && !Path::new("/proc/self").exists();
        match is_it || cannot_tell && uid == own.as_raw() {
            true => Ok(()),
            false => Err(StopError::Replaced(socket.to_owned(), self.pid)),
        }
    }

    fn terminate(&self) -> Result<(), StopError> {
        match pidfd_send_signal(&self.fd, Signal::TERM) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(StopError::Signal(self.pid, error.into())),
        }
        match self.ended(TERM)? {
            true => Ok(()),
            false => Err(StopError::Slow(self.pid, TERM)),
        }
    }

    /// Waits until it has ended; false if it has not within `patience`.
    fn ended(&self, patience: Duration) -> Result<bool, StopError> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // At most ten minutes, so it fits.
            let left = Timespec::try_from(left).unwrap_or_default();
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(StopError::Signal(self.pid, error.into())),
            }
        }
    }
}

/// The effective user of a process. The owner of its directory in /proc is root where the process may not be looked into.
fn owner_of(pid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_whitespace().nth(1)?.parse().ok()
}

/// The machine that serves its API at `socket`, and that no registry knows: its process could not list itself.
fn behind(socket: &Path) -> Result<(Entry, Process), Failure> {
    client::fits(socket)?;
    let asked = UnixStream::connect(socket).and_then(|stream| Ok(socket_peercred(&stream)?));
    let peer = asked.map_err(|error| ClientError::Connect(socket.to_owned(), error))?;
    let pid = peer.pid.as_raw_nonzero().get();
    let fd = match pidfd_open(peer.pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(Errno::SRCH | Errno::INVAL) => {
            return Err(StopError::Elsewhere(socket.to_owned()).into());
        }
        Err(error) => return Err(StopError::Signal(pid, error.into()).into()),
    };
    let process = Process { pid, fd };
    process.check_is_of(peer.uid.as_raw(), socket)?;
    let mut client = Client::new(socket)?;
    client.set_timeout(Some(ASK));
    let entry = Entry {
        pid,
        start_ticks: 0,
        pid_namespace: 0,
        id: client.info()?.id,
        api_socket: Some(socket.to_owned()),
    };
    Ok((entry, process))
}

/// Where the machine of this name, process number or socket serves its API.
pub(super) fn socket_of(wanted: &str) -> Result<PathBuf, StopError> {
    match find(wanted) {
        Ok(Entry {
            api_socket: Some(socket),
            ..
        }) => Ok(socket),
        Ok(entry) => Err(StopError::Silent(entry.id)),
        // No name: a socket, perhaps of a machine whose process could not list itself. The client says if it is none.
        Err(StopError::None(_)) if parse_id(wanted).is_err() || Path::new(wanted).exists() => {
            Ok(wanted.into())
        }
        Err(error) => Err(error),
    }
}

/// The machine of this name, process number or socket.
fn find(wanted: &str) -> Result<Entry, StopError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use vmgenie_snapshot::not_looked_at::not_looked_at;

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = child.id().cast_signed();
        let entry = |start_ticks| Entry {
            pid,
            start_ticks,
            pid_namespace: registry::pid_namespace().unwrap(),
            id: "a".to_owned(),
            api_socket: None,
        };
        assert!(
            Process::of(&entry(1)).unwrap().is_none(),
            "another one's number"
        );
        let process = Process::of(&entry(registry::start_ticks(pid).unwrap()))
            .unwrap()
            .unwrap();
        assert!(!process.ended(Duration::from_millis(10)).unwrap());
        process.terminate().unwrap();
        assert!(process.ended(Duration::ZERO).unwrap());
        assert!(!child.wait().unwrap().success());
        process.terminate().unwrap();
    }

    #[test]
    fn the_process_behind_a_socket_is_ended_only_if_it_is_of_the_user_who_listens() {
        let own = geteuid().as_raw();
        let stranger = own + 4242;
        let socket = Path::new("vm.sock");
        let start = |uid: u32| {
            let mut command = std::process::Command::new("sleep");
            let mut child = std::os::unix::process::CommandExt::uid(command.arg("60"), uid)
                .spawn()
                .unwrap();
            let pid = child.id().cast_signed();
            let fd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
            let process = Process { pid, fd };
            let told = [own, stranger].map(|uid| process.check_is_of(uid, socket));
            child.kill().unwrap();
            let ended = process.ended(TERM).unwrap();
            assert!(ended && process.check_is_of(own, socket).is_err());
            child.wait().unwrap();
            assert!(process.check_is_of(own, socket).is_err());
            told
        };
        let [ours, strangers] = start(own);
        ours.unwrap();
        let why = strangers.unwrap_err();
        match own {
            0 => assert!(matches!(why, StopError::Replaced(..)), "{why}"),
            _ => assert!(
                matches!(why, StopError::Foreign(_, uid) if uid == stranger),
                "{why}"
            ),
        }
        if own != 0 {
            not_looked_at("only root may start and end others' processes");
            return;
        }
        // As if its number had been one of ours, and then one of that user's.
        let [ours, theirs] = start(stranger);
        assert!(matches!(ours, Err(StopError::Replaced(..))), "{ours:?}");
        theirs.unwrap();
    }

    #[test]
    fn what_can_be_no_name_is_a_socket() {
        for socket in ["vm.sock", "/run/vm", "./vm"] {
            assert_eq!(socket_of(socket).unwrap(), PathBuf::from(socket));
        }
        let none = socket_of("no-such-machine-0").unwrap_err();
        assert!(
            none.to_string()
                .starts_with("there is no machine no-such-machine-0")
        );
    }
}
