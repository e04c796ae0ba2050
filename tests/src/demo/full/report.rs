//! The result, for people and for programs.

use std::time::Duration;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde_json::{Value, json};

use super::verdict::{Facts, Machine};

/// How much of an ID the table shows; the JSON has all of it.
const SHORT: usize = 12;

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
        "Shown: one Debian, booted from a disk, is {} machines now, each on its own network and with its own disk, with its own ID, name, address and host key. \
         The client of the original, which had {} KiB at the snapshot, got the rest; its connection was reset in the clones, which serve new ones. \
         All {} records that were flushed before the snapshot are on all disks.",
        facts.machines().count(),
        facts.received >> 10,
        facts.flushed
    )
}

fn as_table(facts: &Facts) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header([
        "",
        "ID on the host",
        "ID on its page",
        "counter",
        "name",
        "address",
        "machine ID",
        "SSH host key",
        "records\non disk",
        "answered\nafter s",
        "adapted\nafter s",
    ]);
    for machine in facts.machines() {
        table.add_row(row(machine));
    }
    for column in [3, 8, 9, 10] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn row(machine: &Machine) -> [String; 11] {
    let page = &machine.page;
    let id = page.value("generation-id");
    [
        machine.name.clone(),
        short(&machine.host_id),
        match id.starts_with("none") {
            true => "none since it booted".to_owned(),
            false => short(id),
        },
        page.value("generation-counter").to_owned(),
        page.value("hostname").to_owned(),
        page.value("address").to_owned(),
        short(page.value("machine-id")),
        // The first characters name the type.
        short(page.value("ssh-host-key").get(24..).unwrap_or_default()),
        machine.records.to_string(),
        seconds(machine.times.map(|(answered, _)| answered)),
        seconds(machine.times.and_then(|(_, adapted)| adapted)),
    ]
}

fn short(text: &str) -> String {
    text.get(..SHORT)
        .map_or_else(|| text.to_owned(), |start| format!("{start}..."))
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or_else(
        || "-".to_owned(),
        |time| format!("{:.2}", time.as_secs_f64()),
    )
}

fn as_json(facts: &Facts, failures: &[String]) -> Value {
    json!({
        "boot_to_first_answer_ms": millis(facts.boot),
        "snapshot_ms": millis(facts.snapshot),
        "received_at_snapshot_bytes": facts.received,
        "flushed_records_at_snapshot": facts.flushed,
        "machines": facts.machines().map(machine_json).collect::<Vec<_>>(),
        "passed": failures.is_empty(),
        "failures": failures,
    })
}

fn machine_json(machine: &Machine) -> Value {
    let page = &machine.page;
    json!({
        "name": machine.name,
        "host_id": machine.host_id,
        "generation_id": page.value("generation-id"),
        "generation_counter": page.value("generation-counter"),
        "hostname": page.value("hostname"),
        "address": page.value("address"),
        "machine_id": page.value("machine-id"),
        "ssh_host_key": page.value("ssh-host-key"),
        "records_on_disk": machine.records,
        "connections_left_open": machine.left_open,
        "download_complete": machine.downloaded,
        "first_answer_ms": machine.times.map(|(answered, _)| millis(answered)),
        "adapted_ms": machine.times.and_then(|(_, adapted)| adapted).map(millis),
    })
}

/// Milliseconds, to the microsecond.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
