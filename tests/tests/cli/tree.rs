//! `vmgenie tree`.

use std::time::Instant;

use serde_json::Value;
use vmgenie_api::wire::{GenerationChoice, SnapshotLoad};
use vmgenie_tests::{Snapshot, Vm};

use crate::machines::Place;
use crate::stdout;

/// A machine restored from `snapshot`, that only this test lists.
fn restored(place: &Place, id: &str, snapshot: &Snapshot, generation: GenerationChoice) -> Vm {
    let mut vm = place.empty(id);
    let load = SnapshotLoad {
        resume_vm: true,
        generation,
        ..SnapshotLoad::of(snapshot.state(), snapshot.memory())
    };
    vm.client.load_snapshot(&load).unwrap();
    vm
}

/// The first column of the tree, without its heading.
fn names(place: &Place) -> Vec<String> {
    let output = place.command(&["tree"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = stdout(&output);
    let lines = text.lines().skip(1);
    lines.map(|line| first_column(line).to_owned()).collect()
}

/// A branch, a mark and a name are one column.
fn first_column(line: &str) -> &str {
    line.split_once("  ").map_or(line, |_| {
        let name = line
            .find(|c: char| c.is_alphanumeric() || c == '(')
            .unwrap();
        let end = line[name..].find(' ').unwrap();
        &line[..name + end]
    })
}

#[test]
fn a_tree_has_clones_of_clones_and_parents_that_have_ended() {
    let place = Place::new();
    let mut origin = place.tiny("origin");
    let first = origin.snapshot();
    let new = GenerationChoice::New;
    let mut one = restored(&place, "one", &first, new);
    let _two = restored(&place, "two", &first, new);
    let second = one.snapshot();
    let mut grandchild = restored(&place, "grandchild", &second, new);
    let all = ["origin", "├─ one", "│  └─ grandchild", "└─ two"];
    // Clones of one parent are in the order in which the registry lists them.
    let found = names(&place);
    let found: Vec<_> = found.iter().map(String::as_str).collect();
    let other = ["origin", "├─ two", "└─ one", "   └─ grandchild"];
    assert!(found == all || found == other, "{found:?}");

    let before = place.json(&["tree"]);
    let ids: Vec<_> = before["generations"].as_array().unwrap().iter().collect();
    let of = |name: &str| {
        let is_it = |it: &&&Value| it["machines"][0]["id"] == name;
        *ids.iter().find(is_it).unwrap()
    };
    assert_eq!(of("origin")["parent"], Value::Null);
    assert_eq!(of("one")["parent"], of("origin")["id"]);
    assert_eq!(of("grandchild")["parent"], of("one")["id"]);
    let machine = &of("grandchild")["machines"][0];
    assert_eq!(machine["pid"], grandchild.pid());
    assert_eq!(machine["state"], "Running");
    let generation = grandchild.client.generation().unwrap();
    assert_eq!(machine["generation"]["id"], generation.id);
    assert_eq!(machine["generation"]["counter"], generation.counter);
    // The tiny guest has no driver.
    assert_eq!(machine["ready"]["missing"], serde_json::json!(["driver"]));

    one.kill();
    let ended = place.json(&["tree"]);
    let generations = ended["generations"].as_array().unwrap();
    let gone = generations.iter().find(|it| it["ended"] == 1).unwrap();
    assert_eq!(gone["id"], of("one")["id"]);
    assert_eq!(gone["parent"], of("origin")["id"]);
    assert_eq!(gone["machines"], serde_json::json!([]));
    let found = names(&place);
    assert!(
        found.iter().any(|name| name.ends_with("─ (ended)")),
        "{found:?}"
    );
    origin.kill();
    assert_eq!(names(&place)[0], "(ended)");
    assert_eq!(names(&place).len(), 4);
}

#[test]
fn a_machine_that_keeps_a_generation_is_shown_beside_the_one_that_is_in_it() {
    let place = Place::new();
    let mut origin = place.tiny("origin");
    let snapshot = origin.snapshot();
    let _twin = restored(&place, "twin", &snapshot, GenerationChoice::Keep);
    assert_eq!(names(&place), ["origin", "= twin"]);
    // In a new one it comes from the other's.
    origin.client.new_generation().unwrap();
    assert_eq!(names(&place), ["twin", "└─ origin"]);
}

fn signal(vm: &Vm, signal: &str) {
    let mut kill = std::process::Command::new("kill");
    let status = kill.args([signal, &vm.pid().to_string()]).status();
    assert!(status.unwrap().success());
}

#[test]
fn machines_that_cannot_be_asked_or_do_not_answer_hold_nobody_up() {
    let place = Place::new();
    assert_eq!(names(&place), [""; 0]);
    let _there = place.tiny("there");
    let _empty = place.empty("not-started");
    let stopped = ["stopped-1", "stopped-2", "stopped-3"].map(|id| place.tiny(id));
    for vm in &stopped {
        signal(vm, "-STOP");
    }
    let begun = Instant::now();
    let output = place.command(&["tree"]).output().unwrap();
    let took = begun.elapsed();
    let text = stdout(&output);
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(line("there ").contains(" Running "), "{text}");
    assert!(line("not-started ").contains(" Not started "), "{text}");
    for vm in ["stopped-1 ", "stopped-2 ", "stopped-3 "] {
        assert!(line(vm).contains(" no answer "), "{text}");
    }
    for vm in &stopped {
        signal(vm, "-CONT");
    }
    // What each may take is far less than what a machine that stands still for ever would.
    assert!(took < vmgenie_tests::tiny::LIMIT, "{took:?}");
}

#[test]
fn a_page_needs_nothing_else_and_json_comes_with_it() {
    let place = Place::new();
    let _vm = place.tiny("origin");
    let file = place.dir().join("tree.html");
    let told = place.json(&["tree", "--html", file.to_str().unwrap()]);
    let page = std::fs::read_to_string(&file).unwrap();
    let id = told["generations"][0]["id"].as_str().unwrap();
    assert!(
        page.contains(">origin</text>") && page.contains(&id[..8]),
        "{page}"
    );
    for other in ["<script", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(other), "{other}: {page}");
    }
    place.fail(
        &["tree", "--html", "/nowhere/page"],
        "could not write the page /nowhere/page",
    );
}
