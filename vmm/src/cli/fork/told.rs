//! What a fork has come to.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use vmgenie_api::client::{Client, SnapshotCreated};
use vmgenie_api::wire::{CooperativeCreated, InstanceInfo, Missing, SnapshotHow};

use super::super::client_commands::{microseconds, missing_text};
use super::super::clone_process::{CloneReport, Fate};
use super::super::cooperation::how_taken;
use super::super::host_things::Warning;
use super::super::output::{pairs, table};
use super::super::units::{bytes, milliseconds};

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Forked {
    pub(super) original: Original,
    /// Where the snapshot is; absent if it goes with the clones.
    #[serde(rename = "snapshot_dir")]
    pub(super) snapshot: Option<PathBuf>,
    pub(super) dir: PathBuf,
    pub(super) clones: Vec<ForkedClone>,
    pub(super) warnings: Vec<Warning>,
}

/// The machine that was forked.
#[derive(Debug, Serialize)]
pub(super) struct Original {
    pub(super) name: String,
    pub(super) socket: PathBuf,
    pub(super) how: SnapshotHow,
    /// How long it stood still.
    pub(super) standstill_us: u64,
    pub(super) memory_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cooperation: Option<CooperativeCreated>,
}

/// One clone.
#[derive(Debug, Serialize)]
pub(super) struct ForkedClone {
    pub(super) name: String,
    pub(super) socket: PathBuf,
    pub(super) pid: u32,
    pub(super) log: PathBuf,
    pub(super) generation_id: String,
    /// The request that loads the snapshot.
    pub(super) restore_us: u64,
    /// From when it first ran, as in GET `/ready`.
    pub(super) reseeded_us: Option<u64>,
    pub(super) identity_us: Option<u64>,
    pub(super) adapted_us: Option<u64>,
    pub(super) ready_us: Option<u64>,
    pub(super) ready: bool,
    /// Its guest had not adapted in time, whatever has become of its gate.
    pub(super) late: bool,
    /// Its gate has ended it.
    pub(super) ended: bool,
    pub(super) missing: Vec<Missing>,
    /// What it lacks, for people.
    #[serde(skip)]
    lacks: Lacks,
}

/// Why a clone is late.
#[derive(Debug, Default)]
enum Lacks {
    #[default]
    Nothing,
    /// By its own word.
    Told(String),
    /// Its gate's time-out came first, and has ended it or opened the gate.
    TimedOut(String),
}

impl Original {
    pub(super) fn of(instance: &InstanceInfo, client: &Client, made: SnapshotCreated) -> Self {
        Self {
            name: instance.id.clone(),
            socket: client.socket().to_owned(),
            how: made
                .cooperation
                .as_ref()
                .map_or(SnapshotHow::Plain, |made| made.how),
            standstill_us: microseconds(made.standstill),
            memory_bytes: made.memory_bytes,
            cooperation: made.cooperation,
        }
    }
}

impl ForkedClone {
    pub(super) fn of(name: &str, report: &CloneReport, fate: &Fate) -> Self {
        let lacks = Lacks::of(fate);
        let ready = match fate {
            Fate::Runs(_, ready) => Some(ready),
            Fate::Ended(_) => None,
        };
        Self {
            name: name.to_owned(),
            socket: report.socket.clone(),
            pid: report.pid,
            log: report.log.clone(),
            generation_id: report.generation_id.clone(),
            restore_us: (report.load_ms * 1e3) as u64,
            reseeded_us: ready.and_then(|ready| ready.reseeded_us),
            identity_us: ready.and_then(|ready| ready.identity_us),
            adapted_us: ready.and_then(|ready| ready.adapted_us),
            ready_us: ready.and_then(|ready| ready.service_us),
            ready: ready.is_some_and(|ready| ready.ready),
            late: !matches!(lacks, Lacks::Nothing),
            ended: ready.is_none(),
            missing: ready.map_or_else(Vec::new, |ready| ready.missing.clone()),
            lacks,
        }
    }

    /// Its gate's time-out came before its guest had adapted.
    pub(super) fn gate_was_late(&self) -> bool {
        matches!(self.lacks, Lacks::TimedOut(_))
    }
}

impl Lacks {
    fn of(fate: &Fate) -> Self {
        let (waited, ready) = match fate {
            Fate::Runs(waited, ready) => (waited, ready),
            Fate::Ended(log) => {
                let last = log.lines().last().unwrap_or_default();
                return Self::TimedOut(format!("its gate has ended it: {last}"));
            }
        };
        let missing = missing_text(waited);
        if ready.gate.as_ref().is_some_and(|gate| gate.forced) {
            return Self::TimedOut(match missing.is_empty() {
                true => "its gate was opened before that".to_owned(),
                false => format!("its gate was opened, and {missing}"),
            });
        }
        match (ready.ready, waited.adapted) {
            // It was asked later than the other.
            (true, _) => Self::Nothing,
            (false, true) => Self::Told("its gate is not open".to_owned()),
            (false, false) => Self::Told(missing),
        }
    }
}

impl Forked {
    /// What the clones lack that have not adapted in time; none if all have.
    pub(super) fn late(&self) -> Option<String> {
        let late = |clone: &ForkedClone| match &clone.lacks {
            Lacks::Nothing => None,
            Lacks::Told(what) | Lacks::TimedOut(what) => Some(format!("{}: {what}", clone.name)),
        };
        let late: Vec<_> = self.clones.iter().filter_map(late).collect();
        (!late.is_empty()).then(|| late.join("; "))
    }

    pub(super) fn text(&self) -> String {
        let original = &self.original;
        let mut rows = vec![("forked", original.name.clone())];
        if let Some(made) = &original.cooperation {
            rows.push(("taken", how_taken(made)));
            let quiet = made.quiesce_us.map(Duration::from_micros);
            rows.extend(quiet.map(|quiet| ("quiet after", milliseconds(quiet))));
        }
        rows.push((
            "stood still",
            milliseconds(Duration::from_micros(original.standstill_us)),
        ));
        rows.push(("memory written", bytes(original.memory_bytes)));
        rows.push((
            "snapshot",
            match &self.snapshot {
                Some(dir) => dir.display().to_string(),
                None => "goes with the clones".to_owned(),
            },
        ));
        format!("{}\n\n{}", pairs(rows), self.clones_text())
    }

    fn clones_text(&self) -> String {
        let time = |us: Option<u64>| {
            us.map_or_else(|| "-".to_owned(), |us| format!("{:.2}", us as f64 / 1e3))
        };
        let row = |clone: &ForkedClone| {
            [
                clone.name.clone(),
                clone.socket.display().to_string(),
                match clone.ended {
                    true => "ended".to_owned(),
                    false => clone.pid.to_string(),
                },
                time(Some(clone.restore_us)),
                time(clone.reseeded_us),
                time(clone.adapted_us),
                time(clone.ready_us),
            ]
        };
        table(
            [
                "NAME",
                "SOCKET",
                "PID",
                "MS TO RESTORE",
                "RESEEDED",
                "ADAPTED",
                "READY",
            ],
            self.clones.iter().map(row).collect(),
        )
    }
}
