//! `restore`: from the request to the answer of a running machine, beside the bare ioctls, and the memory of the process afterwards.

use anyhow::{Context, Result};
use comfy_table::Table;
use serde_json::{Value, json};

use crate::devices::Devices;
use crate::floor::Floor;
use crate::monitor::{Files, Kind, Program, Size, Workplace, vm_state};
use crate::report::{Report, table};
use crate::resident::Resident;
use crate::stats::{Series, ms, ratio};

/// Two sizes, which shall cost the same; and the first one with devices.
const SIZES: [Size; 3] = [
    Size {
        vcpus: 1,
        memory_mib: 128,
        devices: false,
    },
    Size {
        vcpus: 2,
        memory_mib: 1024,
        devices: false,
    },
    Size {
        vcpus: 1,
        memory_mib: 128,
        devices: true,
    },
];
/// Rounds before the measured ones: page cache, CPU frequency.
const WARM_UP: usize = 3;

/// One size restored by one monitor.
#[derive(Debug)]
struct Case<'a> {
    program: &'a Program,
    size: Size,
    files: Files,
    times: Series,
    resident: Option<Resident>,
    devices: &'a Devices,
}

/// The floor of one size.
#[derive(Debug)]
struct FloorCase {
    size: Size,
    floor: Floor,
    whole: Series,
    without_create_vm: Series,
}

/// Measures `runs` restores of each size by each program, all in turn.
pub(crate) fn run(programs: &[Program], runs: usize) -> Result<Report> {
    let place = Workplace::new()?;
    let devices = Devices::new(place.path())?;
    let mut cases = Vec::new();
    for program in programs {
        for size in SIZES {
            cases.push(Case::new(program, size, &place, &devices)?);
        }
    }
    let mut floors = cases
        .iter()
        .filter(|case| case.program.kind == Kind::Vmgenie && !case.size.devices)
        .map(FloorCase::new)
        .collect::<Result<Vec<_>>>()?;
    for round in 0..WARM_UP + runs {
        let measured = round >= WARM_UP;
        for case in &mut cases {
            case.restore(measured)?;
        }
        for floor in &mut floors {
            floor.measure(measured)?;
        }
    }
    for case in &mut cases {
        case.resident = Some(case.look_at_memory()?);
    }
    Ok(report(&cases, &floors))
}

impl<'a> Case<'a> {
    fn new(
        program: &'a Program,
        size: Size,
        place: &Workplace,
        devices: &'a Devices,
    ) -> Result<Self> {
        let name = if size.devices { "-devices" } else { "" };
        let files = place.snapshot(&format!("{}-{}{name}", program.name(), size.memory_mib));
        devices.tidy_up();
        let mut monitor = program.start()?;
        if size.devices {
            devices.configure(&mut monitor.connection, program.name())?;
        }
        monitor.boot_tiny(size, &place.elf())?;
        let api = &mut monitor.connection;
        api.send("PATCH /vm", &vm_state("Paused"))?;
        api.send("PUT /snapshot/create", &files.create_request())
            .with_context(|| format!("could not make a snapshot of {size}"))?;
        Ok(Self {
            program,
            size,
            files,
            times: Series::default(),
            resident: None,
            devices,
        })
    }

    fn restore(&mut self, measured: bool) -> Result<()> {
        self.devices.tidy_up();
        let mut monitor = self.program.start()?;
        let answer = monitor
            .connection
            .send("PUT /snapshot/load", &self.files.load_request())?;
        if measured {
            self.times.push(answer.took);
        }
        Ok(())
    }

    fn look_at_memory(&self) -> Result<Resident> {
        self.devices.tidy_up();
        let mut monitor = self.program.start()?;
        monitor
            .connection
            .send("PUT /snapshot/load", &self.files.load_request())?;
        std::thread::sleep(std::time::Duration::from_millis(100));
        Resident::of(monitor.pid(), &self.files.memory)
    }

    fn json(&self) -> Value {
        json!({
            "monitor": self.program.name(),
            "vcpus": self.size.vcpus,
            "memory_mib": self.size.memory_mib,
            "devices": self.size.devices,
            "restore": self.times.json(),
            "resident_outside_guest_memory": self.resident.as_ref().map(Resident::json),
        })
    }
}

impl FloorCase {
    fn new(case: &Case<'_>) -> Result<Self> {
        Ok(Self {
            size: case.size,
            floor: Floor::of(&case.files)?,
            whole: Series::default(),
            without_create_vm: Series::default(),
        })
    }

    fn measure(&mut self, measured: bool) -> Result<()> {
        let times = self.floor.measure()?;
        if measured {
            self.whole.push(times.whole);
            self.without_create_vm.push(times.without_create_vm);
        }
        Ok(())
    }

    fn json(&self) -> Value {
        json!({
            "vcpus": self.size.vcpus,
            "memory_mib": self.size.memory_mib,
            "devices": self.size.devices,
            "floor": self.whole.json(),
            "floor_without_create_vm": self.without_create_vm.json(),
        })
    }
}

fn report(cases: &[Case<'_>], floors: &[FloorCase]) -> Report {
    let mut notes = Vec::new();
    let mut equal = Vec::new();
    for pair in cases.chunks(SIZES.len()) {
        let [small, large, with_devices] = pair else {
            continue;
        };
        let name = small.program.name();
        let Some(ratio) = ratio(large.times.p50(), small.times.p50()) else {
            continue;
        };
        notes.push(format!(
            "{name}: p50 at {} is {ratio:.2} times that at {}",
            large.size, small.size
        ));
        equal.push(json!({ "monitor": name, "large_to_small": ratio }));
        let micros = |case: &Case<'_>| case.times.p50().as_secs_f64() * 1e6;
        notes.push(format!(
            "{name}: devices take {:.0} us of the p50",
            micros(with_devices) - micros(small)
        ));
    }
    notes.push(
        "floor: the bare ioctls of the same restore in the benchmark's own process, in the same turn".to_owned(),
    );
    Report {
        tables: vec![times_table(cases, floors), resident_table(cases)],
        notes,
        json: json!({
            "benchmark": "restore",
            "cases": cases.iter().map(Case::json).collect::<Vec<_>>(),
            "floors": floors.iter().map(FloorCase::json).collect::<Vec<_>>(),
            "sizes": equal,
        }),
    }
}

fn times_table(cases: &[Case<'_>], floors: &[FloorCase]) -> Table {
    let mut rows = table(&[
        "monitor",
        "size",
        "p50",
        "p90",
        "min",
        "floor p50",
        "to floor",
        "floor p50, VM at hand",
        "to ours",
    ]);
    for case in cases {
        let floor = floors.iter().find(|floor| floor.size == case.size);
        let ours = cases
            .iter()
            .find(|other| other.program.kind == Kind::Vmgenie && other.size == case.size);
        let p50 = case.times.p50();
        let times = |ratio: Option<f64>| ratio.map_or_else(String::new, |r| format!("{r:.2}x"));
        rows.add_row([
            case.program.name().to_owned(),
            case.size.to_string(),
            ms(p50),
            ms(case.times.percentile(90)),
            ms(case.times.min()),
            floor.map_or_else(String::new, |f| ms(f.whole.p50())),
            times(floor.and_then(|f| ratio(p50, f.whole.p50()))),
            floor.map_or_else(String::new, |f| ms(f.without_create_vm.p50())),
            times(ours.and_then(|o| ratio(p50, o.times.p50()))),
        ]);
    }
    rows
}

fn resident_table(cases: &[Case<'_>]) -> Table {
    let mut rows = table(&[
        "monitor",
        "size",
        "resident outside guest memory",
        "of which",
    ]);
    for case in cases {
        if let Some(resident) = &case.resident {
            rows.add_row([
                case.program.name().to_owned(),
                case.size.to_string(),
                format!("{:.2} MiB", resident.total_kib() as f64 / 1024.0),
                resident.to_string(),
            ]);
        }
    }
    rows
}
