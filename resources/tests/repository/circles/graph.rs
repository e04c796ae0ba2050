//! Circles in a graph.

use std::collections::{BTreeMap, BTreeSet};

type Graph = BTreeMap<String, BTreeSet<String>>;

/// The sets of two or more nodes each of which can reach all others.
pub(super) fn circles(graph: &Graph) -> Vec<BTreeSet<String>> {
    let reach: BTreeMap<_, _> = graph
        .keys()
        .map(|node| (node, reachable(graph, node)))
        .collect();
    let circles: BTreeSet<BTreeSet<String>> = reach
        .iter()
        .filter(|(node, reached)| reached.contains(**node))
        .map(|(node, reached)| {
            let both_ways =
                |other: &&String| reach.get(*other).is_some_and(|back| back.contains(*node));
            reached.iter().filter(both_ways).cloned().collect()
        })
        .collect();
    circles.into_iter().collect()
}

/// What can be reached from `start` by one step or more.
fn reachable(graph: &Graph, start: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut open = vec![start.to_owned()];
    while let Some(node) = open.pop() {
        for next in graph.get(&node).into_iter().flatten() {
            if reached.insert(next.clone()) {
                open.push(next.clone());
            }
        }
    }
    reached
}
