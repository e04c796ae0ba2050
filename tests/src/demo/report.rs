//! The result, for people and for programs.

use std::time::Duration;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ColumnConstraint, Table, Width};
use serde_json::{Value, json};

use crate::verdict::{Facts, Machine};

/// How wide the column of the kernel's log is.
const LOG_WIDTH: u16 = 31;

/// Prints the result on standard output, and what failed on standard error.
pub(crate) fn print(facts: &Facts, failures: &[String], json: bool) {
    match json {
        true => println!("{:#}", as_json(facts, failures)),
        false => println!("\n{}\n", as_table(facts)),
    }
    for failure in failures {
        eprintln!("error: {failure}");
    }
    if failures.is_empty() && !json {
        println!("{}", conclusion(facts));
    }
}

fn conclusion(facts: &Facts) -> String {
    format!(
        "Shown: a guest with kernel {} was booted once and is {} machines now. Each clone woke up with an ID of its own, which its \
         kernel noticed once and took into its random number generator, and its programs adapted; the original went on with its ID and noticed nothing.",
        facts.kernel,
        facts.machines().count()
    )
}

fn as_table(facts: &Facts) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header([
        "",
        "ID on the host",
        "ID that the guest read",
        "the guest's kernel log",
        "counter",
        "drawn by AWS-LC",
        "restored\nin ms",
        "RNG reseeded\nafter ms",
        "adapted\nafter ms",
    ]);
    for machine in facts.machines() {
        table.add_row(row(machine));
    }
    for column in [4, 6, 7, 8] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    if let Some(column) = table.column_mut(3) {
        column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(LOG_WIDTH)));
    }
    table
}

fn row(machine: &Machine) -> [String; 9] {
    let millis_or_none = |time: Option<Duration>| time.map_or_else(|| "-".to_owned(), millis);
    let times = machine.times;
    [
        machine.name.clone(),
        machine.host_id.to_guid(),
        machine
            .guest_id()
            .map_or_else(|| "none since it booted".to_owned(), |id| id.to_guid()),
        match machine.log.is_empty() {
            true => "(nothing)".to_owned(),
            false => machine.log.join("\n"),
        },
        machine.counter.to_string(),
        format!("{}...", machine.drawn.get(..12).unwrap_or_default()),
        millis_or_none(times.map(|times| times.restore)),
        millis_or_none(times.and_then(|times| times.reseeded)),
        millis_or_none(times.and_then(|times| times.adapted)),
    ]
}

fn millis(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}

fn as_json(facts: &Facts, failures: &[String]) -> Value {
    json!({
        "kernel": facts.kernel,
        "boot_ms": json_millis(facts.boot),
        "snapshot_ms": json_millis(facts.snapshot),
        "machines": facts.machines().map(machine_json).collect::<Vec<_>>(),
        "passed": failures.is_empty(),
        "failures": failures,
    })
}

fn machine_json(machine: &Machine) -> Value {
    let times = machine.times;
    json!({
        "name": machine.name,
        "host_id": machine.host_id.to_guid(),
        "guest_id": machine.guest_id().map(|id| id.to_guid()),
        "changes_noticed": machine.new_ids.len(),
        "kernel_log": machine.log,
        "restore_ms": times.map(|times| json_millis(times.restore)),
        "counter": machine.counter,
        "drawn_by_aws_lc": machine.drawn,
        "reseeded_ms": times.and_then(|times| times.reseeded).map(json_millis),
        "adapted_ms": times.and_then(|times| times.adapted).map(json_millis),
        "noticed_ms": times.and_then(|times| times.noticed).map(json_millis),
    })
}

/// Milliseconds, to the microsecond.
fn json_millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
