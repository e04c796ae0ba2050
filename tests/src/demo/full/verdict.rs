//! What was found, and whether it is as it should be.

use std::time::Duration;

use vmgenie_tests::image::Page;

/// What was found of all machines.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// From the start of the VMM to the first page.
    pub(crate) boot: Duration,
    /// How long the snapshot took.
    pub(crate) snapshot: Duration,
    /// The original's generation ID before the snapshot.
    pub(crate) first_id: String,
    /// The original's page before it.
    pub(crate) first_page: Page,
    /// How many bytes the client had when it was taken.
    pub(crate) received: u64,
    /// The last record that was on the disk then, by the guest's word.
    pub(crate) flushed: u64,
    /// The original as it is in the end.
    pub(crate) original: Machine,
    /// The clones as they are in the end.
    pub(crate) clones: Vec<Machine>,
}

/// What was found of one machine.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// What it is called here.
    pub(crate) name: String,
    /// The name that it was told.
    pub(crate) told: String,
    /// The generation ID that the API says.
    pub(crate) host_id: String,
    /// What its page says.
    pub(crate) page: Page,
    /// A clone's times from when it first ran: to the first answer at its own address, and until it had adapted, if it did.
    pub(crate) times: Option<(Duration, Option<Duration>)>,
    /// How many records its disk has, whole and in order.
    pub(crate) records: u64,
    /// How many connections of the original's it still takes for its own.
    pub(crate) left_open: u32,
    /// Whether its download is complete and right.
    pub(crate) downloaded: bool,
}

/// What two machines must not share.
const OWN: [&str; 4] = ["machine-id", "ssh-host-key", "hostname", "address"];

impl Facts {
    /// The original, then the clones.
    pub(crate) fn machines(&self) -> impl Iterator<Item = &Machine> {
        std::iter::once(&self.original).chain(&self.clones)
    }
}

/// Everything that is not as it should be; nothing if all is well.
pub(crate) fn failures(facts: &Facts) -> Vec<String> {
    let mut failures = shared(facts);
    let original = &facts.original;
    if original.host_id != facts.first_id || original.page != facts.first_page {
        failures.push("the original is another machine than before".to_owned());
    }
    for machine in facts.machines() {
        let name = &machine.name;
        if !machine.downloaded {
            failures.push(format!("the download from {name} is not what the file is"));
        }
        if machine.records < facts.flushed {
            failures.push(format!(
                "{name} has {} of {} records that were flushed",
                machine.records, facts.flushed
            ));
        }
        if machine.page.value("hostname") != machine.told {
            failures.push(format!(
                "{name} was told to be {}, and is {}",
                machine.told,
                machine.page.value("hostname")
            ));
        }
    }
    failures.extend(facts.clones.iter().flat_map(of_a_clone));
    failures
}

/// What is the same in two machines and must not be.
fn shared(facts: &Facts) -> Vec<String> {
    let machines: Vec<_> = facts.machines().collect();
    let mut failures = Vec::new();
    for (index, one) in machines.iter().enumerate() {
        for other in &machines[index + 1..] {
            let mut complain = |what: &str, value: &str| {
                failures.push(format!(
                    "{} and {} both have the {what} {value}",
                    one.name, other.name
                ));
            };
            if one.host_id == other.host_id {
                complain("generation ID", &one.host_id);
            }
            for what in OWN {
                if one.page.value(what) == other.page.value(what) {
                    complain(what, one.page.value(what));
                }
            }
        }
    }
    failures
}

fn of_a_clone(clone: &Machine) -> Vec<String> {
    let name = &clone.name;
    let mut failures = Vec::new();
    let shown = clone.page.value("generation-id");
    if shown != clone.host_id {
        failures.push(format!(
            "{name} shows the generation ID {shown}, not {}",
            clone.host_id
        ));
    }
    if !matches!(clone.times, Some((_, Some(_)))) {
        failures.push(format!("{name} has not adapted"));
    }
    if clone.left_open > 0 {
        failures.push(format!(
            "{name} still has {} connections of the original's open",
            clone.left_open
        ));
    }
    failures
}

#[cfg(test)]
#[path = "verdict_test.rs"]
mod tests;
