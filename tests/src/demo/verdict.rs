//! What was found, and whether it is as it should be.

use std::time::Duration;

use vmgenie_devices::vmgenid::GenerationId;

/// What was found of all machines.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// What the guest's `uname -r` says.
    pub(crate) kernel: String,
    /// From the start of the VMM to the guest's shell.
    pub(crate) boot: Duration,
    /// How long the snapshot took.
    pub(crate) snapshot: Duration,
    /// The original's ID before the snapshot.
    pub(crate) first_id: GenerationId,
    /// The original as it is in the end.
    pub(crate) original: Machine,
    /// The clones as they are in the end.
    pub(crate) clones: Vec<Machine>,
}

/// What was found of one machine.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// What it is called.
    pub(crate) name: String,
    /// What the API says.
    pub(crate) host_id: GenerationId,
    /// What its guest's driver read when it started, if the guest can tell.
    pub(crate) boot_id: Option<GenerationId>,
    /// What its guest's driver read at each change and handed to the kernel's random number generator.
    pub(crate) new_ids: Vec<GenerationId>,
    /// The lines in which its guest's kernel says that it noticed.
    pub(crate) log: Vec<String>,
    /// The generation counter, as the host has it.
    pub(crate) counter: u32,
    /// 16 bytes that AWS-LC drew in the end, in a program that was initialised before the snapshot.
    pub(crate) drawn: String,
    /// A clone's times.
    pub(crate) times: Option<Times>,
}

/// How long a clone took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// From the request to load the snapshot to the answer.
    pub(crate) restore: Duration,
    /// From then, when the guest runs, until it was seen to have noticed; `None` if it never was.
    pub(crate) noticed: Option<Duration>,
    /// From the new generation's beginning until the guest's driver told that the kernel's random number
    /// generator was reseeded; `None` if it did not.
    pub(crate) reseeded: Option<Duration>,
    /// The same for the whole guest, by its agent's word: it has adapted.
    pub(crate) adapted: Option<Duration>,
}

impl Facts {
    /// The original, then the clones.
    pub(crate) fn machines(&self) -> impl Iterator<Item = &Machine> {
        std::iter::once(&self.original).chain(&self.clones)
    }
}

impl Machine {
    /// The ID that the guest knows: the last that its driver read.
    pub(crate) fn guest_id(&self) -> Option<GenerationId> {
        match self.times {
            Some(_) => self.new_ids.last().copied(),
            None => self.new_ids.last().copied().or(self.boot_id),
        }
    }
}

/// Everything that is not as it should be; nothing if all is well.
pub(crate) fn failures(facts: &Facts) -> Vec<String> {
    let mut failures = repeated_ids(facts);
    failures.extend(of_the_original(facts));
    failures.extend(facts.clones.iter().flat_map(of_a_clone));
    failures.extend(of_programs(facts));
    failures
}

/// What programs have of it: the counter, and random numbers of their own.
fn of_programs(facts: &Facts) -> Vec<String> {
    let mut failures = Vec::new();
    let first = facts.original.counter;
    for clone in &facts.clones {
        let (name, counter) = (&clone.name, clone.counter);
        if counter != first.wrapping_add(2) {
            failures.push(format!(
                "the counter of {name} is {counter}: it should have moved from {first} by 2"
            ));
        }
        if clone.times.is_none_or(|times| times.adapted.is_none()) {
            failures.push(format!("the guest of {name} has not adapted"));
        }
    }
    let machines: Vec<_> = facts.machines().collect();
    for (index, one) in machines.iter().enumerate() {
        for other in &machines[index + 1..] {
            if one.drawn == other.drawn {
                failures.push(format!(
                    "AWS-LC drew {} in {} and in {}",
                    one.drawn, one.name, other.name
                ));
            }
        }
    }
    failures
}

fn repeated_ids(facts: &Facts) -> Vec<String> {
    let machines: Vec<_> = facts.machines().collect();
    let mut failures = Vec::new();
    for (index, one) in machines.iter().enumerate() {
        for other in &machines[index + 1..] {
            if one.host_id == other.host_id {
                let id = one.host_id;
                failures.push(format!(
                    "{} and {} both have the ID {id}",
                    one.name, other.name
                ));
            }
        }
    }
    failures
}

fn of_the_original(facts: &Facts) -> Vec<String> {
    let original = &facts.original;
    let (before, after) = (facts.first_id, original.host_id);
    let mut failures = Vec::new();
    if before != after {
        failures.push(format!(
            "the ID of the original changed from {before} to {after}"
        ));
    }
    if !original.new_ids.is_empty() || !original.log.is_empty() {
        failures.push(format!(
            "the original has nothing to notice, but its guest has: {}",
            noticed(original)
        ));
    }
    if let Some(read) = original.boot_id.filter(|id| *id != before) {
        failures.push(format!(
            "the original's guest booted with the ID {read}, not {before}"
        ));
    }
    failures
}

fn of_a_clone(clone: &Machine) -> Vec<String> {
    let name = &clone.name;
    let mut failures = Vec::new();
    match (clone.log.len(), clone.new_ids.len()) {
        (0, 0) => failures.push(format!("the guest of {name} noticed nothing")),
        (1, 1) => {}
        _ => failures.push(format!(
            "the guest of {name} did not notice exactly once: {}",
            noticed(clone)
        )),
    }
    if let Some(id) = clone.guest_id().filter(|id| *id != clone.host_id) {
        failures.push(format!(
            "the guest of {name} read the ID {id}, not {}",
            clone.host_id
        ));
    }
    failures
}

fn noticed(machine: &Machine) -> String {
    format!(
        "new IDs that its driver read: {}, lines in its kernel log: {}",
        machine.new_ids.len(),
        machine.log.len()
    )
}

#[cfg(test)]
#[path = "verdict_test.rs"]
mod tests;
