//! `notify`: from the resume of a clone to the new generation being known, in the guest and on the host, on vmgenie and on QEMU.
//!
//! Times in the guest are taken by its own time-stamp counter, from the first load that shows the resume: a program in
//! the guest, `sysgenid-test latency`, measures them. Times on the host are from the request to resume.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use vmgenie_api::client::Client;
use vmgenie_tests::console::Console;
use vmgenie_tests::qemu::Frozen;
use vmgenie_tests::shell::load_modules;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Qemu, Shell, Snapshot, Vm};

use crate::patience::patiently;
use crate::report::{Report, table};
use crate::stats::{Series, ms, ratio};

/// One for the thread that loads, one for all else.
const CPUS: u8 = 2;
/// How long a guest may take to say something.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a loaded machine is left alone before it is resumed.
const SETTLE: Duration = Duration::from_millis(50);

/// A snapshot of a guest in which the program waits, and what was measured in clones of it.
#[derive(Debug)]
struct Case {
    snapshot: Saved,
    /// Guest clock: a load from the mapping showed the new generation.
    mapped: Series,
    /// Guest clock: a blocked `read()` returned.
    read: Series,
    /// Host clock: the line of the thread that was blocked had arrived.
    told: Series,
    /// Host clock: the VMM said that the guest has adapted.
    adapted: Series,
    /// Loads that were old after the resume, of each clone.
    stale: Vec<u64>,
    repeated: usize,
}

/// Whose snapshot it is.
#[derive(Debug)]
enum Saved {
    Vmgenie(Snapshot),
    Qemu(Frozen),
}

/// What one clone has shown.
#[derive(Debug, PartialEq)]
struct Measured {
    mapped: Duration,
    read: Duration,
    told: Duration,
    adapted: Option<Duration>,
    stale: u64,
}

/// Takes one of a case's series.
type SeriesOf = fn(&Case) -> &Series;

/// Measures `runs` clones of each monitor, in turn.
pub(crate) fn run(runs: usize) -> Result<Report> {
    for variable in ["VMGENIE_GUEST_DIR", "VMGENIE_QEMU"] {
        ensure!(
            std::env::var_os(variable).is_some(),
            "{variable} is not set: run `cargo xtask bench notify`"
        );
    }
    let mut cases = Vec::new();
    for take in [vmgenie_snapshot as fn() -> Saved, qemu_snapshot] {
        let (snapshot, _) = patiently("the guest that is snapshotted", || Ok(take()))?;
        cases.push(Case::new(snapshot));
    }
    for _ in 0..runs {
        for case in &mut cases {
            case.measure()?;
        }
    }
    Ok(report(&cases))
}

fn vmgenie_snapshot() -> Saved {
    let mut vm = Boot::new(Guest::Small).cpus(CPUS).ready();
    begin(&mut vm);
    Saved::Vmgenie(vm.snapshot())
}

fn qemu_snapshot() -> Saved {
    let mut qemu = Qemu::boot(Guest::Small, CPUS);
    begin(&mut qemu);
    Saved::Qemu(qemu.snapshot())
}

/// Starts the program and waits until it waits.
fn begin(guest: &mut impl Shell) {
    load_modules(guest, "");
    guest.shell("test -e /dev/vmclock0 || insmod /modules/ptp_vmclock.ko");
    guest.shell("sysgenid-test latency &");
    let console = guest.console();
    console.wait_for("ready tick", LIMIT);
    console.wait_for("\n", LIMIT);
}

impl Case {
    fn new(snapshot: Saved) -> Self {
        Self {
            snapshot,
            mapped: Series::default(),
            read: Series::default(),
            told: Series::default(),
            adapted: Series::default(),
            stale: Vec::new(),
            repeated: 0,
        }
    }

    fn name(&self) -> &'static str {
        match self.snapshot {
            Saved::Vmgenie(_) => "vmgenie",
            Saved::Qemu(_) => "QEMU",
        }
    }

    fn measure(&mut self) -> Result<()> {
        let snapshot = &self.snapshot;
        let (measured, spoilt) = patiently("a clone", || match snapshot {
            Saved::Vmgenie(snapshot) => measure_vmgenie(snapshot),
            Saved::Qemu(frozen) => measure_qemu(frozen),
        })?;
        self.repeated += spoilt;
        self.mapped.push(measured.mapped);
        self.read.push(measured.read);
        self.told.push(measured.told);
        if let Some(adapted) = measured.adapted {
            self.adapted.push(adapted);
        }
        self.stale.push(measured.stale);
        Ok(())
    }

    /// In how many clones a load was old after the resume.
    fn stale_clones(&self) -> usize {
        self.stale.iter().filter(|loads| **loads > 0).count()
    }

    fn json(&self) -> Value {
        let adapted = (self.adapted.len() > 0).then(|| self.adapted.json());
        json!({
            "monitor": self.name(),
            "mapped_load_guest_clock": self.mapped.json(),
            "blocked_read_guest_clock": self.read.json(),
            "line_of_reader_host_clock": self.told.json(),
            "host_knows_adapted_host_clock": adapted,
            "clones_with_stale_loads": self.stale_clones(),
            "stale_loads": self.stale,
            "repeated": self.repeated,
        })
    }
}

fn measure_vmgenie(snapshot: &Snapshot) -> Result<Measured> {
    let mut vm = Vm::load(snapshot);
    let mut client = Client::new(vm.socket())?;
    client.connect()?;
    thread::sleep(SETTLE);
    thread::scope(|scope| {
        let resumed = Instant::now();
        vm.client.resume()?;
        // Not before: of a machine that stands still nobody may ask it.
        let waiting = scope.spawn(move || -> Result<Instant> {
            let waited = client.wait_for_generation(LIMIT)?;
            let now = Instant::now();
            ensure!(waited.adapted, "the guest lacks {:?}", waited.missing);
            Ok(now)
        });
        let mut measured = hear(&mut vm.console, resumed)?;
        let adapted = waiting
            .join()
            .map_err(|_| anyhow!("the wait for the guest panicked"))??;
        measured.adapted = Some(adapted.duration_since(resumed));
        Ok(measured)
    })
}

fn measure_qemu(frozen: &Frozen) -> Result<Measured> {
    let mut qemu = Qemu::load(frozen);
    thread::sleep(SETTLE);
    let resumed = Instant::now();
    qemu.resume();
    hear(&mut qemu.console, resumed)
}

/// Hears what the program tells: the reader's word first, then a line of both.
fn hear(console: &mut Console, resumed: Instant) -> Result<Measured> {
    console.wait_for("read\n", LIMIT);
    let told = resumed.elapsed();
    console.wait_for("resume ", LIMIT);
    let line = console.wait_for("\n", LIMIT);
    measured(&line, told).with_context(|| format!("the program in the guest told {line:?}"))
}

/// Reads `counter OLD FIRST READ stale LOADS mapped NANOSECONDS read NANOSECONDS`.
fn measured(line: &str, told: Duration) -> Result<Measured> {
    let number = |name: &str| -> Result<i64> {
        let mut words = line.split(' ').skip_while(|word| *word != name).skip(1);
        let word = words.next().with_context(|| format!("no {name}"))?;
        Ok(word.parse()?)
    };
    // A reader whose processor came first read before the other thread's first load.
    let time = |name| number(name).map(|ns| Duration::from_nanos(u64::try_from(ns).unwrap_or(0)));
    Ok(Measured {
        mapped: time("mapped")?,
        read: time("read")?,
        told,
        adapted: None,
        stale: u64::try_from(number("stale")?)?,
    })
}

fn report(cases: &[Case]) -> Report {
    let mut rows = table(&["monitor", "what", "p50", "min", "max", "to ours"]);
    let lines: [(_, SeriesOf); 4] = [
        ("a mapped load is new, guest's clock", |case| &case.mapped),
        ("a blocked read returns, guest's clock", |case| &case.read),
        ("the reader's line arrives, host's clock", |case| &case.told),
        ("the host knows that all adapted, host's clock", |case| {
            &case.adapted
        }),
    ];
    for case in cases {
        for (what, series) in lines {
            let times = series(case);
            let to_ours = cases.first().map(|ours| series(ours).p50());
            let ratio = to_ours.and_then(|ours| ratio(times.p50(), ours));
            let cells = match times.len() {
                0 => ["cannot be asked", "", "", ""].map(str::to_owned),
                _ => [
                    ms(times.p50()),
                    ms(times.min()),
                    ms(times.percentile(100)),
                    ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}x")),
                ],
            };
            let [p50, min, max, ratio] = cells;
            rows.add_row([
                case.name().to_owned(),
                what.to_owned(),
                p50,
                min,
                max,
                ratio,
            ]);
        }
    }
    let mut notes: Vec<_> = cases.iter().map(note).collect();
    notes.push(
        "guest's clock: from the first load after the resume; host's: from the request to resume"
            .to_owned(),
    );
    Report {
        tables: vec![rows],
        notes,
        json: json!({
            "benchmark": "notify",
            "vcpus": CPUS,
            "cases": cases.iter().map(Case::json).collect::<Vec<_>>(),
        }),
    }
}

fn note(case: &Case) -> String {
    format!(
        "{}: of {} clones {} loaded an old value after the resume, up to {} times; {} were repeated, because a guest \
         crashed or fell silent",
        case.name(),
        case.stale.len(),
        case.stale_clones(),
        case.stale.iter().max().unwrap_or(&0),
        case.repeated,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_guest_s_program_is_read() {
        let told = Duration::from_millis(7);
        let line = "counter 0 1 2 stale 3 mapped 40 read -5";
        let expected = Measured {
            mapped: Duration::from_nanos(40),
            read: Duration::ZERO,
            told,
            adapted: None,
            stale: 3,
        };
        assert_eq!(measured(line, told).unwrap(), expected);
        assert!(measured("counter 0 1", told).is_err());
    }
}
