//! Where a fork puts what it makes, and what it tells.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use vmgenie_tests::Snapshot;
use vmgenie_tests::process::{Stray, is_alive, signal, wait_until, with_argument};

use super::LIMIT;
use crate::vmgenie;

/// Where a fork puts what it is not told a place for.
pub(super) struct Place(pub(super) Snapshot);

impl Place {
    pub(super) fn new() -> Self {
        let place = Self(Snapshot::new());
        for dir in [place.run_dir(), place.temporary()] {
            fs::create_dir(dir).unwrap();
        }
        place
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.0.dir().join(name)
    }

    pub(super) fn run_dir(&self) -> PathBuf {
        self.at("run")
    }

    pub(super) fn temporary(&self) -> PathBuf {
        self.at("tmp")
    }

    pub(super) fn fork(&self, machine: &Path, more: &str) -> Command {
        let mut command = vmgenie(["fork".as_ref(), machine.as_os_str()]);
        command
            .args(more.split_whitespace())
            .env("XDG_RUNTIME_DIR", self.run_dir())
            .env("TMPDIR", self.temporary());
        command
    }

    pub(super) fn forked(&self, machine: &Path, more: &str) -> Forked {
        let output = self.fork(machine, &format!("{more} --json")).output();
        Forked::of(&output.unwrap(), 0)
    }

    /// What is left there, but for the list of machines that run.
    pub(super) fn left(&self) -> Vec<PathBuf> {
        let entries = |dir: PathBuf| {
            fs::read_dir(dir)
                .unwrap()
                .map(|entry| entry.unwrap().path())
        };
        let run = entries(self.run_dir()).filter(|path| !path.ends_with("vmgenie"));
        run.chain(entries(self.temporary())).collect()
    }

    pub(super) fn processes(&self) -> Vec<u32> {
        with_argument(self.0.dir().to_str().unwrap())
    }
}

/// Takes care that nothing that a test has started outlives it.
impl Drop for Place {
    fn drop(&mut self) {
        for pid in self.processes() {
            drop(Stray(pid));
        }
    }
}

/// What a fork has told.
pub(super) struct Forked(pub(super) Value);

impl Forked {
    pub(super) fn of(output: &Output, status: i32) -> Self {
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        Self(serde_json::from_slice(&output.stdout).unwrap())
    }

    pub(super) fn clones(&self) -> &Vec<Value> {
        self.0["clones"].as_array().unwrap()
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        let pids = self.clones().iter().map(|clone| clone["pid"].as_u64());
        pids.map(|pid| u32::try_from(pid.unwrap()).unwrap())
            .collect()
    }
}

pub(super) fn end(pid: u32, with: libc::c_int) {
    signal(pid, with);
    wait_until("a clone ends", LIMIT, || !is_alive(pid));
}

pub(super) fn spawn(command: &mut Command) -> Child {
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}
