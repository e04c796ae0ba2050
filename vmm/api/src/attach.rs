//! The client's side of GET `/console`: attaches to a machine's serial console.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::headers::CONSOLE_PROTOCOL;
use crate::limits::{HEAD_LIMIT, MAX_PATH};
use crate::wire::Fault;

/// The longest refusal that is read, in bytes.
const FAULT_LIMIT: u64 = 64 << 10;

/// Why nobody is attached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The path is too long for a socket.
    #[error("could not reach the VMM at {0}: the path of a socket has {MAX_PATH} bytes at most, and this one has {len}", len = .0.as_os_str().len())]
    TooLong(PathBuf),
    /// Nobody listens there, or the connection broke.
    #[error("could not reach the VMM at {0}")]
    Io(PathBuf, #[source] io::Error),
    /// The VMM does not attach.
    #[error("the VMM at {0} refused: {1}")]
    Refused(PathBuf, String),
    /// The answer is not what the API promises.
    #[error("the answer of the VMM at {0} makes no sense")]
    Nonsense(PathBuf),
}

/// Attaches to the machine whose VMM listens on `socket`. The stream then carries the console: what the guest says is read from
/// it, what is written to it is typed.
pub fn attach(socket: &Path) -> Result<UnixStream, AttachError> {
    let failed = |error| AttachError::Io(socket.to_owned(), error);
    if socket.as_os_str().len() > MAX_PATH {
        return Err(AttachError::TooLong(socket.to_owned()));
    }
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    let request = format!(
        "GET /console HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: {CONSOLE_PROTOCOL}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let head = read_head(&mut stream).map_err(failed)?;
    match head.split(' ').nth(1) {
        Some("101") => Ok(stream),
        Some("400") => Err(AttachError::Refused(
            socket.to_owned(),
            fault(stream, &head),
        )),
        _ => Err(AttachError::Nonsense(socket.to_owned())),
    }
}

/// The head of the answer, and not a byte more: what follows is the console.
fn read_head(stream: &mut UnixStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == HEAD_LIMIT {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    String::from_utf8(head).map_err(|_| ErrorKind::InvalidData.into())
}

/// What the VMM says.
fn fault(stream: UnixStream, head: &str) -> String {
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_it = name.eq_ignore_ascii_case("content-length");
        is_it.then(|| value.trim().parse::<u64>().ok())?
    });
    let mut body = Vec::new();
    // What is missing is not shown.
    let _ = stream
        .take(length.unwrap_or(0).min(FAULT_LIMIT))
        .read_to_end(&mut body);
    serde_json::from_slice(&body).map_or_else(
        |_| "no reason given".to_owned(),
        |fault: Fault| fault.fault_message,
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Attaches to somebody who answers so; returns what came of it and what was read of the console.
    fn answered(answer: &'static str) -> Result<String, AttachError> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let vmm = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            read_head(&mut client).unwrap();
            client.write_all(answer.as_bytes()).unwrap();
        });
        let mut text = String::new();
        let attached = attach(&socket).map(|mut stream| stream.read_to_string(&mut text));
        vmm.join().unwrap();
        attached.map(|_| text)
    }

    #[test]
    fn the_console_begins_behind_the_head() {
        let answer = "HTTP/1.1 101 Switching Protocols\r\nupgrade: vmgenie-console\r\n\r\nlogin: ";
        assert_eq!(answered(answer).unwrap(), "login: ");
    }

    #[test]
    fn a_refusal_is_told_and_nonsense_is_an_error() {
        let refusal =
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 24\r\n\r\n{\"fault_message\":\"busy\"}";
        let told = answered(refusal).unwrap_err().to_string();
        assert!(told.ends_with("refused: busy"), "{told}");
        for answer in ["HTTP/1.1 204 No Content\r\n\r\n", "\r\n\r\n", "x", ""] {
            assert!(answered(answer).is_err(), "{answer}");
        }
        assert!(attach(Path::new("/nowhere/s")).is_err());
        let long = attach(Path::new(&"x".repeat(108)));
        let told = long.unwrap_err().to_string();
        assert!(told.contains("107 bytes at most"), "{told}");
    }
}
