//! Where the machines of this host come from: the tree of their generations, each with the machine that is in it.
//!
//! Each machine tells the generations before its own (GET `/generation`), and so does a clone of a clone whose parents have
//! ended. All of it is others' word: an answer, and a snapshot, may say anything. It is shown, and used for nothing else.

mod ask;
mod draw;
mod layout;
mod words;

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Serialize;
use vmgenie_api::wire::{GenerationInfo, Ready, State};

pub use ask::Watch;
pub use draw::{Page, page};
use words::status;
pub(crate) use words::{age, lacks, short, span};

/// All machines, in the tree of their generations.
#[derive(Debug, Clone, Serialize)]
pub struct Lineage {
    /// When the machines were asked, in milliseconds since 1970.
    pub taken_unix_ms: u64,
    /// The generations, each before those that came from it. Machines that do not tell theirs come last.
    pub generations: Vec<Generation>,
}

/// A place in the tree.
#[derive(Debug, Clone, Serialize)]
pub struct Generation {
    /// The generation ID, as GUID text. None if its machine does not tell.
    pub id: Option<String>,
    /// The one that it came from.
    pub parent: Option<String>,
    /// How many come before it, as they are listed here.
    pub depth: usize,
    /// How many generations this stands for that have no machine any more, one after the other; `id` is the last of them. 0 if there
    /// is a machine.
    pub ended: usize,
    /// How its machine was called, if it has ended and that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The machines in it. Two are the same machine to their guests: one of them was restored and told to keep its generation.
    pub machines: Vec<Machine>,
}

/// A machine.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Its process.
    pub pid: i32,
    /// Its name.
    pub id: String,
    /// Where its API listens, if it has one.
    pub api_socket: Option<PathBuf>,
    /// None if it does not answer.
    pub state: Option<State>,
    /// What GET `/generation` tells.
    pub generation: Option<GenerationInfo>,
    /// What GET `/ready` tells.
    pub ready: Option<Ready>,
    /// What its guest has drawn, if somebody has asked it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drawn: Option<String>,
}

/// Puts the machines into their tree.
pub(crate) fn tree(taken_unix_ms: u64, machines: Vec<Machine>) -> Lineage {
    let mut nodes = Nodes::default();
    let mut silent = Vec::new();
    for machine in machines {
        match &machine.generation {
            Some(generation) => {
                let node = nodes.line(generation);
                nodes.all[node].machines.push(machine);
            }
            None => silent.push(Generation {
                id: None,
                parent: None,
                depth: 0,
                ended: 0,
                name: None,
                machines: vec![machine],
            }),
        }
    }
    let mut generations = nodes.listed();
    generations.append(&mut silent);
    Lineage {
        taken_unix_ms,
        generations,
    }
}

/// Generations in the order in which they were heard of, by number.
#[derive(Default)]
struct Nodes {
    all: Vec<Node>,
    by_id: HashMap<String, usize>,
}

struct Node {
    id: String,
    parent: Option<usize>,
    children: Vec<usize>,
    machines: Vec<Machine>,
}

impl Nodes {
    /// Adds a generation and those before it; its number. Who contradicts what another has told, or says that a generation came from
    /// itself, is not believed.
    fn line(&mut self, generation: &GenerationInfo) -> usize {
        let mut before = None;
        let ids = generation.ancestors.iter().chain([&generation.id]);
        let mut last = 0;
        for id in ids {
            last = self.number(id);
            if let Some(parent) = before
                && self.all[last].parent.is_none()
                && !self.is_before(last, parent)
            {
                self.all[last].parent = Some(parent);
                self.all[parent].children.push(last);
            }
            before = Some(last);
        }
        last
    }

    fn number(&mut self, id: &str) -> usize {
        let next = self.all.len();
        let number = *self.by_id.entry(id.to_owned()).or_insert(next);
        if number == next {
            self.all.push(Node {
                id: id.to_owned(),
                parent: None,
                children: Vec::new(),
                machines: Vec::new(),
            });
        }
        number
    }

    /// Is `first` the generation `last`, or did that come from it?
    fn is_before(&self, first: usize, last: usize) -> bool {
        let mut at = Some(last);
        while let Some(number) = at {
            if number == first {
                return true;
            }
            at = self.all[number].parent;
        }
        false
    }

    /// Each before those that came from it. Those that have ended one after the other, and have left no other trace, are one.
    fn listed(mut self) -> Vec<Generation> {
        let mut listed = Vec::new();
        let roots = (0..self.all.len()).rev();
        let mut left: Vec<(usize, usize, Option<String>)> = roots
            .filter(|number| self.all[*number].parent.is_none())
            .map(|number| (number, 0, None))
            .collect();
        while let Some((mut number, depth, parent)) = left.pop() {
            let mut ended = 0;
            while self.all[number].machines.is_empty() {
                ended += 1;
                match self.all[number].children[..] {
                    [only] if self.all[only].machines.is_empty() => number = only,
                    _ => break,
                }
            }
            let node = &mut self.all[number];
            let machines = std::mem::take(&mut node.machines);
            let children = node.children.iter().rev();
            left.extend(children.map(|child| (*child, depth + 1, Some(node.id.clone()))));
            listed.push(Generation {
                id: Some(node.id.clone()),
                parent,
                depth,
                ended,
                name: None,
                machines,
            });
        }
        listed
    }
}

#[cfg(test)]
#[path = "lineage_test.rs"]
mod tests;
