//! `block`: 4 KiB anywhere and 1 MiB in a row, read and written by a guest past its page cache.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use vmgenie_tests::console::Console;
use vmgenie_tests::guest::Guest;

use crate::monitor::{Kind, Monitor, Program, Size};
use crate::report::{Report, table};
use crate::stats::{Series, ms, ratio};

/// The guest's machine.
const SIZE: Size = Size {
    vcpus: 1,
    memory_mib: 256,
    devices: false,
};
/// The size of the disk. All of it is in the host's page cache: what is measured is the way there.
const DISK_MIB: usize = 64;
/// How long a guest may take to boot in the emulated host.
const BOOT_LIMIT: Duration = Duration::from_secs(150);
/// How long a guest may take for one measurement.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// How requests are served, as the API names it.
const ENGINES: [&str; 2] = ["Async", "Sync"];

/// What is measured.
#[derive(Debug, Clone, Copy)]
struct Access {
    name: &'static str,
    direction: &'static str,
    order: &'static str,
    bytes: u64,
    /// Accesses of each worker.
    count: u64,
    /// Accesses under way at a time.
    workers: u64,
}

const fn random(name: &'static str, direction: &'static str, count: u64, workers: u64) -> Access {
    Access {
        name,
        direction,
        order: "random",
        bytes: 4 << 10,
        count,
        workers,
    }
}

const fn sequential(name: &'static str, direction: &'static str) -> Access {
    Access {
        name,
        direction,
        order: "sequential",
        bytes: 1 << 20,
        count: 48,
        workers: 1,
    }
}

const ACCESSES: [Access; 6] = [
    random("4 KiB read, 1 at a time", "read", 400, 1),
    random("4 KiB read, 8 at a time", "read", 100, 8),
    random("4 KiB write, 1 at a time", "write", 400, 1),
    random("4 KiB write, 8 at a time", "write", 100, 8),
    sequential("1 MiB read in a row", "read"),
    sequential("1 MiB write in a row", "write"),
];

/// A running guest of one program.
#[derive(Debug)]
struct Case<'a> {
    program: &'a Program,
    engine: &'static str,
    /// Held, as long as the guest runs.
    _disk: TempDir,
    monitor: Monitor,
    /// One for each of [`ACCESSES`]: how long all of them took.
    times: [Series; ACCESSES.len()],
}

/// Boots a guest with each program and engine, and measures `runs` rounds of them in turn, after one that is not counted.
pub(crate) fn run(programs: &[Program], runs: usize) -> Result<Report> {
    ensure!(
        std::env::var_os("VMGENIE_GUEST_DIR").is_some(),
        "VMGENIE_GUEST_DIR does not name the guests' kernels: run `cargo xtask bench block`"
    );
    let mut cases = Vec::new();
    for engine in ENGINES {
        for program in programs {
            let case = Case::boot(program, engine);
            cases.push(case.with_context(|| format!("{} could not boot", program.name()))?);
        }
    }
    for round in 0..=runs {
        for case in &mut cases {
            case.measure(round > 0)
                .with_context(|| format!("the guest of {}", case.program.name()))?;
        }
    }
    Ok(report(&cases))
}

impl<'a> Case<'a> {
    fn boot(program: &'a Program, engine: &'static str) -> Result<Self> {
        let disk = tempfile::tempdir().context("could not make a temporary directory")?;
        let image = disk.path().join("disk.img");
        fs::write(&image, vec![0x5a; DISK_MIB << 20]).context("could not write an image")?;
        let mut monitor = program.start()?;
        let source = Guest::Small.boot_source();
        monitor.configure(SIZE, &source)?;
        let drive = json!({
            "drive_id": "data",
            "path_on_host": image,
            "is_root_device": false,
            "cache_type": "Writeback",
            "io_engine": engine,
        });
        let connection = &mut monitor.connection;
        connection.send("PUT /drives/data", &drive)?;
        connection.send("PUT /actions", &json!({ "action_type": "InstanceStart" }))?;
        monitor.console.wait_for("@@ready\n", BOOT_LIMIT);
        Ok(Self {
            program,
            engine,
            _disk: disk,
            monitor,
            times: Default::default(),
        })
    }

    fn measure(&mut self, counts: bool) -> Result<()> {
        for (access, series) in ACCESSES.iter().zip(&mut self.times) {
            let took = take(&mut self.monitor.console, *access)?;
            if counts {
                series.push(took);
            }
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let times = ACCESSES.iter().zip(&self.times).map(|(access, series)| {
            json!({
                "access": access.name,
                "accesses": access.count * access.workers,
                "bytes": access.bytes,
                "all": series.json(),
            })
        });
        json!({
            "monitor": self.program.name(),
            "io_engine": self.engine,
            "accesses": times.collect::<Vec<_>>(),
        })
    }
}

/// Has the guest make the accesses; returns how long they took by its clock.
fn take(console: &mut Console, access: Access) -> Result<Duration> {
    let Access {
        direction,
        order,
        bytes,
        count,
        workers,
        ..
    } = access;
    console.send(&format!(
        "guest-load time /dev/vda {direction} {order} {bytes} {count} {workers}\n"
    ));
    let answer = console.wait_for("@@exit:", ANSWER_LIMIT);
    let status = console.wait_for("\n", ANSWER_LIMIT);
    let nanoseconds = answer
        .lines()
        .find_map(|line| line.strip_prefix("nanoseconds "))
        .and_then(|number| number.trim().parse().ok());
    ensure!(status.trim() == "0", "{}: {answer}", access.name);
    nanoseconds
        .map(Duration::from_nanos)
        .with_context(|| format!("{}: {answer}", access.name))
}

fn report(cases: &[Case<'_>]) -> Report {
    let mut rows = table(&[
        "monitor", "engine", "what", "rate", "each p50", "min", "max", "to ours",
    ]);
    for (index, access) in ACCESSES.iter().enumerate() {
        for case in cases {
            let times = &case.times[index];
            let ours = cases
                .iter()
                .find(|ours| ours.program.kind == Kind::Vmgenie && ours.engine == case.engine);
            let ratio = ours.and_then(|ours| ratio(times.p50(), ours.times[index].p50()));
            let accesses = access.count * access.workers;
            let each = |time: Duration| ms(time / u32::try_from(accesses).unwrap_or(u32::MAX));
            rows.add_row([
                case.program.name().to_owned(),
                case.engine.to_owned(),
                access.name.to_owned(),
                rate(*access, accesses, times.p50()),
                each(times.p50()),
                each(times.min()),
                each(times.percentile(100)),
                ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}x")),
            ]);
        }
    }
    Report {
        tables: vec![rows],
        notes: vec![format!(
            "a disk of {DISK_MIB} MiB in the host's page cache; writes are flushed at their end"
        )],
        json: Value::Array(cases.iter().map(Case::json).collect()),
    }
}

/// Accesses a second, or MiB a second of large ones.
fn rate(access: Access, accesses: u64, took: Duration) -> String {
    let seconds = took.as_secs_f64().max(f64::MIN_POSITIVE);
    match access.order {
        "random" => format!("{:.0} /s", accesses as f64 / seconds),
        _ => {
            let mib = (accesses * access.bytes) as f64 / f64::from(1 << 20);
            format!("{:.0} MiB/s", mib / seconds)
        }
    }
}
