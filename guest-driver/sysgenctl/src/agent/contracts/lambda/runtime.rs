//! Which process is at the other end of a connection over loopback: its name is for the log, and it tells when
//! a runtime has ended.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::fault::printable;

/// How many processes above the one that calls are looked at.
const DEPTH: usize = 16;

/// A program that speaks the runtime API.
#[derive(Debug, Default)]
pub(super) struct Runtime(Option<Process>);

#[derive(Debug)]
struct Process {
    id: i32,
    name: String,
    /// Itself and those that have started it: a shell has another program make its calls. Those that have
    /// started this agent, too, are no runtime.
    files: Vec<OwnedFd>,
}

impl Runtime {
    /// The one that has connected from `peer` to `ours`, as far as it can be found.
    pub(super) fn at(peer: SocketAddr, ours: SocketAddr) -> Self {
        Self(socket(peer, ours).and_then(|inode| owner(&inode)))
    }

    /// Whether it is known to have ended: nobody is left who could go on.
    pub(super) fn has_ended(&self) -> bool {
        let Some(process) = &self.0 else { return false };
        let ended = |file: &OwnedFd| {
            let mut files = [PollFd::new(file, PollFlags::IN)];
            poll(&mut files, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
        };
        !process.files.is_empty() && process.files.iter().all(ended)
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(process) => write!(f, "the runtime {} (process {})", process.name, process.id),
            None => f.write_str("the runtime"),
        }
    }
}

/// The inode of the socket that is bound to `local` and connected to `remote`.
fn socket(local: SocketAddr, remote: SocketAddr) -> Option<String> {
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    let matches = |line: &&str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let ports = (fields.next().and_then(port), fields.next().and_then(port));
        ports == (Some(local.port()), Some(remote.port()))
    };
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .find_map(|table| {
            let table = fs::read_to_string(table).ok()?;
            let line = table.lines().find(matches)?;
            line.split_ascii_whitespace().nth(9).map(Into::into)
        })
}

/// The first process that has that socket open.
fn owner(inode: &str) -> Option<Process> {
    let link = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let id = ids.find(|id| has_open(*id, &link))?;
    let ours = ancestry(std::process::id().cast_signed());
    let theirs = ancestry(id);
    let theirs = theirs.iter().take_while(|id| !ours.contains(id));
    let open = |id: &i32| pidfd_open(Pid::from_raw(*id)?, PidfdFlags::empty()).ok();
    let files = theirs.map(open).collect::<Option<Vec<_>>>()?;
    // Whoever has got the number meanwhile does not have the socket.
    let name = fs::read_to_string(format!("/proc/{id}/comm")).ok()?;
    has_open(id, &link).then(|| Process {
        id,
        name: printable(name.trim_end()),
        files,
    })
}

/// A process and those that have started it, but for the first of the machine.
fn ancestry(id: i32) -> Vec<i32> {
    let parent = |id: &i32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // Its name, which comes before, may hold anything.
        let (_, after) = stat.rsplit_once(')')?;
        after.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    std::iter::successors(Some(id), parent)
        .take_while(|id| *id > 1)
        .take(DEPTH)
        .collect()
}

fn has_open(id: i32, link: &str) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{id}/fd")) else {
        return false;
    };
    let is_it = |path: &Path| fs::read_link(path).is_ok_and(|target| target == Path::new(link));
    files.flatten().any(|file| is_it(&file.path()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::process::{Child, Command, Stdio};
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Runs a script of bash that connects, until its input ends, and says who it is.
    fn connected(script: &str) -> (Child, Runtime) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = listener.local_addr().unwrap();
        let connect = format!("exec 3<>/dev/tcp/127.0.0.1/{}", ours.port());
        let child = Command::new("bash")
            .args(["-c", &script.replace("CONNECT", &connect)])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let (_stream, peer) = listener.accept().unwrap();
        (child, Runtime::at(peer, ours))
    }

    #[test]
    fn the_process_that_has_connected_is_known_by_name_and_its_end_is_seen() {
        let (mut child, runtime) = connected("CONNECT; read line");
        let name = format!("the runtime bash (process {})", child.id());
        assert_eq!(runtime.to_string(), name);
        assert!(!runtime.has_ended());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(runtime.has_ended());
    }

    #[test]
    fn a_shell_whose_program_has_made_the_call_and_ended_goes_on() {
        let (mut child, runtime) = connected("(CONNECT; read line <&0; exit 0); read line");
        child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let caller = runtime.0.as_ref().unwrap().id;
        assert_ne!(caller, child.id().cast_signed());
        while Path::new(&format!("/proc/{caller}")).exists() {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(!runtime.has_ended());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(runtime.has_ended());
    }

    #[test]
    fn one_that_cannot_be_found_is_none_that_has_ended() {
        let nowhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let runtime = Runtime::at(nowhere, nowhere);
        assert_eq!(
            (runtime.to_string().as_str(), runtime.has_ended()),
            ("the runtime", false)
        );
    }
}
