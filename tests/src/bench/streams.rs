//! What `net` and `vsock` measure of a stream between a guest and its host: throughput each way, and a round trip.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest_load::Stream;
use serde_json::{Value, json};
use vmgenie_tests::console::Console;

use crate::monitor::{Kind, Monitor, Program, Size};
use crate::report::{Report, table};
use crate::stats::{Series, ms, ratio};

/// The guest's machine.
pub(crate) const SIZE: Size = Size {
    vcpus: 1,
    memory_mib: 256,
    devices: false,
};
/// How many bytes one transfer has.
const TRANSFER: u64 = 32 << 20;
/// How many bytes go one way and back in each round.
const ROUND_TRIPS: usize = 200;
/// How long a guest may take to boot in the emulated host.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(150);
/// How many guests may be lost: an emulated processor loses one now and then.
const MAX_LOST: u32 = 5;
/// How long a guest may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// What was measured of one guest.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    /// [`TRANSFER`] bytes to the guest, and from it.
    to_guest: Series,
    from_guest: Series,
    /// A byte and its echo.
    round_trip: Series,
}

/// A running guest of one program.
pub(crate) trait Case {
    /// Of which program.
    fn program(&self) -> &Program;
    /// Where the measurements are kept.
    fn streams(&self) -> &Streams;
    /// The same, to go on with.
    fn streams_mut(&mut self) -> &mut Streams;
    /// What its guest runs on.
    fn monitor(&mut self) -> &mut Monitor;
    /// One round of [`Streams::measure`].
    fn measure(&mut self, counts: bool) -> Result<()>;
}

impl Streams {
    /// One round, over a connection each to the guest's side of [`guest_load`].
    pub(crate) fn measure<S: Stream>(
        &mut self,
        connect: impl Fn() -> S,
        counts: bool,
    ) -> Result<()> {
        let up = guest_load::upload(connect(), TRANSFER)?;
        let down = guest_load::download(connect(), TRANSFER)?;
        let trips = guest_load::round_trips(connect(), ROUND_TRIPS)?;
        if counts {
            self.to_guest.push(up);
            self.from_guest.push(down);
            trips
                .into_iter()
                .for_each(|trip| self.round_trip.push(trip));
        }
        Ok(())
    }
}

/// Measures `runs` rounds of each guest in turn, after one that is not counted.
pub(crate) fn run<C: Case>(
    benchmark: &str,
    programs: &[Program],
    runs: usize,
    boot: impl Fn(&Program) -> Result<C>,
) -> Result<Report> {
    ensure!(
        std::env::var_os("VMGENIE_GUEST_DIR").is_some(),
        "VMGENIE_GUEST_DIR does not name the guests' kernels: run `cargo xtask bench {benchmark}`"
    );
    let mut cases = programs
        .iter()
        .map(|program| boot(program).with_context(|| format!("{} could not boot", program.name())))
        .collect::<Result<Vec<_>>>()?;
    let mut lost = 0;
    for round in 0..=runs {
        for case in &mut cases {
            while let Err(error) = case.measure(round > 0) {
                let program = case.program().clone();
                let error = error.context(format!("the guest of {}", program.name()));
                lost += 1;
                let end = case.monitor().end().filter(|_| lost <= MAX_LOST);
                let Some(end) = end else { return Err(error) };
                eprintln!("NOTE: {error:#}; {end}; another guest goes on");
                let mut next = boot(&program)?;
                std::mem::swap(next.streams_mut(), case.streams_mut());
                *case = next;
                // Its first round does not count either. If that fails, so will the next.
                let _ = case.measure(false);
            }
        }
    }
    Ok(report(benchmark, &cases))
}

/// Has the guest's shell do something.
pub(crate) fn ask(console: &mut Console, command: &str) -> Result<()> {
    console.send(&format!("{command}\n"));
    let answer = console.wait_for("@@exit:", ANSWER_LIMIT);
    let status = console.wait_for("\n", ANSWER_LIMIT);
    ensure!(status.trim() == "0", "{command}: {status} {answer}");
    Ok(())
}

fn json(case: &impl Case) -> Value {
    let streams = case.streams();
    json!({
        "monitor": case.program().name(),
        "to_guest": streams.to_guest.json(),
        "from_guest": streams.from_guest.json(),
        "round_trip": streams.round_trip.json(),
    })
}

fn report<C: Case>(benchmark: &str, cases: &[C]) -> Report {
    type SeriesOf = fn(&Streams) -> &Series;
    let columns = ["monitor", "what", "rate", "p50", "min", "max", "to ours"];
    let mut rows = table(&columns);
    let ours = cases
        .iter()
        .find(|case| case.program().kind == Kind::Vmgenie);
    let lines: [(_, u64, SeriesOf); 3] = [
        ("to the guest", TRANSFER, |s| &s.to_guest),
        ("from the guest", TRANSFER, |s| &s.from_guest),
        ("a byte and its echo", 0, |s| &s.round_trip),
    ];
    for case in cases {
        for (what, bytes, series) in lines {
            let times = series(case.streams());
            let ratio = ours.and_then(|ours| ratio(times.p50(), series(ours.streams()).p50()));
            rows.add_row([
                case.program().name().to_owned(),
                what.to_owned(),
                rate(bytes, times.p50()),
                ms(times.p50()),
                ms(times.min()),
                ms(times.percentile(100)),
                ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}x")),
            ]);
        }
    }
    Report {
        tables: vec![rows],
        notes: vec![format!(
            "the small kernel, {SIZE}; {} MiB a transfer, every byte checked",
            TRANSFER >> 20
        )],
        json: json!({
            "benchmark": benchmark,
            "vcpus": SIZE.vcpus,
            "memory_mib": SIZE.memory_mib,
            "transfer_bytes": TRANSFER,
            "cases": cases.iter().map(json).collect::<Vec<_>>(),
        }),
    }
}

/// Megabytes a second, where there is a number of bytes.
fn rate(bytes: u64, time: Duration) -> String {
    match bytes {
        0 => String::new(),
        _ => format!("{:.1} MB/s", bytes as f64 / time.as_secs_f64() / 1e6),
    }
}
