//! How results and errors are shown.

use std::error::Error;
use std::io::Write;

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use super::Failure;

/// An error with everything that caused it.
pub(super) fn report(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        // Some errors repeat their cause in their own message.
        if !text.ends_with(&message) {
            text.push_str(": caused by: ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

/// Prints `result` as JSON, or what `text` makes of it for people.
pub(super) fn show<T: Serialize>(
    json: bool,
    result: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    let shown = if json {
        serde_json::to_string_pretty(result)?
    } else {
        text(result)
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", shown.trim_end())?;
    Ok(out.flush()?)
}

/// A table without lines, as it can be read and cut.
pub(super) fn table<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut table = Table::new();
    table
        .load_preset(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    trimmed(&table)
}

/// Names and values, one below the other.
pub(super) fn pairs(rows: Vec<(&str, String)>) -> String {
    let mut table = Table::new();
    table
        .load_preset(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    for (name, value) in rows {
        table.add_row([format!("{name}:"), value]);
    }
    trimmed(&table)
}

fn trimmed(table: &Table) -> String {
    let lines: Vec<String> = table.lines().map(|line| line.trim().to_owned()).collect();
    lines.join("\n")
}
