//! `net`: throughput and round trip of a guest's network interface, over TCP.

use anyhow::Result;
use serde_json::json;
use vmgenie_tests::guest::Guest;
use vmgenie_tests::net::{GUEST, LOAD_PORT, Namespace, eth0};

use crate::monitor::{Monitor, Program};
use crate::report::Report;
use crate::streams::{self, BOOT_LIMIT, SIZE, Streams, ask};

/// A running guest of one program.
#[derive(Debug)]
struct Case {
    program: Program,
    namespace: Namespace,
    /// The guest runs as long as it does.
    monitor: Monitor,
    streams: Streams,
}

/// Boots a guest with each program, and measures `runs` rounds of them in turn, after one that is not counted.
pub(crate) fn run(programs: &[Program], runs: usize) -> Result<Report> {
    streams::run("net", programs, runs, Case::boot)
}

impl Case {
    fn boot(program: &Program) -> Result<Self> {
        let namespace = Namespace::new();
        namespace.add_tap("tap0");
        let mut monitor = namespace.run(|| program.start())?;
        monitor.configure(SIZE, &Guest::Small.boot_source())?;
        let connection = &mut monitor.connection;
        connection.send("PUT /network-interfaces/eth0", &eth0("tap0"))?;
        connection.send("PUT /actions", &json!({ "action_type": "InstanceStart" }))?;
        let console = &mut monitor.console;
        console.wait_for("@@ready\n", BOOT_LIMIT);
        ask(console, "ip link set eth0 up")?;
        ask(console, &format!("ip addr add {GUEST}/24 dev eth0"))?;
        ask(
            console,
            &format!("guest-load serve {LOAD_PORT} > /tmp/load &"),
        )?;
        Ok(Self {
            program: program.clone(),
            namespace,
            monitor,
            streams: Streams::default(),
        })
    }
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
        let namespace = &self.namespace;
        self.streams
            .measure(|| namespace.connect(LOAD_PORT), counts)
    }
}
