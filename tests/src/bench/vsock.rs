//! `vsock`: throughput and round trip between a guest's program and one on the host, through the monitor's Unix socket.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;
use tempfile::TempDir;
use vmgenie_tests::guest::Guest;
use vmgenie_tests::vsock::{CID, LOAD_PORT, connect};

use crate::monitor::{Monitor, Program};
use crate::report::Report;
use crate::streams::{self, BOOT_LIMIT, SIZE, Streams, ask};

/// A running guest of one program.
#[derive(Debug)]
struct Case {
    program: Program,
    /// Where the socket is.
    dir: TempDir,
    /// The guest runs as long as it does.
    monitor: Monitor,
    streams: Streams,
}

/// Boots a guest with each program, and measures `runs` rounds of them in turn, after one that is not counted.
pub(crate) fn run(programs: &[Program], runs: usize) -> Result<Report> {
    streams::run("vsock", programs, runs, Case::boot)
}

impl Case {
    fn boot(program: &Program) -> Result<Self> {
        let dir = tempfile::tempdir().context("could not make a temporary directory")?;
        let mut monitor = program.start()?;
        monitor.configure(SIZE, &Guest::Small.boot_source())?;
        let device = json!({ "guest_cid": CID, "uds_path": socket(&dir) });
        let connection = &mut monitor.connection;
        connection.send("PUT /vsock", &device)?;
        connection.send("PUT /actions", &json!({ "action_type": "InstanceStart" }))?;
        let console = &mut monitor.console;
        console.wait_for("@@ready\n", BOOT_LIMIT);
        ask(
            console,
            &format!("guest-load vsock-serve {LOAD_PORT} > /tmp/load &"),
        )?;
        Ok(Self {
            program: program.clone(),
            dir,
            monitor,
            streams: Streams::default(),
        })
    }
}

fn socket(dir: &TempDir) -> PathBuf {
    dir.path().join("v.sock")
}

impl streams::Case for Case {
    fn program(&self) -> &Program {
        &self.program
    }

    fn streams(&self) -> &Streams {
        &self.streams
    }

    fn streams_mut(&mut self) -> &mut Streams {
        &mut self.streams
    }

    fn monitor(&mut self) -> &mut Monitor {
        &mut self.monitor
    }

    fn measure(&mut self, counts: bool) -> Result<()> {
        let socket = socket(&self.dir);
        self.streams.measure(|| connect(&socket, LOAD_PORT), counts)
    }
}
