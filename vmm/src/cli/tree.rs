//! `vmgenie tree`: the machines of this host, and where they come from.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use thiserror::Error;
use vmgenie_api::wire::{Ready, Stage, State};

use super::Failure;
use super::help::TREE_HELP;
use super::output::{show, table};
use crate::lineage::{self, Generation, Lineage, Machine, Page, Watch};

/// `vmgenie tree`.
#[derive(Debug, Args)]
#[command(after_help = TREE_HELP)]
pub struct TreeArgs {
    /// Write it as a page, too: HTML with a drawing, for any browser, in one file.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Why there is no page.
#[derive(Debug, Error)]
#[error("could not write the page {0}")]
struct PageError(PathBuf, #[source] std::io::Error);

pub(super) fn tree(args: &TreeArgs, json: bool) -> Result<(), Failure> {
    let lineage = Watch::default().look();
    if let Some(path) = &args.html {
        let page = Page {
            title: "Machines and where they come from",
            note: None,
            live: false,
        };
        let page = lineage::page(&lineage, page);
        fs::write(path, page).map_err(|error| PageError(path.clone(), error))?;
    }
    show(json, &lineage, text)
}

fn text(lineage: &Lineage) -> String {
    let generations = &lineage.generations;
    let mut rows = Vec::new();
    for (number, generation) in generations.iter().enumerate() {
        let (branch, below) = branches(generations, number);
        if generation.machines.is_empty() {
            rows.push(ended(&branch, generation));
        }
        for (place, machine) in generation.machines.iter().enumerate() {
            let branch = match place {
                0 => branch.clone(),
                _ => format!("{below}= "),
            };
            rows.push(row(&branch, lineage.taken_unix_ms, machine));
        }
    }
    table(
        [
            "MACHINE",
            "PID",
            "STATE",
            "STAGE",
            "GENERATION",
            "COUNTER",
            "SINCE",
            "RESEEDED",
            "IDENTITY",
            "ADAPTED",
            "READY",
            "LACKS",
        ],
        rows,
    )
}

/// What leads to a generation's name, and what stands below that.
fn branches(generations: &[Generation], number: usize) -> (String, String) {
    let depth = generations[number].depth;
    // Does another one of this depth follow, below the same one?
    let goes_on = |at: usize| {
        let mut later = generations[number + 1..].iter().map(|it| it.depth);
        later.find(|depth| *depth <= at) == Some(at)
    };
    let mut branch = String::new();
    for at in 1..depth {
        branch += if goes_on(at) { "│  " } else { "   " };
    }
    if depth == 0 {
        return (branch.clone(), branch);
    }
    let (own, below) = match goes_on(depth) {
        true => ("├─ ", "│  "),
        false => ("└─ ", "   "),
    };
    (format!("{branch}{own}"), format!("{branch}{below}"))
}

fn ended(branch: &str, generation: &Generation) -> [String; 12] {
    let name = match generation.ended {
        1 => "(ended)".to_owned(),
        count => format!("({count} ended)"),
    };
    let mut row = std::array::from_fn(|_| "-".to_owned());
    row[0] = format!("{branch}{name}");
    row[4] = lineage::short(generation.id.as_deref().unwrap_or_default());
    row
}

fn row(branch: &str, now_ms: u64, machine: &Machine) -> [String; 12] {
    let known = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let ready = machine.ready.as_ref();
    let time = |us: fn(&Ready) -> Option<u64>| known(ready.and_then(us).map(lineage::span));
    let generation = machine.generation.as_ref();
    let lacks = ready.map(|ready| lineage::lacks(&ready.missing));
    [
        format!("{branch}{}", machine.id),
        machine.pid.to_string(),
        match (&machine.api_socket, machine.state) {
            (None, _) => "no API".to_owned(),
            (_, None) => "no answer".to_owned(),
            (_, Some(state)) => State::as_str(state).to_owned(),
        },
        known(ready.map(|ready| Stage::as_str(ready.stage).to_owned())),
        known(generation.map(|told| lineage::short(&told.id))),
        known(generation.map(|told| told.counter.to_string())),
        known(generation.map(|told| lineage::age(now_ms.saturating_sub(told.since_unix_ms)))),
        time(|ready| ready.reseeded_us),
        time(|ready| ready.identity_us),
        time(|ready| ready.adapted_us),
        time(|ready| ready.service_us),
        known(lacks.filter(|lacks| !lacks.is_empty())),
    ]
}

#[cfg(test)]
#[path = "tree_test.rs"]
mod tests;
