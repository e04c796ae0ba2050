//! The leanest client there is: what is measured shall be the monitor, whichever it is.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// How long any answer may take: a full snapshot can take long.
const LIMIT: Duration = Duration::from_secs(120);
/// The longest answer that is read, in bytes.
const ANSWER_LIMIT: usize = 64 << 10;

/// A connection that is kept alive.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
}

/// What came back, and how long that took.
#[derive(Debug)]
pub(crate) struct Answer {
    /// From the first byte sent to the last byte received.
    pub(crate) took: Duration,
    head: String,
}

impl Answer {
    /// The number in a header, if it is there.
    pub(crate) fn number(&self, header: &str) -> Option<u64> {
        number(&self.head, header)
    }
}

impl Connection {
    /// Connects.
    pub(crate) fn new(socket: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self { stream })
    }

    /// Sends `body` and waits for the answer, which must be a success.
    pub(crate) fn send(&mut self, request: &str, body: &Value) -> Result<Answer> {
        let body = body.to_string();
        let message = format!(
            "{request} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let begun = Instant::now();
        self.stream
            .write_all(message.as_bytes())
            .with_context(|| format!("could not send {request}"))?;
        let answer = self
            .receive()
            .with_context(|| format!("no answer to {request}"))?;
        let took = begun.elapsed();
        let (head, body) = answer;
        let status = head.split(' ').nth(1).unwrap_or_default();
        ensure!(
            status.starts_with('2'),
            "{request} was refused with status {status}: {body}"
        );
        Ok(Answer { took, head })
    }

    fn receive(&mut self) -> Result<(String, String)> {
        let mut bytes = Vec::with_capacity(1024);
        loop {
            let mut buffer = [0; 1024];
            let len = self.stream.read(&mut buffer)?;
            ensure!(len > 0, "the connection was closed");
            bytes.extend_from_slice(&buffer[..len]);
            let text = String::from_utf8_lossy(&bytes);
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && body.len() as u64 >= number(head, "content-length").unwrap_or(0)
            {
                return Ok((head.to_owned(), body.to_owned()));
            }
            if bytes.len() > ANSWER_LIMIT {
                bail!("the answer is longer than {ANSWER_LIMIT} bytes");
            }
        }
    }
}

fn number(head: &str, header: &str) -> Option<u64> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case(header)
            .then(|| value.trim().parse().ok())?
    })
}
