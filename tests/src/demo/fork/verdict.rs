//! What was found, and whether it is as it should be.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;
use vmgenie_tests::image;

use super::asking::Asked;

/// How many clones there are.
pub(crate) const CLONES: u8 = 3;

/// All that was found.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// How long the machine stood still for a plain snapshot.
    pub(crate) plain: Duration,
    /// Two machines of one snapshot that were told of no new generation: the control.
    pub(crate) control: [Asked; 2],
    /// What `vmgenie fork` has told.
    pub(crate) forked: Value,
    /// The client of the original, which asked all the time.
    pub(crate) original: Asked,
    /// The clients of the clones.
    pub(crate) clones: Vec<Clone>,
}

/// A clone, as its client sees it.
#[derive(Debug, Clone)]
pub(crate) struct Clone {
    /// The name that it was told.
    pub(crate) told: String,
    pub(crate) asked: Asked,
}

/// Everything that is not as it should be; nothing if all is well.
pub(crate) fn failures(facts: &Facts) -> Vec<String> {
    let mut failures = Vec::new();
    if facts.forked["original"]["how"] == "plain" {
        let why = &facts.forked["original"]["cooperation"]["why_plain"];
        failures.push(format!("the original did not take part: {why}"));
    }
    let clones = facts.forked["clones"].as_array();
    for clone in clones.into_iter().flatten() {
        if clone["ready"] != true {
            failures.push(format!("{} lacks {}", clone["name"], clone["missing"]));
        }
    }
    if clones.map_or(0, Vec::len) != usize::from(CLONES) {
        failures.push("clones are missing".to_owned());
    }
    failures.extend(of_client(image::NAME, &facts.original));
    for clone in &facts.clones {
        failures.extend(of_client(&clone.told, &clone.asked));
    }
    failures.extend(repeated(facts.machines()));
    if facts.control_repeated() == 0 {
        failures.push(
            "two machines that were told of no new generation have given no nonce twice either: \
             that proves nothing"
                .to_owned(),
        );
    }
    failures
}

impl Facts {
    /// The original and the clones, by name.
    pub(crate) fn machines(&self) -> impl Iterator<Item = (&str, &Asked)> {
        let clones = self.clones.iter();
        let clones = clones.map(|clone| (clone.told.as_str(), &clone.asked));
        std::iter::once((image::NAME, &self.original)).chain(clones)
    }

    /// How many answers of the control had a nonce that had been given before.
    pub(crate) fn control_repeated(&self) -> usize {
        repeated(["one", "other"].into_iter().zip(&self.control)).len()
    }
}

/// What a client has not got, or got from another machine than it has asked.
fn of_client(name: &str, asked: &Asked) -> Vec<String> {
    let mut failures = Vec::new();
    if let Some(why) = asked.lost.first() {
        let count = asked.lost.len();
        failures.push(format!("the client of {name} lost {count} requests: {why}"));
    }
    if let Some(other) = asked.answers.iter().find(|answer| answer.name != name) {
        failures.push(format!("{} answered for {name}", other.name));
    }
    failures
}

/// Tells of all answers of these machines with a nonce that was given before, of each once.
fn repeated<'a>(machines: impl IntoIterator<Item = (&'a str, &'a Asked)>) -> Vec<String> {
    let mut given = HashMap::new();
    let mut repeated = Vec::new();
    for (name, asked) in machines {
        for answer in &asked.answers {
            let mut found = None;
            for nonce in &answer.nonces {
                if let Some(first) = given.insert(nonce, name) {
                    found = Some(format!(
                        "{first} and {name} both answered with the nonce {nonce}"
                    ));
                }
            }
            repeated.extend(found);
        }
    }
    repeated
}

#[cfg(test)]
#[path = "verdict_test.rs"]
mod tests;
