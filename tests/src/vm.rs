//! A vmgenie process with its guest.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use vm_agent::patience::{Patience, stretched};
use vmgenie_api::client::Client;
use vmgenie_api::wire::{
    GenerationChoice, GenerationWait, GenerationWaited, MAX_WAIT_MS, Missing, Ready, SnapshotLoad,
};

use crate::console::Console;
use crate::guest::{self, Guest};
use crate::process::end_within;
use crate::shell::{COMMAND_LIMIT, Shell};
use crate::snapshot::Snapshot;

/// How long a guest that boots may say nothing. In the emulated host it takes a tenth of that on a quiet machine.
pub const BOOT_LIMIT: Duration = Duration::from_secs(75);
/// How long a guest may show no sign of adapting to its generation: its agent may have a lot to do.
const ADAPT_LIMIT: Duration = Duration::from_secs(120);

/// How long a VMM may take to end by itself when a test has failed: what it says then tells what became of its guest.
const LAST_MOMENT: Duration = Duration::from_secs(2);
/// How long the VMM is asked to wait for its guest at a time.
const ONE_WAIT: Duration = Duration::from_secs(2);
/// How long it may take until its API is there.
const API_LIMIT: Duration = Duration::from_secs(30);

/// A wait for the word of a guest's one agent, for so long as on a quiet machine; a slow one has no
/// more than the API allows.
pub fn agent_is_ready(limit: Duration) -> GenerationWait {
    let ms = u64::try_from(stretched(limit).as_millis()).unwrap_or(MAX_WAIT_MS);
    GenerationWait {
        timeout_ms: ms.min(MAX_WAIT_MS),
        agents: Some(1),
        ..GenerationWait::default()
    }
}

/// A vmgenie process. It is killed when this is dropped.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    /// The guest's console.
    pub console: Console,
    /// The API.
    pub client: Client,
    dir: TempDir,
}

/// How a guest is booted.
#[derive(Debug, Clone)]
pub struct Boot {
    guest: Guest,
    cpus: u8,
    memory: String,
    cmdline: String,
    pub(crate) extra: Vec<String>,
    extras: bool,
}

impl Boot {
    /// One vCPU, the guest's own memory and command line.
    pub fn new(guest: Guest) -> Self {
        Self {
            guest,
            cpus: 1,
            memory: guest.memory().to_owned(),
            cmdline: guest.cmdline().to_owned(),
            extra: Vec::new(),
            extras: false,
        }
    }

    /// With so many vCPUs.
    pub fn cpus(mut self, cpus: u8) -> Self {
        self.cpus = cpus;
        self
    }

    /// With so much memory (`256M`).
    pub fn memory(mut self, memory: &str) -> Self {
        self.memory = memory.to_owned();
        self
    }

    /// With more on the kernel command line.
    pub fn cmdline(mut self, more: &str) -> Self {
        self.cmdline = format!("{} {more}", self.cmdline);
        self
    }

    /// With another option of `vmgenie run`.
    pub fn option(mut self, option: &str) -> Self {
        self.extra.push(option.to_owned());
        self
    }

    /// With the examples, the sample hooks and what those renew, in `/examples`, `/hooks` and elsewhere; and
    /// with more memory, because the initramfs is in it twice at first.
    pub fn extras(mut self) -> Self {
        self.extras = true;
        if self.memory == "128M" {
            self.memory = "256M".to_owned();
        }
        self
    }

    /// Starts it and waits until the guest's shell is there.
    pub fn ready(self) -> Vm {
        if !self.extras {
            let mut vm = self.start();
            vm.wait_ready();
            return vm;
        }
        let initrd = self.guest.initrd().expect("a guest with an initramfs");
        let mut archive = std::fs::read(initrd).expect("the initramfs");
        archive.extend(std::fs::read(guest::extras()).expect("the extras"));
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::io::Write::write_all(&mut file, &archive).expect("room for the initramfs");
        let mut vm = self.start_with(Some(file.path()));
        vm.wait_ready();
        vm
    }

    /// Starts it; does not wait for the guest.
    pub fn start(self) -> Vm {
        let initrd = self.guest.initrd();
        self.start_with(initrd.as_deref())
    }

    fn start_with(self, initrd: Option<&Path>) -> Vm {
        let mut command = vec!["run".to_owned()];
        command.push(format!("--kernel={}", self.guest.kernel().display()));
        if let Some(initrd) = initrd {
            command.push(format!("--initrd={}", initrd.display()));
        }
        command.push(format!("--cmdline={}", self.cmdline));
        command.push(format!("--memory={}", self.memory));
        command.push(format!("--cpus={}", self.cpus));
        command.extend(self.extra);
        Vm::spawn(&command, &[])
    }
}

impl Vm {
    /// Starts vmgenie with `arguments` and an API socket of its own.
    pub fn spawn(arguments: &[String], environment: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("api.sock");
        let mut child = Command::new(guest::vmgenie())
            .args(arguments)
            .arg("--api-sock")
            .arg(&socket)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("vmgenie starts");
        let console = Console::of(&mut child);
        let mut vm = Self {
            child,
            console,
            client: Client::new(socket).expect("a client"),
            dir,
        };
        vm.wait_for_api();
        vm
    }

    /// An empty VMM.
    pub fn empty() -> Self {
        Self::spawn(&["api".to_owned()], &[])
    }

    /// A VMM restored from `snapshot`, running, in a new generation.
    pub fn restore(snapshot: &Snapshot) -> Self {
        Self::restore_as(snapshot, GenerationChoice::New)
    }

    /// A VMM restored from `snapshot`, running.
    pub fn restore_as(snapshot: &Snapshot, generation: GenerationChoice) -> Self {
        Self::restore_in(&[], snapshot, generation)
    }

    /// The same with more in the VMM's environment.
    pub fn restore_in(
        environment: &[(&str, &str)],
        snapshot: &Snapshot,
        generation: GenerationChoice,
    ) -> Self {
        Self::load_as(environment, snapshot, generation, true)
    }

    /// A VMM restored from `snapshot` in a new generation, whose guest does not run yet.
    pub fn load(snapshot: &Snapshot) -> Self {
        Self::load_as(&[], snapshot, GenerationChoice::New, false)
    }

    fn load_as(
        environment: &[(&str, &str)],
        snapshot: &Snapshot,
        generation: GenerationChoice,
        resume_vm: bool,
    ) -> Self {
        let mut vm = Self::spawn(&["api".to_owned()], environment);
        vm.client
            .load_snapshot(&SnapshotLoad {
                resume_vm,
                generation,
                ..SnapshotLoad::of(snapshot.state(), snapshot.memory())
            })
            .expect("the snapshot is restored");
        vm
    }

    fn wait_for_api(&mut self) {
        let mut patience = Patience::new(API_LIMIT);
        while let Err(error) = self.client.connect() {
            if let Some(status) = self.child.try_wait().expect("our child") {
                panic!(
                    "vmgenie ended with {status}: {error}\n{}",
                    self.console.text()
                );
            }
            assert!(!patience.is_over(), "no API within {API_LIMIT:?}: {error}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the guest's shell is there.
    pub fn wait_ready(&mut self) {
        self.console.wait_for("@@ready\n", BOOT_LIMIT);
    }

    /// Waits until the guest has adapted to its generation, and returns what the VMM says then. A guest that
    /// never will is waited for by [`Self::wait_missing`].
    pub fn wait_adapted(&mut self) -> GenerationWaited {
        self.wait_adapted_of(None)
    }

    /// The same, with `agents` of them, or as many as the machine ever had.
    pub fn wait_adapted_of(&mut self, agents: Option<u32>) -> GenerationWaited {
        let wait = GenerationWait {
            timeout_ms: ONE_WAIT.as_millis() as u64,
            agents,
            ..GenerationWait::default()
        };
        let mut patience = Patience::new(ADAPT_LIMIT);
        loop {
            let waited = self.client.wait_for(&wait);
            let waited = waited.expect("the VMM answers");
            if waited.adapted {
                return waited;
            }
            let over = patience.is_over_at(|| self.console.progress());
            assert!(!over, "it has not adapted: it lacks {:?}", waited.missing);
        }
    }

    /// Waits until the guest lacks nothing but `missing`.
    pub fn wait_missing(&mut self, missing: &[Missing]) {
        let mut patience = Patience::new(COMMAND_LIMIT);
        loop {
            let waited = self.client.wait_for_generation(Duration::from_millis(200));
            let waited = waited.expect("the VMM answers");
            if waited.missing == missing {
                return;
            }
            assert!(!patience.is_over(), "it lacks {:?}", waited.missing);
        }
    }

    /// Asks how far the machine has come until it `is` so far.
    pub fn until_ready(&mut self, is: impl Fn(&Ready) -> bool) -> Ready {
        let mut patience = Patience::new(COMMAND_LIMIT);
        loop {
            let ready = self.client.ready().expect("the VMM answers");
            if is(&ready) {
                return ready;
            }
            assert!(!patience.is_over(), "{ready:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs a shell command in the guest; returns its exit status and what it wrote.
    pub fn run(&mut self, command: &str) -> (i32, String) {
        Shell::run(self, command)
    }

    /// The same for one that may take longer, or shorter.
    pub fn run_within(&mut self, command: &str, limit: Duration) -> (i32, String) {
        Shell::run_within(self, command, limit)
    }

    /// Runs a shell command in the guest that must succeed; returns what it wrote.
    pub fn shell(&mut self, command: &str) -> String {
        Shell::shell(self, command)
    }

    /// Pauses the guest and takes a snapshot of it; the guest stays paused.
    pub fn snapshot(&mut self) -> Snapshot {
        let snapshot = Snapshot::new();
        self.client.pause().expect("pause");
        snapshot.create(&mut self.client);
        snapshot
    }

    /// Waits for the process's end; returns its status and all console output.
    pub fn wait(mut self, limit: Duration) -> (ExitStatus, String) {
        let text = self.console.wait_for_end(limit);
        (self.wait_status(limit), text)
    }

    /// Waits for the process's end.
    pub fn wait_status(&mut self, limit: Duration) -> ExitStatus {
        let status = end_within(&mut self.child, limit);
        status.unwrap_or_else(|| panic!("vmgenie did not end within {limit:?}"))
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its API listens.
    pub fn socket(&self) -> PathBuf {
        self.client.socket().to_owned()
    }

    /// A directory of its own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Ends the process at once, as a crash of the host would.
    pub fn kill(&mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            end_within(&mut self.child, LAST_MOMENT);
            self.console.tell_end();
        }
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Shell for Vm {
    fn console(&mut self) -> &mut Console {
        &mut self.console
    }
}
