//! The monitors that are measured: vmgenie, and a Firecracker if the user has one. Both speak the same dialect.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tempfile::TempDir;
use vm_agent::patience::Patience;
use vmgenie_tests::console::Console;
use vmgenie_tests::process::end_within;

use crate::http::Connection;

/// How long a monitor may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long an idle monitor is left alone before something is timed, so that its start is over.
const SETTLE: Duration = Duration::from_millis(20);
/// How long the tiny guest may take.
const TINY_LIMIT: Duration = Duration::from_secs(60);

/// How long a monitor whose guest is lost may take to end.
const LAST_MOMENT: Duration = Duration::from_secs(2);
/// How many lines of what it said then are shown.
const LAST_LINES: usize = 4;

/// A kind of monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Ours.
    Vmgenie,
    /// The one that we compare with.
    Firecracker,
}

/// A monitor's program.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// What it is.
    pub(crate) kind: Kind,
    path: PathBuf,
}

impl Program {
    /// The vmgenie that `VMGENIE_BIN` names.
    pub(crate) fn vmgenie() -> Result<Self> {
        let path = std::env::var_os("VMGENIE_BIN")
            .context("VMGENIE_BIN does not name the vmgenie program: run `cargo xtask bench`")?;
        Ok(Self {
            kind: Kind::Vmgenie,
            path: path.into(),
        })
    }

    /// The Firecracker at `path`; anything else is refused.
    pub(crate) fn firecracker(path: &Path) -> Result<Self> {
        let output = Command::new(path)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("could not run {} --version", path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().next().unwrap_or_default();
        ensure!(
            output.status.success()
                && line.starts_with("Firecracker v")
                // vmgenie begins so, too.
                && !text.lines().any(|line| line.starts_with("vmgenie ")),
            "{} is not a Firecracker: its --version says {line:?}",
            path.display()
        );
        Ok(Self {
            kind: Kind::Firecracker,
            path: path.to_owned(),
        })
    }

    /// Its name in tables and JSON.
    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Vmgenie => "vmgenie",
            Kind::Firecracker => "firecracker",
        }
    }

    /// Starts it with an API socket and waits until it listens and is idle.
    pub(crate) fn start(&self) -> Result<Monitor> {
        let dir = tempfile::tempdir().context("could not make a temporary directory")?;
        let socket = socket_in(&dir);
        let mut command = Command::new(&self.path);
        if self.kind == Kind::Vmgenie {
            command.arg("api");
        }
        let errors = File::create(errors_in(&dir)).context("could not make a temporary file")?;
        let mut child = command
            .arg("--api-sock")
            .arg(&socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("could not start {}", self.path.display()))?;
        let console = Console::of(&mut child);
        let connection = connect(&mut child, &socket)
            .with_context(|| format!("{} does not listen", self.path.display()))?;
        thread::sleep(SETTLE);
        Ok(Monitor {
            child,
            connection,
            console,
            dir,
        })
    }
}

fn connect(child: &mut Child, socket: &Path) -> Result<Connection> {
    let mut patience = Patience::new(START_LIMIT);
    loop {
        match Connection::new(socket) {
            Ok(connection) => return Ok(connection),
            Err(error) if patience.is_over() => return Err(error.into()),
            Err(_) => {}
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended with {status}");
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// A running monitor with a connected client. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Monitor {
    child: Child,
    /// Its API.
    pub(crate) connection: Connection,
    /// The guest's console.
    pub(crate) console: Console,
    dir: TempDir,
}

fn errors_in(dir: &TempDir) -> PathBuf {
    dir.path().join("errors")
}

fn socket_in(dir: &TempDir) -> PathBuf {
    dir.path().join("api.sock")
}

impl Monitor {
    /// Connects once more: ours ends a connection on which nothing comes for a while.
    pub(crate) fn reconnect(&mut self) -> Result<()> {
        self.connection = connect(&mut self.child, &socket_in(&self.dir))?;
        Ok(())
    }

    /// How it has ended, with the last of what it said, if it has: an emulated processor loses a guest now and then.
    pub(crate) fn end(&mut self) -> Option<String> {
        let status = end_within(&mut self.child, LAST_MOMENT)?;
        let said =
            fs::read_to_string(errors_in(&self.dir)).unwrap_or_default() + &self.console.text();
        let last: Vec<_> = said.lines().rev().take(LAST_LINES).collect();
        let last: Vec<_> = last.into_iter().rev().collect();
        Some(format!("it ended with {status}: {}", last.join(" | ")))
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Configures a guest.
    pub(crate) fn configure(&mut self, size: Size, boot_source: &serde_json::Value) -> Result<()> {
        let machine = json!({ "vcpu_count": size.vcpus, "mem_size_mib": size.memory_mib });
        self.connection.send("PUT /machine-config", &machine)?;
        self.connection.send("PUT /boot-source", boot_source)?;
        Ok(())
    }

    /// Boots the tiny guest and waits until it has touched 32 MiB of its memory.
    pub(crate) fn boot_tiny(&mut self, size: Size, elf: &Path) -> Result<()> {
        let source = json!({ "kernel_image_path": elf, "boot_args": "touch=32" });
        self.configure(size, &source)?;
        self.connection
            .send("PUT /actions", &json!({ "action_type": "InstanceStart" }))?;
        self.console.wait_for("ready\n", TINY_LIMIT);
        Ok(())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The size of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// vCPUs.
    pub(crate) vcpus: u8,
    /// Memory in MiB.
    pub(crate) memory_mib: u64,
    /// With virtio devices: one of each kind.
    pub(crate) devices: bool,
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} vCPU, {} MiB", self.vcpus, self.memory_mib)?;
        if self.devices {
            write!(f, ", drive, net, vsock, entropy")?;
        }
        Ok(())
    }
}

/// The tiny guest, and room for snapshots of it; all removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Workplace {
    dir: TempDir,
}

impl Workplace {
    /// Makes the directory, where `TMPDIR` says.
    pub(crate) fn new() -> Result<Self> {
        let dir = tempfile::tempdir().context("could not make a temporary directory")?;
        let place = Self { dir };
        fs::write(place.elf(), include_bytes!(env!("TINY_ELF")))
            .context("could not write the tiny guest")?;
        Ok(place)
    }

    /// The tiny guest's file.
    pub(crate) fn elf(&self) -> PathBuf {
        self.dir.path().join("tiny.elf")
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where a snapshot called `name` goes.
    pub(crate) fn snapshot(&self, name: &str) -> Files {
        Files {
            state: self.dir.path().join(format!("{name}.state")),
            memory: self.dir.path().join(format!("{name}.memory")),
        }
    }
}

/// The two files of a snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    /// The state file.
    pub(crate) state: PathBuf,
    /// The memory file.
    pub(crate) memory: PathBuf,
}

impl Files {
    /// The body of PUT `/snapshot/create`.
    pub(crate) fn create_request(&self) -> serde_json::Value {
        json!({
            "snapshot_type": "Full",
            "snapshot_path": self.state,
            "mem_file_path": self.memory,
        })
    }

    /// The body of PUT `/snapshot/load`.
    pub(crate) fn load_request(&self) -> serde_json::Value {
        json!({
            "snapshot_path": self.state,
            "mem_backend": { "backend_type": "File", "backend_path": self.memory },
            "resume_vm": true,
        })
    }
}

/// The body of PATCH `/vm`.
pub(crate) fn vm_state(state: &str) -> serde_json::Value {
    json!({ "state": state })
}
