//! `fork`: how long a guest stands still for a snapshot in which it takes part, and when a clone of it is so far; beside a plain snapshot and a
//! restore.
//!
//! Times of the original are by the VMM's account, those of a clone are from when it first ran (GET `/ready`).

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use comfy_table::Table;
use serde_json::{Value, json};
use vmgenie_api::client::SnapshotCreated;
use vmgenie_api::wire::{CooperativeCreate, Gate, SnapshotCreate, SnapshotHow, SnapshotLoad};
use vmgenie_tests::shell::load_modules;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Snapshot, Vm, tiny};

use crate::patience::patiently;
use crate::report::{Report, table};
use crate::stats::{Series, ms, ratio};

/// What guests have: the size of `create`.
const MEMORY: &str = "1G";
/// How long a clone may take to adapt.
const LIMIT: Duration = Duration::from_secs(60);

/// How a snapshot is taken and restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The guest takes part, and its clone has a gate.
    Fork,
    /// Neither.
    Plain,
}

/// What was measured of one way.
#[derive(Debug, Default)]
struct Times {
    /// From the request until all CPUs stood still.
    quiesce: Series,
    standstill: Series,
    /// The request to load, with the resume.
    restore: Series,
    reseeded: Series,
    adapted: Series,
    ready: Series,
    memory_bytes: u64,
}

/// A guest that goes on, and its clones.
struct Case {
    name: &'static str,
    original: Vm,
    fork: Times,
    plain: Times,
    spoilt: usize,
}

/// Takes one of the series of a way.
type SeriesOf = fn(&Times) -> &Series;

/// What is told of a guest with the driver.
const LINES: [(&str, SeriesOf); 6] = [
    ("request to standstill", |times| &times.quiesce),
    ("standstill of the original", |times| &times.standstill),
    ("restore of a clone", |times| &times.restore),
    ("resume to reseeded", |times| &times.reseeded),
    ("resume to adapted", |times| &times.adapted),
    ("resume to ready", |times| &times.ready),
];

/// The tiny guest with 32 MiB touched, which plays the driver's part, and what its snapshots cost.
struct Tiny {
    original: Vm,
    fork: Series,
    plain: Series,
}

/// Measures `runs` forks of each guest, in turn with plain snapshots; of the tiny one alone if that is wanted.
pub(crate) fn run(runs: usize, tiny_alone: bool) -> Result<Report> {
    let mut cases = Vec::new();
    for (name, guest) in [("small", Guest::Small), ("debian", Guest::Debian)] {
        if !tiny_alone {
            let (case, _) = patiently("a guest", || Ok(Case::new(name, guest)))?;
            cases.push(case);
        }
    }
    let mut tiny = Tiny::new();
    // The first snapshots have room made for them.
    tiny.measure()?;
    (tiny.fork, tiny.plain) = (Series::default(), Series::default());
    for _ in 0..runs {
        for case in &mut cases {
            case.measure(Way::Fork)?;
            case.measure(Way::Plain)?;
        }
        tiny.measure()?;
    }
    Ok(report(&cases, &tiny))
}

impl Tiny {
    fn new() -> Self {
        let boot = Boot::new(Guest::Tiny);
        Self {
            original: tiny::boot_with(boot.memory(MEMORY).cmdline("touch=32 fork=0")),
            fork: Series::default(),
            plain: Series::default(),
        }
    }

    fn measure(&mut self) -> Result<()> {
        for (way, series) in [(Way::Fork, &mut self.fork), (Way::Plain, &mut self.plain)] {
            let place = Snapshot::new();
            let client = &mut self.original.client;
            let made = client.create_snapshot(&request(&place, way))?;
            ensure_taken(&made)?;
            series.push(made.standstill);
        }
        Ok(())
    }
}

/// A snapshot that was to be taken with the guest was.
fn ensure_taken(made: &SnapshotCreated) -> Result<()> {
    let Some(made) = &made.cooperation else {
        return Ok(());
    };
    ensure!(
        made.how == SnapshotHow::KernelOnly,
        "the snapshot was taken {:?}: {:?}",
        made.how,
        made.why_plain
    );
    Ok(())
}

fn request(place: &Snapshot, way: Way) -> SnapshotCreate {
    SnapshotCreate {
        pause_vm: true,
        cooperative: (way == Way::Fork).then(CooperativeCreate::default),
        ..place.request()
    }
}

impl Case {
    fn new(name: &'static str, guest: Guest) -> Self {
        let mut original = Boot::new(guest).memory(MEMORY).ready();
        load_modules(&mut original, "");
        Self {
            name,
            original,
            fork: Times::default(),
            plain: Times::default(),
            spoilt: 0,
        }
    }

    fn measure(&mut self, way: Way) -> Result<()> {
        let place = Snapshot::new();
        let made = self
            .original
            .client
            .create_snapshot(&request(&place, way))?;
        let times = match way {
            Way::Fork => &mut self.fork,
            Way::Plain => &mut self.plain,
        };
        times.standstill.push(made.standstill);
        times.memory_bytes = made.memory_bytes;
        ensure_taken(&made)?;
        if let Some(made) = made.cooperation {
            times.quiesce.push(micros(made.quiesce_us));
        }
        let (clone, spoilt) = patiently("a clone", || restored(&place, way))?;
        self.spoilt += spoilt;
        times.restore.push(clone.restore);
        times.reseeded.push(clone.reseeded);
        times.adapted.push(clone.adapted);
        times.ready.push(clone.ready);
        Ok(())
    }

    fn json(&self) -> Value {
        let way = |times: &Times| {
            json!({
                "request_to_standstill": times.quiesce.json(),
                "standstill": times.standstill.json(),
                "memory_bytes": times.memory_bytes,
                "restore": times.restore.json(),
                "resume_to_reseeded": times.reseeded.json(),
                "resume_to_adapted": times.adapted.json(),
                "resume_to_ready": times.ready.json(),
            })
        };
        json!({
            "guest": self.name,
            "fork": way(&self.fork),
            "plain": way(&self.plain),
            "repeated": self.spoilt,
        })
    }
}

/// What a clone has shown.
struct Restored {
    restore: Duration,
    reseeded: Duration,
    adapted: Duration,
    ready: Duration,
}

fn restored(place: &Snapshot, way: Way) -> Result<Restored> {
    let mut vm = Vm::empty();
    vm.client.connect()?;
    let request = SnapshotLoad {
        resume_vm: true,
        gate: (way == Way::Fork).then(Gate::default),
        ..SnapshotLoad::of(place.state(), place.memory())
    };
    let begun = Instant::now();
    vm.client.load_snapshot(&request)?;
    let restore = begun.elapsed();
    let waited = vm.client.wait_for_generation(LIMIT)?;
    ensure!(waited.adapted, "the guest lacks {:?}", waited.missing);
    // Its gate opens in the same turn of the event loop, or the next one.
    let mut ready = vm.client.ready()?;
    while !ready.ready && begun.elapsed() < LIMIT {
        ready = vm.client.ready()?;
    }
    ensure!(ready.ready, "the guest is not ready: {ready:?}");
    Ok(Restored {
        restore,
        reseeded: micros(ready.reseeded_us),
        adapted: micros(ready.adapted_us),
        ready: micros(ready.service_us),
    })
}

fn micros(told: Option<u64>) -> Duration {
    Duration::from_micros(told.unwrap_or_default())
}

fn report(cases: &[Case], tiny: &Tiny) -> Report {
    Report {
        tables: vec![times_table(cases, tiny)],
        notes: cases.iter().map(note).collect(),
        json: json!({
            "benchmark": "fork",
            "memory": MEMORY,
            "cases": cases.iter().map(Case::json).collect::<Vec<_>>(),
            "tiny": {
                "fork": { "standstill": tiny.fork.json() },
                "plain": { "standstill": tiny.plain.json() },
            },
        }),
    }
}

fn note(case: &Case) -> String {
    format!(
        "{}: {} forks; a snapshot has {} MiB of memory; {} clones were repeated, because a guest crashed or fell silent",
        case.name,
        case.fork.standstill.len(),
        case.fork.memory_bytes >> 20,
        case.spoilt,
    )
}

fn times_table(cases: &[Case], tiny: &Tiny) -> Table {
    let mut rows = table(&[
        "guest",
        "what",
        "fork p50",
        "p90",
        "min",
        "plain p50",
        "p90",
        "min",
        "fork to plain",
    ]);
    for case in cases {
        for (what, series) in LINES {
            rows.add_row(line(
                case.name,
                what,
                series(&case.fork),
                series(&case.plain),
            ));
        }
    }
    let (what, _) = LINES[1];
    rows.add_row(line("tiny, 32 MiB touched", what, &tiny.fork, &tiny.plain));
    rows
}

fn line(guest: &str, what: &str, fork: &Series, plain: &Series) -> [String; 9] {
    let shown = |times: &Series, percent| match times.len() {
        0 => String::new(),
        _ => ms(times.percentile(percent)),
    };
    let ratio = ratio(fork.p50(), plain.p50());
    [
        guest.to_owned(),
        what.to_owned(),
        shown(fork, 50),
        shown(fork, 90),
        shown(fork, 0),
        shown(plain, 50),
        shown(plain, 90),
        shown(plain, 0),
        ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}x")),
    ]
}
