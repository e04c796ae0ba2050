//! `create`: how long a guest stands still for a full snapshot.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::file_system;
use crate::monitor::{Files, Kind, Monitor, Program, Size, Workplace, vm_state};
use crate::report::{Report, table};
use crate::stats::{Series, ms, ratio};

/// 1 GiB, of which the tiny guest touches 32 MiB.
const SIZE: Size = Size {
    vcpus: 1,
    memory_mib: 1024,
    devices: false,
};

/// One program's snapshots.
#[derive(Debug)]
struct Case<'a> {
    program: &'a Program,
    monitor: Monitor,
    files: Files,
    /// From the request to pause to the answer to the request to resume.
    whole: Series,
    /// The request to create alone.
    create: Series,
    /// Syncing and renaming, by the monitor's own account.
    sync: Series,
    /// With `resume_vm`: what the monitor says that its guest stood still while the memory was copied.
    early_resume: Series,
    /// With `resume_vm`: from the request to pause to the answer to the request to create.
    early_whole: Series,
}

/// Takes `runs` snapshots with each program, all in turn.
pub(crate) fn run(programs: &[Program], runs: usize) -> Result<Report> {
    let place = Workplace::new()?;
    let mut cases = programs
        .iter()
        .map(|program| Case::new(program, &place))
        .collect::<Result<Vec<_>>>()?;
    for _ in 0..runs {
        for case in &mut cases {
            case.measure()
                .with_context(|| format!("could not measure {}", case.program.name()))?;
        }
    }
    let file_system = file_system::of(place.path())?;
    Ok(report(&cases, &file_system))
}

impl<'a> Case<'a> {
    fn new(program: &'a Program, place: &Workplace) -> Result<Self> {
        let mut monitor = program.start()?;
        monitor.boot_tiny(SIZE, &place.elf())?;
        Ok(Self {
            program,
            monitor,
            files: place.snapshot(program.name()),
            whole: Series::default(),
            create: Series::default(),
            sync: Series::default(),
            early_resume: Series::default(),
            early_whole: Series::default(),
        })
    }

    fn measure(&mut self) -> Result<()> {
        let api = &mut self.monitor.connection;
        let request = self.files.create_request();
        let begun = Instant::now();
        api.send("PATCH /vm", &vm_state("Paused"))?;
        let created = api.send("PUT /snapshot/create", &request)?;
        api.send("PATCH /vm", &vm_state("Resumed"))?;
        self.whole.push(begun.elapsed());
        self.create.push(created.took);
        if self.program.kind == Kind::Vmgenie {
            let (standstill, total) = headers(&created)?;
            self.sync.push(total.saturating_sub(standstill));
            self.measure_early_resume(request)?;
        }
        Ok(())
    }

    fn measure_early_resume(&mut self, mut request: Value) -> Result<()> {
        let api = &mut self.monitor.connection;
        if let Some(fields) = request.as_object_mut() {
            fields.insert("resume_vm".to_owned(), true.into());
        }
        let begun = Instant::now();
        api.send("PATCH /vm", &vm_state("Paused"))?;
        let created = api.send("PUT /snapshot/create", &request)?;
        self.early_whole.push(begun.elapsed());
        self.early_resume.push(headers(&created)?.0);
        Ok(())
    }

    fn json(&self) -> Value {
        let ours = self.program.kind == Kind::Vmgenie;
        json!({
            "monitor": self.program.name(),
            "standstill": self.whole.json(),
            "create": self.create.json(),
            "sync": ours.then(|| self.sync.json()),
            "standstill_with_resume_vm": ours.then(|| self.early_resume.json()),
            "pause_to_answer_with_resume_vm": ours.then(|| self.early_whole.json()),
        })
    }
}

fn headers(answer: &crate::http::Answer) -> Result<(Duration, Duration)> {
    let header = |name: &str| {
        answer
            .number(name)
            .map(Duration::from_micros)
            .with_context(|| format!("the answer lacks the header {name}"))
    };
    Ok((
        header(vmgenie_api::headers::STANDSTILL_HEADER.as_str())?,
        header(vmgenie_api::headers::TOTAL_HEADER.as_str())?,
    ))
}

fn report(cases: &[Case<'_>], file_system: &str) -> Report {
    let mut rows = table(&["monitor", "what", "p50", "p90", "min", "to ours"]);
    let ours = cases.iter().find(|case| case.program.kind == Kind::Vmgenie);
    for case in cases {
        let lines = [
            ("standstill: pause, create, resume", &case.whole),
            ("  of which PUT /snapshot/create", &case.create),
            ("  of which sync and rename", &case.sync),
            ("standstill with resume_vm, by the VMM", &case.early_resume),
            ("  pause to the answer, files safe", &case.early_whole),
        ];
        for (what, series) in lines.into_iter().filter(|(_, series)| series.len() > 0) {
            let whole = std::ptr::eq(series, &raw const case.whole);
            let ratio = ours
                .filter(|_| whole)
                .and_then(|ours| ratio(series.p50(), ours.whole.p50()));
            rows.add_row([
                case.program.name().to_owned(),
                what.to_owned(),
                ms(series.p50()),
                ms(series.percentile(90)),
                ms(series.min()),
                ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}x")),
            ]);
        }
    }
    Report {
        tables: vec![rows],
        notes: vec![format!(
            "{SIZE}, of which the guest has touched 32 MiB; the snapshots are on {file_system}"
        )],
        json: json!({
            "benchmark": "create",
            "vcpus": SIZE.vcpus,
            "memory_mib": SIZE.memory_mib,
            "touched_mib": 32,
            "file_system": file_system,
            "cases": cases.iter().map(Case::json).collect::<Vec<_>>(),
        }),
    }
}
