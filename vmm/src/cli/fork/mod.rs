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
use vmgenie_api::client::Client;
use vmgenie_api::wire::{Gate, GenerationWaited, InstanceInfo, Ready, SnapshotHow, SnapshotLoad};
use vmgenie_machine::request::STATE_FILE;
use vmgenie_snapshot::Header;

use super::args::ForkArgs;
use super::clone::{
    ClonesError, INTERRUPTED, check_interrupted, check_sockets, end_on_signals, in_parallel,
    program,
};
use super::clone_dir::CloneDir;
use super::clone_process::{CloneProcess, CloneReport, Start};
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

/// A clone that runs, and what it has told.
type Running = (CloneProcess, CloneReport, GenerationWaited, Ready);

/// Clones have not adapted in time.
#[derive(Debug, Error)]
#[error("not all clones have adapted within {0}: {1}. They go on")]
struct NotAdapted(String, String);

pub(super) fn fork(args: &ForkArgs, json: bool) -> Result<(), Failure> {
    CloneDir::sweep(DIR_PREFIX);
    SnapshotPlace::sweep();
    let progress = Progress::begin();
    let mut client = Client::new(machines::socket_of(&args.machine)?)?;
    let instance = client.info()?;
    let config = client.config()?;
    let has_driver = client.generation()?.driver.present;
    let program = program()?;
    end_on_signals();

    let number = args.clones.number;
    let dir = CloneDir::make_passing(args.clones.dir.as_deref(), DIR_PREFIX)
        .map_err(ClonesError::from)?;
    check_sockets(&dir, number)?;
    let place = SnapshotPlace::make(args.snapshot.as_deref())?;
    let mut requests = plan::requests(&args.clones, &config, place.path(), dir.dir().path())?;
    if has_driver && !args.no_gate {
        // Without a driver nothing would ever open it.
        add_gates(&mut requests, args.wait);
    }

    let start = Start {
        program: &program,
        dir: dir.dir(),
        name: &name_of(&instance),
        dir_goes: dir.passes(),
        doomed: place.doomed(),
    };
    progress.stage(&format!("starting {number} VMMs"));
    let processes = in_parallel(requests.iter().collect(), |number, request| {
        let mut process = CloneProcess::start(&start, number, request)?;
        process.wait_for_socket(&INTERRUPTED)?;
        Ok(process)
    })
    .map_err(ClonesError::into_failure)?;

    progress.stage(&format!("waiting for {} to stand still", args.machine));
    let original = Original::of(
        &instance,
        &client,
        taking::take(client_again(&client)?, args, place.path())?,
    );
    progress.clear();
    let warnings = checked(&mut requests, &place)?;

    progress.stage(&format!("starting {number} clones"));
    let loaded = load(processes, &requests)?;
    // What they need of the snapshot they hold open.
    let snapshot = place.keep();
    progress.stage(&format!("waiting for {number} clones to adapt"));
    let nobody_adapts = original.how == SnapshotHow::Plain && !has_driver;
    let running = wait(loaded, args, nobody_adapts)?;
    check_interrupted()?;
    drop(progress);

    let clones = running.iter().map(|(process, report, waited, ready)| {
        ForkedClone::of(process.name(), report, waited, ready)
    });
    let shown = Forked {
        original,
        snapshot,
        clones: clones.collect(),
        warnings,
        dir: dir.dir().path().to_owned(),
    };
    running
        .into_iter()
        .for_each(|(process, ..)| process.release());
    dir.keep();
    show(json, &shown, Forked::text)?;
    if nobody_adapts {
        eprintln!(
            "warning: there is no sysgenid driver in the guest: nobody tells its programs that they run in clones"
        );
        return Ok(());
    }
    match shown.missing() {
        None => Ok(()),
        Some(missing) => Err(Failure {
            error: Box::new(NotAdapted(
                humantime::format_duration(args.wait).to_string(),
                missing,
            )),
            status: NOT_ADAPTED,
        }),
    }
}

/// What the clones' names begin with.
fn name_of(original: &InstanceInfo) -> String {
    match original.id.len() <= MAX_NAME {
        true => original.id.clone(),
        false => "clone".to_owned(),
    }
}

/// Another client of the same VMM, for another thread.
fn client_again(client: &Client) -> Result<Client, Failure> {
    Ok(Client::new(client.socket())?)
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
) -> Result<Vec<Running>, Failure> {
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
        let (waited, ready) = process.wait_until_ready(agents, patience, &INTERRUPTED)?;
        Ok((process, report, waited, ready))
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
