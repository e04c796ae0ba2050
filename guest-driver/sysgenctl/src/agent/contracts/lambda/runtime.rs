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

/// A program that speaks the runtime API.
#[derive(Debug, Default)]
pub(super) struct Runtime(Option<Process>);

#[derive(Debug)]
struct Process {
    id: i32,
    name: String,
    file: OwnedFd,
}

impl Runtime {
    /// The one that has connected from `peer` to `ours`, as far as it can be found.
    pub(super) fn at(peer: SocketAddr, ours: SocketAddr) -> Self {
        Self(socket(peer, ours).and_then(|inode| owner(&inode)))
    }

    /// Whether it is known to have ended.
    pub(super) fn has_ended(&self) -> bool {
        let Some(process) = &self.0 else { return false };
        let mut files = [PollFd::new(&process.file, PollFlags::IN)];
        poll(&mut files, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
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
    let file = pidfd_open(Pid::from_raw(id)?, PidfdFlags::empty()).ok()?;
    // Whoever has got the number meanwhile does not have the socket.
    let name = fs::read_to_string(format!("/proc/{id}/comm")).ok()?;
    has_open(id, &link).then(|| Process {
        id,
        name: printable(name.trim_end()),
        file,
    })
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
    use std::net::TcpListener;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_process_that_has_connected_is_known_by_name_and_its_end_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = listener.local_addr().unwrap();
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{}; read line", ours.port());
        let mut child = Command::new("bash")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let (_stream, peer) = listener.accept().unwrap();
        let runtime = Runtime::at(peer, ours);
        assert_eq!(
            runtime.to_string(),
            format!("the runtime bash (process {})", child.id())
        );
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
