//! A benchmark's result, for people and for programs.

use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde_json::Value;

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
