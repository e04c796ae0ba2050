//! QEMU's machine protocol: one JSON object a line, over a Unix socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use vm_agent::patience::{Patience, stretched};

/// How long any answer may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long an asynchronous operation is left alone before it is asked for again.
const PAUSE: Duration = Duration::from_millis(2);

/// A connection to a QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// What has happened, as the lines in between have told.
    events: Vec<Value>,
}

impl Qmp {
    /// Connects to a QEMU that listens at `socket`, and reads its greeting.
    ///
    /// # Errors
    /// Where nobody listens yet.
    pub fn connect(socket: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(stretched(LIMIT)))?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
            events: Vec::new(),
        };
        let greeting = qmp.line().expect("QEMU greets");
        assert!(greeting.get("QMP").is_some(), "{greeting}");
        qmp.run("qmp_capabilities", json!({}));
        Ok(qmp)
    }

    /// Has QEMU do something, and returns its answer.
    ///
    /// # Panics
    /// When it refuses.
    pub fn run(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        let sent = self.stream.get_mut().write_all(request.as_bytes());
        sent.unwrap_or_else(|error| panic!("{command} was not sent: {error}"));
        loop {
            let Some(mut answer) = self.line() else {
                panic!("QEMU ended before its answer to {command}");
            };
            if let Some(value) = answer.get_mut("return") {
                return value.take();
            }
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            self.events.push(answer);
        }
    }

    /// Asks until the field `status` of the answer is `status`.
    pub fn wait_for_status(&mut self, query: &str, status: &str) {
        let mut patience = Patience::new(LIMIT);
        loop {
            let answer = self.run(query, json!({}));
            match answer["status"].as_str() {
                Some(now) if now == status => return,
                Some("failed") => panic!("{query}: {answer}"),
                _ => {}
            }
            assert!(!patience.is_over(), "{query}: {answer}");
            std::thread::sleep(PAUSE);
        }
    }

    /// Why the machine was shut down, if QEMU has told so before it went.
    pub fn reason_of_end(&mut self) -> Option<String> {
        while let Some(event) = self.line() {
            self.events.push(event);
        }
        let mut events = self.events.iter();
        let end = events.find(|event| event["event"] == "SHUTDOWN")?;
        Some(end["data"]["reason"].as_str()?.to_owned())
    }

    /// The next line; none at the end.
    fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(1..) => Some(serde_json::from_str(&line).expect("QEMU speaks JSON")),
            _ => None,
        }
    }
}
