//! No circle of imports in the workspace: neither between files nor between folders.
//!
//! In each folder, its files and its folders form a graph: one points to another if a file in it names something that a
//! file in the other defines. That graph has no circle, at any depth. A circle of files shows where the files' ways part,
//! so this is one rule for files and folders. A folder's own file (`mod.rs`, `lib.rs`, `main.rs`) is one with the folder:
//! a module sees the names of those that it is in. A name is followed through re-exports to the file that defines it. What
//! is compiled for unit tests alone is left out. Between crates, Cargo sees to it.

mod circles_test;
mod graph;
mod resolve;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tree::Crate;

/// The circles in a folder of crates, one a line.
fn circles(sources: &Path) -> Vec<String> {
    let mut edges = BTreeSet::new();
    for root in roots(sources) {
        resolve::edges(&Crate::read(&root), &mut edges);
    }
    let mut found = BTreeSet::new();
    for (folder, units) in by_folder(sources, &edges) {
        for circle in graph::circles(&units) {
            let within: Vec<_> = edges
                .iter()
                .filter_map(|(from, to)| {
                    let (a, b) = (unit(&folder, from)?, unit(&folder, to)?);
                    (a != b && circle.contains(&a) && circle.contains(&b))
                        .then(|| format!("    {} -> {}", from.display(), to.display()))
                })
                .collect();
            let names = circle.into_iter().collect::<Vec<_>>().join(", ");
            found.insert(format!(
                "{}: {names}\n{}",
                folder.display(),
                within.join("\n")
            ));
        }
    }
    found.into_iter().collect()
}

/// The files in which crates begin.
fn roots(sources: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![sources.to_owned()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        let parent = folder.file_name().unwrap_or_default().to_owned();
        for entry in entries.flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    open.push(path);
                }
            } else if name == "lib.rs"
                || name == "main.rs"
                || (name.ends_with(".rs")
                    && (parent == "tests" || parent == "examples" || parent == "bin"))
            {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// What `file` is in `folder`: a file or a folder there. A file `x.rs` is one with the folder `x`.
fn unit(folder: &Path, file: &Path) -> Option<String> {
    let mut rest = file.strip_prefix(folder).ok()?.components();
    let first = rest.next()?.as_os_str().to_string_lossy().into_owned();
    let name = first.trim_end_matches(".rs");
    (!["mod", "lib", "main"].contains(&name)).then(|| name.to_owned())
}

type Units = BTreeMap<String, BTreeSet<String>>;

/// For each folder, which of its files and folders point to which.
fn by_folder(sources: &Path, edges: &BTreeSet<(PathBuf, PathBuf)>) -> BTreeMap<PathBuf, Units> {
    let mut folders: BTreeMap<PathBuf, Units> = BTreeMap::new();
    for (from, to) in edges {
        for folder in from.ancestors().skip(1) {
            if !folder.starts_with(sources) {
                break;
            }
            let (Some(a), Some(b)) = (unit(folder, from), unit(folder, to)) else {
                continue;
            };
            if a != b {
                let units = folders.entry(folder.to_owned()).or_default();
                units.entry(a).or_default().insert(b);
            }
        }
    }
    folders
}
