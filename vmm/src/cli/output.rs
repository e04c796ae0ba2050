//! How results and errors are shown.

use std::error::Error;
use std::io::Write;

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use super::Failure;

/// An error with everything that caused it, as it may go to a terminal.
pub(super) fn report(error: &(dyn Error + 'static)) -> String {
    let text = vmgenie_machine::report::report(error);
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

/// Text of somebody else's (a state file's, another process's), without what would move a terminal's cursor.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escape = c.is_control();
            let escaped = escape.then(|| c.escape_default());
            let plain = (!escape).then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
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
        table.add_row(row.map(|cell| plain(&cell)));
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
        table.add_row([format!("{name}:"), plain(&value)]);
    }
    trimmed(&table)
}

fn trimmed(table: &Table) -> String {
    // What stands before the first column, and no space of its own: a tree's branches have some.
    let line = |line: String| {
        line.strip_prefix(' ')
            .unwrap_or(&line)
            .trim_end()
            .to_owned()
    };
    table.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_written_moves_no_cursor() {
        assert_eq!(plain("web-1 \u{e4}"), "web-1 \u{e4}");
        assert_eq!(plain("a\u{1b}[2J\n\u{9b}"), "a\\u{1b}[2J\\n\\u{9b}");
        let rows = pairs(vec![("id", "\u{1b}]0;x\u{7}".to_owned())]);
        assert_eq!(rows.lines().count(), 1);
        assert!(!rows.contains('\u{1b}'), "{rows:?}");
        let shown = table(["ID"], vec![["a\nb".to_owned()]]);
        assert_eq!(shown, "ID\na\\nb");
        let error = std::io::Error::other("first\nsecond\u{1b}");
        assert_eq!(report(&error), "first\nsecond\\u{1b}");
    }
}
