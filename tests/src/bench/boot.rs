//! `boot`: from InstanceStart to the guest's init, by the wall clock and by the guest's own.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vmgenie_tests::console::Console;
use vmgenie_tests::guest::Guest;

use crate::monitor::{Program, Size};
use crate::report::{Report, times_table};
use crate::stats::Series;

/// The small kernel's machine.
const SIZE: Size = Size {
    vcpus: 1,
    memory_mib: 256,
    devices: false,
};
/// How long a guest may take to boot in the emulated host.
const BOOT_LIMIT: Duration = Duration::from_secs(150);
/// How long a guest may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// One program's boots.
#[derive(Debug)]
struct Case<'a> {
    program: &'a Program,
    /// Wall clock: InstanceStart sent to the line `@@ready`.
    ready: Series,
    /// Guest clock: when the kernel started `/init`.
    init: Series,
    /// Guest clock: the uptime right after `@@ready`.
    uptime: Series,
}

/// Boots the small kernel `runs` times with each program, in turn.
pub(crate) fn run(programs: &[Program], runs: usize) -> Result<Report> {
    ensure!(
        std::env::var_os("VMGENIE_GUEST_DIR").is_some(),
        "VMGENIE_GUEST_DIR does not name the guests' kernels: run `cargo xtask bench boot`"
    );
    let mut cases: Vec<_> = programs
        .iter()
        .map(|program| Case {
            program,
            ready: Series::default(),
            init: Series::default(),
            uptime: Series::default(),
        })
        .collect();
    for _ in 0..runs {
        for case in &mut cases {
            case.boot()
                .with_context(|| format!("{} could not boot", case.program.name()))?;
        }
    }
    Ok(report(&cases))
}

impl Case<'_> {
    fn boot(&mut self) -> Result<()> {
        let mut monitor = self.program.start()?;
        let initrd = Guest::Small
            .initrd()
            .context("the small guest has an initramfs")?;
        monitor.configure(SIZE, &boot_source(&Guest::Small.kernel(), &initrd))?;
        let begun = Instant::now();
        monitor
            .connection
            .send("PUT /actions", &json!({ "action_type": "InstanceStart" }))?;
        let console = &mut monitor.console;
        console.wait_for("@@ready\n", BOOT_LIMIT);
        self.ready.push(begun.elapsed());
        let uptime = ask(console, "cut -d' ' -f1 /proc/uptime");
        let log = ask(console, "dmesg | grep 'Run /init'");
        self.uptime
            .push(seconds(&uptime).with_context(|| format!("the guest's uptime is {uptime:?}"))?);
        // `[    0.912345] Run /init as init process`
        let stamp = log.trim_start_matches(['[', ' ']).split(']').next();
        if let Some(stamp) = stamp.and_then(seconds) {
            self.init.push(stamp);
        }
        Ok(())
    }

    fn json(&self) -> Value {
        json!({
            "monitor": self.program.name(),
            "ready_wall_clock": self.ready.json(),
            "init_guest_clock": self.init.json(),
            "uptime_at_ready_guest_clock": self.uptime.json(),
        })
    }
}

fn boot_source(kernel: &Path, initrd: &Path) -> Value {
    json!({
        "kernel_image_path": kernel,
        "initrd_path": initrd,
        "boot_args": Guest::Small.cmdline(),
    })
}

fn ask(console: &mut Console, command: &str) -> String {
    console.send(&format!("{command}\n"));
    let answer = console.wait_for("@@exit:", ANSWER_LIMIT);
    console.wait_for("\n", ANSWER_LIMIT);
    answer.trim().to_owned()
}

fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.trim().parse().ok()?).ok()
}

fn report(cases: &[Case<'_>]) -> Report {
    let rows = times_table(
        cases,
        |case| case.program,
        &[
            ("InstanceStart to @@ready, wall clock", |c| &c.ready),
            ("kernel starts /init, guest's clock", |c| &c.init),
            ("uptime after @@ready, guest's clock", |c| &c.uptime),
        ],
    );
    Report {
        tables: vec![rows],
        notes: vec![format!("the small kernel and its initramfs, {SIZE}")],
        json: json!({
            "benchmark": "boot",
            "vcpus": SIZE.vcpus,
            "memory_mib": SIZE.memory_mib,
            "cases": cases.iter().map(Case::json).collect::<Vec<_>>(),
        }),
    }
}
