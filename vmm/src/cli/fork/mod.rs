//! `vmgenie fork`: a machine that runs, several times.
//!
//! The VMMs of the clones are started first, while the guest still runs undisturbed. Then the snapshot is taken, they load it, and they are waited
//! for. Until all of them are there, they end with this program, and take along what it has made.

mod place;
mod plan;
mod progress;
mod taking;
mod told;

use std::time::Duration;

use thiserror::Error;
use vmgenie_api::client::{Client, SnapshotCreated};
use vmgenie_api::wire::{FullConfig, Gate, InstanceInfo, SnapshotHow, SnapshotLoad, State};
use vmgenie_machine::request::STATE_FILE;
use vmgenie_snapshot::Header;

use super::args::ForkArgs;
use super::clone::{
    ClonesError, INTERRUPTED, check_interrupted, check_sockets, end_on_signals, in_parallel,
    program,
};
use super::clone_dir::CloneDir;
use super::clone_process::{CloneProcess, CloneReport, Fate, Start};
use super::host_things::{self, Warning};
use super::output::show;
use super::{Failure, NOT_ADAPTED, machines};
use place::SnapshotPlace;
use progress::Progress;
use told::{Forked, ForkedClone, Original};

/// What the name of a fresh directory for sockets begins with.
const DIR_PREFIX: &str = "vmgenie-fork";
/// The longest name that a machine can have, and what a clone's number takes of it.
const MAX_NAME: usize = 64 - "-1000".len();

/// A machine that cannot be forked as it is.
#[derive(Debug, Error)]
enum CannotFork {
    #[error("{0} is paused, and only a machine that runs can be forked: `vmgenie resume {0}`")]
    Paused(String),
    #[error("{0} was not started, and only a machine that runs can be forked")]
    NotStarted(String),
}

/// Clones have not adapted in time.
#[derive(Debug, Error)]
#[error("not all clones have adapted {when}: {late}. {others}")]
struct NotAdapted {
    when: String,
    late: String,
    others: &'static str,
}

/// The machine that is forked, as it was asked first.
struct Asked {
    client: Client,
    instance: InstanceInfo,
    config: FullConfig,
    has_driver: bool,
}

impl Asked {
    fn of(machine: &str) -> Result<Self, Failure> {
        let mut client = Client::new(machines::socket_of(machine)?)?;
        let instance = client.info()?;
        match instance.state {
            State::Running => {}
            State::Paused => return Err(CannotFork::Paused(machine.to_owned()).into()),
            State::NotStarted => return Err(CannotFork::NotStarted(machine.to_owned()).into()),
        }
        Ok(Self {
            instance,
            config: client.config()?,
            has_driver: client.generation()?.driver.present,
            client,
        })
    }

    /// Another client of the same VMM, for another thread.
    fn client_again(&self) -> Result<Client, Failure> {
        Ok(Client::new(self.client.socket())?)
    }

    fn as_forked(&self, made: SnapshotCreated) -> Original {
        Original::of(&self.instance, &self.client, made)
    }
}

/// A clone, and what has become of it.
struct Awaited {
    process: CloneProcess,
    report: CloneReport,
    fate: Fate,
}

pub(super) fn fork(args: &ForkArgs, json: bool) -> Result<(), Failure> {
    CloneDir::sweep(DIR_PREFIX);
    SnapshotPlace::sweep();
    let progress = Progress::begin();
    let asked = Asked::of(&args.machine)?;
    let program = program()?;
    end_on_signals();

    let number = args.clones.number;
    let dir = CloneDir::make_passing(args.clones.dir.as_deref(), DIR_PREFIX)
        .map_err(ClonesError::from)?;
    check_sockets(&dir, number)?;
    let place = SnapshotPlace::make(args.snapshot.as_deref())?;
    let sockets = dir.dir().path();
    let mut requests = plan::requests(&args.clones, &asked.config, place.path(), sockets)?;
    if asked.has_driver && !args.no_gate {
        // Without a driver nothing would ever open it.
        add_gates(&mut requests, args.wait);
    }

    let start = Start {
        program: &program,
        dir: dir.dir(),
        name: &name_of(&asked.instance),
        dir_goes: dir.passes(),
        doomed: place.doomed(),
    };
    progress.stage(&format!("starting {number} VMMs"));
    let processes = start_vmms(&start, &requests)?;
    progress.stage(&format!("waiting for {} to stand still", args.machine));
    let original = asked.as_forked(taking::take(asked.client_again()?, args, place.path())?);
    progress.clear();
    let warnings = checked(&mut requests, &place)?;

    progress.stage(&format!("starting {number} clones"));
    let loaded = load(processes, &requests)?;
    // What they need of the snapshot they hold open.
    let snapshot = place.keep();
    progress.stage(&format!("waiting for {number} clones to adapt"));
    let nobody_adapts = original.how == SnapshotHow::Plain && !asked.has_driver;
    let clones = wait(loaded, args, nobody_adapts)?;
    check_interrupted()?;
    drop(progress);

    let shown = Forked {
        original,
        snapshot,
        clones: clones.iter().map(told).collect(),
        warnings,
        dir: dir.dir().path().to_owned(),
    };
    clones.into_iter().for_each(|clone| clone.process.release());
    dir.keep();
    show(json, &shown, Forked::text)?;
    if nobody_adapts {
        eprintln!(
            "warning: there is no sysgenid driver in the guest: nobody tells its programs that they run in clones"
        );
        return Ok(());
    }
    check_adapted(&shown, args.wait)
}

fn told(clone: &Awaited) -> ForkedClone {
    ForkedClone::of(clone.process.name(), &clone.report, &clone.fate)
}

/// Whether all clones have adapted in time, by themselves.
fn check_adapted(forked: &Forked, wait: Duration) -> Result<(), Failure> {
    let Some(late) = forked.late() else {
        return Ok(());
    };
    let wait = humantime::format_duration(wait);
    let error = NotAdapted {
        // A gate may have had less time.
        when: match forked.clones.iter().any(ForkedClone::gate_was_late) {
            true => "in time".to_owned(),
            false => format!("within {wait}"),
        },
        late,
        others: match forked.clones.iter().any(|clone| clone.ended) {
            true => "The others go on",
            false => "They go on",
        },
    };
    Err(Failure {
        error: Box::new(error),
        status: NOT_ADAPTED,
    })
}

/// What the clones' names begin with.
fn name_of(original: &InstanceInfo) -> String {
    match original.id.len() <= MAX_NAME {
        true => original.id.clone(),
        false => "clone".to_owned(),
    }
}

/// Starts a VMM for each clone, and waits until it can be asked.
fn start_vmms(start: &Start<'_>, requests: &[SnapshotLoad]) -> Result<Vec<CloneProcess>, Failure> {
    in_parallel(requests.iter().collect(), |number, request| {
        let mut process = CloneProcess::start(start, number, request)?;
        process.wait_for_socket(&INTERRUPTED)?;
        Ok(process)
    })
    .map_err(ClonesError::into_failure)
}

/// Looks at what the clones will open now that the snapshot is there, as `vmgenie clone` does, and names that snapshot in the requests.
fn checked(requests: &mut [SnapshotLoad], place: &SnapshotPlace) -> Result<Vec<Warning>, Failure> {
    check_interrupted()?;
    // If it cannot be read, the VMM says why.
    let id = Header::read(&place.path().join(STATE_FILE)).map(|header| header.id.to_string());
    for request in &mut *requests {
        request.snapshot_id.clone_from(&id);
    }
    let as_it_was = plan::as_it_was(place.path());
    let all: Vec<_> = std::iter::once(as_it_was)
        .chain(requests.iter().cloned())
        .collect();
    let machines = host_things::check(&all)?;
    let Some((original, clones)) = machines.split_first() else {
        return Ok(Vec::new());
    };
    host_things::check_shared(Some(original), clones).map_err(ClonesError::from)?;
    let warnings = host_things::warnings(&machines);
    host_things::tell(clones);
    for warning in &warnings {
        eprintln!("warning: {}", warning.message);
    }
    Ok(warnings)
}

fn load(
    processes: Vec<CloneProcess>,
    requests: &[SnapshotLoad],
) -> Result<Vec<(CloneProcess, CloneReport)>, Failure> {
    let clones = processes.into_iter().zip(requests).collect();
    in_parallel(clones, |_, (mut process, request): (CloneProcess, _)| {
        let report = process.load(request, &INTERRUPTED)?;
        Ok((process, report))
    })
    .map_err(ClonesError::into_failure)
}

fn wait(
    clones: Vec<(CloneProcess, CloneReport)>,
    args: &ForkArgs,
    nobody_adapts: bool,
) -> Result<Vec<Awaited>, Failure> {
    let patience = match nobody_adapts {
        true => Duration::ZERO,
        false => args.wait,
    };
    let agents = args
        .clones
        .overrides
        .gate
        .as_ref()
        .and_then(|gate| gate.agents);
    in_parallel(clones, |_, (mut process, report): (CloneProcess, _)| {
        let fate = process.wait_until_ready(agents, patience, &INTERRUPTED)?;
        Ok(Awaited {
            process,
            report,
            fate,
        })
    })
    .map_err(ClonesError::into_failure)
}

/// Has each clone kept from its peers until it is ready, unless it was said how.
fn add_gates(requests: &mut [SnapshotLoad], wait: Duration) {
    let timeout_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
    for request in requests {
        request.gate.get_or_insert_with(|| Gate {
            timeout_ms,
            ..Gate::default()
        });
    }
}
