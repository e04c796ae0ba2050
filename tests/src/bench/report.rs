//! A benchmark's result, for people and for programs.

use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde_json::Value;

use crate::monitor::{Kind, Program};
use crate::stats::{Series, ms, ratio};

/// What a benchmark has found.
#[derive(Debug)]
pub(crate) struct Report {
    /// For people.
    pub(crate) tables: Vec<Table>,
    /// Lines below the tables.
    pub(crate) notes: Vec<String>,
    /// The same for programs.
    pub(crate) json: Value,
}

impl Report {
    /// Prints one of the two.
    pub(crate) fn print(&self, json: bool) {
        if json {
            println!("{:#}", self.json);
            return;
        }
        for table in &self.tables {
            println!("{table}");
        }
        for note in &self.notes {
            println!("{note}");
        }
    }
}

/// An empty table with these columns.
pub(crate) fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header(columns);
    table
}

/// Takes one of a case's series.
type SeriesOf<C> = fn(&C) -> &Series;

/// A table of times: a line for each of `lines` of each case, with its ratio to that of our own program.
pub(crate) fn times_table<C>(
    cases: &[C],
    program: fn(&C) -> &Program,
    lines: &[(&str, SeriesOf<C>)],
) -> Table {
    let mut rows = table(&["monitor", "what", "p50", "min", "max", "to ours"]);
    let ours = cases
        .iter()
        .find(|case| program(case).kind == Kind::Vmgenie);
    for case in cases {
        for (what, series) in lines {
            let times = series(case);
            let ratio = ours.and_then(|ours| ratio(times.p50(), series(ours).p50()));
            rows.add_row([
                program(case).name().to_owned(),
                (*what).to_owned(),
                ms(times.p50()),
                ms(times.min()),
                ms(times.percentile(100)),
                ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}x")),
            ]);
        }
    }
    rows
}
