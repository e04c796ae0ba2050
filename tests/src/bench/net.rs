//! `net`: throughput and round trip of a guest's network interface, over TCP.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vmgenie_tests::console::Console;
use vmgenie_tests::guest::Guest;
use vmgenie_tests::net::{GUEST, LOAD_PORT, Namespace, eth0};

use crate::monitor::{Kind, Monitor, Program, Size};
use crate::report::{Report, table};
use crate::stats::{Series, ms, ratio};

/// The guest's machine.
const SIZE: Size = Size {
    vcpus: 1,
    memory_mib: 256,
    devices: false,
};
/// How many bytes one transfer has.
const TRANSFER: u64 = 32 << 20;
/// How many bytes go one way and back in each round.
const ROUND_TRIPS: usize = 200;
/// How long a guest may take to boot in the emulated host.
const BOOT_LIMIT: Duration = Duration::from_secs(150);
/// How long a guest may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A running guest of one program.
#[derive(Debug)]
struct Case<'a> {
    program: &'a Program,
    namespace: Namespace,
    /// Held: the guest runs as long as its monitor does.
    _monitor: Monitor,
    /// [`TRANSFER`] bytes to the guest, and from it.
    to_guest: Series,
    from_guest: Series,
    /// A byte and its echo.
    round_trip: Series,
}

/// Boots a guest with each program, and measures `runs` rounds of them in turn, after one that is not counted.
pub(crate) fn run(programs: &[Program], runs: usize) -> Result<Report> {
    ensure!(
        std::env::var_os("VMGENIE_GUEST_DIR").is_some(),
        "VMGENIE_GUEST_DIR does not name the guests' kernels: run `cargo xtask bench net`"
    );
    let mut cases = programs
        .iter()
        .map(|program| {
            Case::boot(program).with_context(|| format!("{} could not boot", program.name()))
        })
        .collect::<Result<Vec<_>>>()?;
    for round in 0..=runs {
        for case in &mut cases {
            case.measure(round > 0)
                .with_context(|| format!("the guest of {}", case.program.name()))?;
        }
    }
    Ok(report(&cases))
}

impl<'a> Case<'a> {
    fn boot(program: &'a Program) -> Result<Self> {
        let namespace = Namespace::new();
        namespace.add_tap("tap0");
        let mut monitor = namespace.run(|| program.start())?;
        let source = json!({
            "kernel_image_path": Guest::Small.kernel(),
            "initrd_path": Guest::Small.initrd(),
            "boot_args": Guest::Small.cmdline(),
        });
        monitor.configure(SIZE, &source)?;
        let connection = &mut monitor.connection;
        connection.send("PUT /network-interfaces/eth0", &eth0("tap0"))?;
        connection.send("PUT /actions", &json!({ "action_type": "InstanceStart" }))?;
        let console = &mut monitor.console;
        console.wait_for("@@ready\n", BOOT_LIMIT);
        ask(console, "ip link set eth0 up")?;
        ask(console, &format!("ip addr add {GUEST}/24 dev eth0"))?;
        ask(
            console,
            &format!("guest-load serve {LOAD_PORT} > /tmp/load &"),
        )?;
        Ok(Self {
            program,
            namespace,
            _monitor: monitor,
            to_guest: Series::default(),
            from_guest: Series::default(),
            round_trip: Series::default(),
        })
    }

    fn measure(&mut self, counts: bool) -> Result<()> {
        let connect = || self.namespace.connect(LOAD_PORT);
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

    fn json(&self) -> Value {
        json!({
            "monitor": self.program.name(),
            "to_guest": self.to_guest.json(),
            "from_guest": self.from_guest.json(),
            "round_trip": self.round_trip.json(),
        })
    }
}

fn ask(console: &mut Console, command: &str) -> Result<()> {
    console.send(&format!("{command}\n"));
    let answer = console.wait_for("@@exit:", ANSWER_LIMIT);
    let status = console.wait_for("\n", ANSWER_LIMIT);
    ensure!(status.trim() == "0", "{command}: {status} {answer}");
    Ok(())
}

fn report(cases: &[Case<'_>]) -> Report {
    type SeriesOf = for<'a> fn(&'a Case<'_>) -> &'a Series;
    let columns = ["monitor", "what", "rate", "p50", "min", "max", "to ours"];
    let mut rows = table(&columns);
    let ours = cases.iter().find(|case| case.program.kind == Kind::Vmgenie);
    for case in cases {
        let lines: [(_, u64, SeriesOf); 3] = [
            ("TCP to the guest", TRANSFER, |c| &c.to_guest),
            ("TCP from the guest", TRANSFER, |c| &c.from_guest),
            ("a byte and its echo", 0, |c| &c.round_trip),
        ];
        for (what, bytes, series) in lines {
            let times = series(case);
            let ratio = ours.and_then(|ours| ratio(times.p50(), series(ours).p50()));
            rows.add_row([
                case.program.name().to_owned(),
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
            "benchmark": "net",
            "vcpus": SIZE.vcpus,
            "memory_mib": SIZE.memory_mib,
            "transfer_bytes": TRANSFER,
            "cases": cases.iter().map(Case::json).collect::<Vec<_>>(),
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
