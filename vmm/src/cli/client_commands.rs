//! The commands that speak to one VMM.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use thiserror::Error;
use vmgenie_api::client::Client;
use vmgenie_api::wire::{
    CooperativeCreated, DriverInfo, FullConfig, GenerationChoice, GenerationInfo, GenerationWait,
    GenerationWaited, Missing, Ready, SnapshotCreate, SnapshotLoad, SnapshotType, State, Watchers,
};
use vmgenie_machine::request::{MEMORY_FILE, STATE_FILE};
use vmgenie_snapshot::Header;
use vmgenie_snapshot::own_files::{OwnDir, TrustError};

use super::args::{GenerationArgs, RestoreArgs, SnapshotArgs, Target};
use super::cooperation::{cooperative, how_taken};
use super::output::{pairs, show};
use super::requests::override_devices;
use super::units::{bytes, milliseconds};
use super::{Failure, NOT_ADAPTED};
use super::{host_things, machines};

/// What goes wrong with files on the client's side.
#[derive(Debug, Error)]
pub(super) enum PathError {
    #[error("a snapshot cannot lie in {0}")]
    Directory(PathBuf, #[source] TrustError),
    #[error("could not tell where {0} is")]
    Absolute(PathBuf, #[source] io::Error),
}

/// A client of the machine that is meant.
fn client_of(target: &Target) -> Result<Client, Failure> {
    let socket = match (&target.machine, &target.api_sock) {
        (Some(machine), _) => machines::socket_of(machine)?,
        // The parser has seen to it that there is one of the two.
        (None, socket) => socket.clone().unwrap_or_default(),
    };
    Ok(Client::new(socket)?)
}

#[derive(Debug, Serialize)]
struct StateShown {
    state: State,
}

pub(super) fn pause(target: &Target, json: bool) -> Result<(), Failure> {
    client_of(target)?.pause()?;
    show(
        json,
        &StateShown {
            state: State::Paused,
        },
        |_| "Paused.".to_owned(),
    )
}

pub(super) fn resume(target: &Target, json: bool) -> Result<(), Failure> {
    client_of(target)?.resume()?;
    show(
        json,
        &StateShown {
            state: State::Running,
        },
        |_| "Running.".to_owned(),
    )
}

#[derive(Debug, Serialize)]
struct Info {
    id: String,
    state: State,
    vmm_version: String,
    config: FullConfig,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<GenerationInfo>,
}

pub(super) fn info(target: &Target, json: bool) -> Result<(), Failure> {
    let mut client = client_of(target)?;
    let instance = client.info()?;
    let generation = match instance.state {
        State::NotStarted => None,
        State::Running | State::Paused => Some(client.generation()?),
    };
    let info = Info {
        id: instance.id,
        state: instance.state,
        vmm_version: instance.vmm_version,
        config: client.config()?,
        generation,
    };
    show(json, &info, |info| {
        let mut rows = vec![
            ("id", info.id.clone()),
            ("state", info.state.as_str().to_owned()),
            ("vmgenie", info.vmm_version.clone()),
            ("vCPUs", info.config.machine_config.vcpu_count.to_string()),
            (
                "memory",
                format!("{} MiB", info.config.machine_config.mem_size_mib),
            ),
        ];
        let source = &info.config.boot_source;
        if !source.kernel_image_path.as_os_str().is_empty() {
            rows.push(("kernel", source.kernel_image_path.display().to_string()));
            if let Some(initrd) = &source.initrd_path {
                rows.push(("initrd", initrd.display().to_string()));
            }
            rows.push(("command line", source.boot_args.clone().unwrap_or_default()));
        }
        rows.extend(info.generation.iter().flat_map(generation_rows));
        pairs(rows)
    })
}

pub(super) fn generation(args: &GenerationArgs, json: bool) -> Result<(), Failure> {
    let mut client = client_of(&args.target)?;
    let generation = if args.new {
        client.new_generation()?
    } else {
        client.generation()?
    };
    if let Some(timeout) = args.wait {
        let waited = client.wait_for(&GenerationWait {
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            agents: args.agents,
            watchers: match args.all_watchers {
                true => Watchers::All,
                false => Watchers::Required,
            },
        })?;
        // It may be another generation by now, and its counter has moved.
        return show_waited(client.generation()?, waited, json);
    }
    let shown = GenerationShown {
        generation,
        // An older VMM does not tell.
        ready: client.ready().ok(),
    };
    show(json, &shown, |shown| {
        let mut rows = generation_rows(&shown.generation);
        rows.extend(shown.ready.iter().map(|ready| ("stage", stage_text(ready))));
        pairs(rows)
    })
}

#[derive(Debug, Serialize)]
struct GenerationShown {
    #[serde(flatten)]
    generation: GenerationInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    ready: Option<Ready>,
}

fn stage_text(ready: &Ready) -> String {
    let gate = match &ready.gate {
        None => "",
        Some(gate) if gate.forced => ", its gate opened by its time-out",
        Some(gate) if gate.timed_out && !ready.ready => ", its gate still shut after its time-out",
        Some(_) => ", behind a gate",
    };
    format!("{}{gate}", ready.stage.as_str())
}

#[derive(Debug, Serialize)]
struct WaitShown {
    adapted: bool,
    missing: Vec<Missing>,
    waited_us: u64,
    #[serde(flatten)]
    generation: GenerationInfo,
}

/// The guest has not adapted in time.
#[derive(Debug, Error)]
#[error("the guest has not adapted to its generation within {0}: {1}")]
struct NotAdapted(String, String);

fn show_waited(
    generation: GenerationInfo,
    waited: GenerationWaited,
    json: bool,
) -> Result<(), Failure> {
    let took = milliseconds(Duration::from_micros(waited.waited_us));
    let missing = missing_text(&waited);
    let shown = WaitShown {
        adapted: waited.adapted,
        missing: waited.missing,
        waited_us: waited.waited_us,
        generation: GenerationInfo {
            driver: waited.driver,
            ..generation
        },
    };
    show(json, &shown, |shown| {
        let mut rows = generation_rows(&shown.generation);
        rows.push(("waited", took.clone()));
        pairs(rows)
    })?;
    if shown.adapted {
        return Ok(());
    }
    Err(Failure {
        error: Box::new(NotAdapted(took, missing)),
        status: NOT_ADAPTED,
    })
}

pub(super) fn missing_text(waited: &GenerationWaited) -> String {
    let text = |missing: &Missing| match missing {
        Missing::Driver => "there is no driver in it".to_owned(),
        Missing::Reseeded => "its random number generator was not reseeded".to_owned(),
        Missing::Reached => "its watchers were not told".to_owned(),
        Missing::Chain => "its kernel has not told all of its own of the fork".to_owned(),
        Missing::Watchers => watchers_text(&waited.driver),
        Missing::Agent => format!(
            "only {} of its agents have finished",
            waited.driver.ready_agents
        ),
        Missing::Ready => "its agent has done the first stage alone".to_owned(),
        Missing::Identity => "it does not know who it is".to_owned(),
    };
    let texts: Vec<String> = waited.missing.iter().map(text).collect();
    texts.join(", ")
}

fn generation_rows(generation: &GenerationInfo) -> Vec<(&'static str, String)> {
    vec![
        ("generation", generation.id.clone()),
        ("raw", generation.raw.clone()),
        ("changes", generation.changes.to_string()),
        ("since", generation.since.clone()),
        ("counter", generation.counter.to_string()),
        ("driver", driver_text(&generation.driver)),
    ]
}

fn driver_text(driver: &DriverInfo) -> String {
    if !driver.present {
        return "none".to_owned();
    }
    let state = |is: bool, what: &str| format!("{}{what}", if is { "" } else { "not " });
    // Whoever reads "adapted" shall know by whose word.
    let agents = match (driver.ready_agents, driver.expected_agents) {
        (0, 0) => "no agent is expected".to_owned(),
        (ready, expected) => format!("{ready} of {expected} agents ready"),
    };
    format!(
        "{}, {}{}, {}, {agents}: {}",
        state(driver.reseeded, "reseeded"),
        state(driver.reached, "reached"),
        driver.chain.map_or(String::new(), |chain| format!(
            ", {}",
            state(chain, "chained")
        )),
        watchers_text(driver),
        state(driver.adapted, "adapted")
    )
}

fn watchers_text(driver: &DriverInfo) -> String {
    format!(
        "{} outdated watchers ({} required)",
        driver.outdated_watchers, driver.required_watchers
    )
}

#[derive(Debug, Serialize)]
struct SnapshotShown {
    state_path: PathBuf,
    mem_file_path: PathBuf,
    standstill_us: u64,
    total_us: u64,
    memory_bytes: u64,
    /// What the machine does now: what it did before.
    state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    cooperation: Option<CooperativeCreated>,
}

pub(super) fn snapshot(args: &SnapshotArgs, json: bool) -> Result<(), Failure> {
    let mut client = client_of(&args.target)?;
    let state = client.info()?.state;
    let dir = SnapshotDir::make(&args.dir)?;
    let request = SnapshotCreate {
        snapshot_type: SnapshotType::Full,
        snapshot_path: dir.path.join(STATE_FILE),
        mem_file_path: dir.path.join(MEMORY_FILE),
        resume_vm: false,
        // In one step: were this program killed between two, the machine would stay paused.
        pause_vm: true,
        copy_drives: args.copy_drives,
        cooperative: cooperative(&args.cooperation),
    };
    let made = client.create_snapshot(&request)?;
    let dir = dir.keep();
    let shown = SnapshotShown {
        state_path: request.snapshot_path,
        mem_file_path: request.mem_file_path,
        standstill_us: microseconds(made.standstill),
        total_us: microseconds(made.total),
        memory_bytes: made.memory_bytes,
        state,
        cooperation: made.cooperation,
    };
    show(json, &shown, |shown| {
        let mut lines = vec![("snapshot", dir.display().to_string())];
        if let Some(made) = &shown.cooperation {
            lines.push(("taken", how_taken(made)));
            let quiet = made.quiesce_us.map(Duration::from_micros);
            lines.extend(quiet.map(|quiet| ("quiet after", milliseconds(quiet))));
        }
        lines.extend([
            ("memory written", bytes(made.memory_bytes)),
            ("stood still", milliseconds(made.standstill)),
            ("total", milliseconds(made.total)),
            ("machine", state.as_str().to_owned()),
        ]);
        pairs(lines)
    })
}

/// A snapshot's directory. When there was none before and no snapshot comes to lie in it, it is
/// removed again.
pub(super) struct SnapshotDir {
    pub(super) path: PathBuf,
    /// Until there is a snapshot in it.
    dir: Option<OwnDir>,
}

impl SnapshotDir {
    pub(super) fn make(path: &Path) -> Result<Self, PathError> {
        let path = absolute(path)?;
        match OwnDir::make(&path) {
            Ok(dir) => Ok(Self {
                path,
                dir: Some(dir),
            }),
            Err(error) => Err(PathError::Directory(path, error)),
        }
    }

    pub(super) fn keep(mut self) -> PathBuf {
        self.dir = None;
        std::mem::take(&mut self.path)
    }
}

impl Drop for SnapshotDir {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            dir.remove_if_made();
        }
    }
}

#[derive(Debug, Serialize)]
struct RestoreShown {
    state: State,
    load_us: u64,
    generation: GenerationInfo,
}

pub(super) fn restore(into: &str, args: &RestoreArgs, json: bool) -> Result<(), Failure> {
    let mut client = Client::new(machines::socket_of(into)?)?;
    let mut request = load_request(&args.dir, args.generation.into(), !args.no_resume)?;
    override_devices(&mut request, &args.overrides, None)?;
    host_things::tell_if_allowed(&request);
    client.connect()?;
    let started = Instant::now();
    client.load_snapshot(&request)?;
    let took = started.elapsed();
    let shown = RestoreShown {
        state: if args.no_resume {
            State::Paused
        } else {
            State::Running
        },
        load_us: microseconds(took),
        generation: client.generation()?,
    };
    show(json, &shown, |shown| {
        let mut rows = vec![
            ("machine", shown.state.as_str().to_owned()),
            ("restored in", milliseconds(took)),
        ];
        rows.extend(generation_rows(&shown.generation));
        pairs(rows)
    })
}

/// The request that restores the snapshot in the directory `dir`.
pub(super) fn load_request(
    dir: &Path,
    generation: GenerationChoice,
    resume: bool,
) -> Result<SnapshotLoad, Failure> {
    let dir = absolute(dir)?;
    let state = dir.join(STATE_FILE);
    Ok(SnapshotLoad {
        resume_vm: resume,
        generation,
        // What is told of it before it is opened is told of this one. If it cannot be read, the VMM says why.
        snapshot_id: Header::read(&state).map(|header| header.id.to_string()),
        ..SnapshotLoad::of(state, dir.join(MEMORY_FILE))
    })
}

/// The VMM has a working directory of its own: what it is told must not depend on ours.
fn absolute(path: &Path) -> Result<PathBuf, PathError> {
    std::path::absolute(path).map_err(|error| PathError::Absolute(path.to_owned(), error))
}

pub(super) fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
