//! The result, for people and for programs.

use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde_json::{Value, json};

use super::asking::Asked;
use super::verdict::Facts;

/// Prints the result on standard output, and what failed on standard error.
pub(crate) fn print(facts: &Facts, failures: &[String], json: bool) {
    match json {
        true => println!("{:#}", as_json(facts, failures)),
        false => println!("\n{}\n{}\n", of_original(facts), of_clones(facts)),
    }
    for failure in failures {
        eprintln!("error: {failure}");
    }
    if failures.is_empty() && !json {
        println!("{}", conclusion(facts));
    }
}

fn conclusion(facts: &Facts) -> String {
    let answers: usize = facts.machines().map(|(_, asked)| asked.answers.len()).sum();
    format!(
        "Shown: one command has made four machines of one, under load and on one bridge. The client of the original lost none of {} requests. No two \
         of {answers} answers have a nonce in common. {}",
        facts.original.answers.len(),
        control(facts),
    )
}

fn control(facts: &Facts) -> String {
    let answers = facts.control.iter().map(|asked| asked.answers.len());
    format!(
        "Without it: {} of {} answers of two machines had a nonce that had been given before.",
        facts.control_repeated(),
        answers.sum::<usize>(),
    )
}

fn of_original(facts: &Facts) -> Table {
    let original = &facts.forked["original"];
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header([
        "original",
        "taken",
        "quiet after ms",
        "stood still ms",
        "answers",
        "lost",
        "slowest answer ms",
    ]);
    table.add_row([
        "for comparison",
        "plain",
        "-",
        &format!("{:.1}", facts.plain.as_secs_f64() * 1e3),
        "-",
        "-",
        "-",
    ]);
    table.add_row([
        "origin".to_owned(),
        original["how"].as_str().unwrap_or("-").to_owned(),
        ms(&original["cooperation"]["quiesce_us"]),
        ms(&original["standstill_us"]),
        facts.original.answers.len().to_string(),
        facts.original.lost.len().to_string(),
        format!("{:.0}", facts.original.longest.as_secs_f64() * 1e3),
    ]);
    table
}

fn of_clones(facts: &Facts) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header([
        "clone",
        "restored ms",
        "reseeded ms",
        "identity ms",
        "adapted ms",
        "ready ms",
        "answers",
        "lost",
    ]);
    let told = facts.forked["clones"].as_array().into_iter().flatten();
    for (clone, told) in facts.clones.iter().zip(told) {
        table.add_row([
            clone.told.clone(),
            ms(&told["restore_us"]),
            ms(&told["reseeded_us"]),
            ms(&told["identity_us"]),
            ms(&told["adapted_us"]),
            ms(&told["ready_us"]),
            clone.asked.answers.len().to_string(),
            clone.asked.lost.len().to_string(),
        ]);
    }
    table
}

fn ms(us: &Value) -> String {
    us.as_u64()
        .map_or_else(|| "-".to_owned(), |us| format!("{:.1}", us as f64 / 1e3))
}

fn as_json(facts: &Facts, failures: &[String]) -> Value {
    let asked = |asked: &Asked| {
        json!({
            "answers": asked.answers.len(),
            "lost": asked.lost,
            "slowest_ms": asked.longest.as_millis() as u64,
        })
    };
    let clones = facts.clones.iter().map(|clone| asked(&clone.asked));
    json!({
        "plain_standstill_us": facts.plain.as_micros() as u64,
        "control": {
            "answers": facts.control.iter().map(|asked| asked.answers.len()).sum::<usize>(),
            "repeated": facts.control_repeated(),
        },
        "fork": facts.forked,
        "original": asked(&facts.original),
        "clones": clones.collect::<Vec<_>>(),
        "passed": failures.is_empty(),
        "failures": failures,
    })
}
