//! Tests of the tree and its page.

use super::layout::{Card, MARGIN, WIDTH, layout};
use super::*;
use vmgenie_api::wire::{DriverInfo, Missing, Stage};

fn driver() -> DriverInfo {
    serde_json::from_value(serde_json::json!({
        "present": true, "version": 3, "reached": true, "reseeded": true,
        "outdated_watchers": 0, "adapted": true,
    }))
    .unwrap()
}

/// A machine whose generations are called by letters, the present one last.
fn machine(name: &str, line: &str) -> Machine {
    let mut ids: Vec<String> = line.chars().map(String::from).collect();
    let id = ids.pop().unwrap();
    Machine {
        pid: 4711,
        id: name.to_owned(),
        api_socket: Some(PathBuf::from("/run/vm.sock")),
        state: Some(State::Running),
        generation: Some(GenerationInfo {
            id,
            raw: String::new(),
            changes: ids.len() as u64,
            since: String::new(),
            since_unix_ms: 1_700_000_000_000,
            ancestors: ids,
            counter: 3,
            driver: driver(),
        }),
        ready: Some(Ready {
            ready: true,
            stage: Stage::Service,
            missing: Vec::new(),
            gate: None,
            reseeded_us: Some(999_999),
            identity_us: Some(999_999),
            adapted_us: Some(99_990_000),
            service_us: Some(99_990_000),
        }),
        drawn: None,
    }
}

/// Each generation with its depth, its machines or how many have ended.
fn told(lineage: &Lineage) -> Vec<String> {
    let line = |it: &Generation| {
        let machines: Vec<_> = it.machines.iter().map(|it| it.id.as_str()).collect();
        let who = match it.ended {
            0 => machines.join("+"),
            ended => format!("-{ended}"),
        };
        let id = it.id.as_deref().unwrap_or("?");
        format!("{}{id}:{who}", " ".repeat(it.depth))
    };
    lineage.generations.iter().map(line).collect()
}

fn tree_of(machines: impl IntoIterator<Item = Machine>) -> Lineage {
    tree(1_700_000_065_000, machines.into_iter().collect())
}

#[test]
fn clones_of_clones_find_their_places_though_a_parent_has_ended() {
    let lineage = tree_of([
        machine("grandchild", "acd"),
        machine("one", "ab"),
        machine("origin", "a"),
        machine("other", "ace"),
    ]);
    assert_eq!(
        told(&lineage),
        ["a:origin", " c:-1", "  d:grandchild", "  e:other", " b:one"]
    );
    let parents: Vec<_> = lineage.generations.iter().map(|it| &it.parent).collect();
    let some = |id: &str| Some(id.to_owned());
    assert_eq!(
        parents,
        [&None, &some("a"), &some("c"), &some("c"), &some("a")]
    );
}

#[test]
fn machines_that_keep_one_generation_share_it_and_those_that_tell_none_come_last() {
    let mut silent = machine("silent", "z");
    silent.generation = None;
    let lineage = tree_of([silent, machine("a", "x"), machine("b", "x")]);
    assert_eq!(told(&lineage), ["x:a+b", "?:silent"]);
}

#[test]
fn generations_that_have_ended_one_after_the_other_are_one() {
    let lineage = tree_of([machine("last", "abcdef")]);
    assert_eq!(told(&lineage), ["e:-5", " f:last"]);
    // Where another came from one of them, that is seen.
    let lineage = tree_of([machine("last", "abcdef"), machine("third", "abcg")]);
    assert_eq!(told(&lineage), ["c:-3", " e:-2", "  f:last", " g:third"]);
}

#[test]
fn no_machine_is_lost_whatever_the_others_say() {
    for lines in [
        ["ab", "ba"],
        ["aaa", "a"],
        ["abc", "cab"],
        ["acb", "ab"],
        ["abab", "baba"],
    ] {
        let lineage = tree_of(lines.map(|line| machine(line, line)));
        let machines: usize = lineage.generations.iter().map(|it| it.machines.len()).sum();
        assert_eq!(machines, 2, "{lines:?}");
        let depths: Vec<_> = lineage.generations.iter().map(|it| it.depth).collect();
        assert!(depths.iter().all(|depth| *depth < 4), "{depths:?}");
    }
}

#[test]
fn a_machine_that_says_much_and_deep_lines_are_shown() {
    let line: String = ('a'..='z').chain('A'..='Z').collect();
    // Each generation has a machine: nothing is folded up.
    let machines = (1..line.len()).map(|to| machine(&line[..to], &line[..to]));
    let lineage = tree_of(machines);
    assert_eq!(lineage.generations.len(), line.len() - 1);
    assert_eq!(lineage.generations.last().unwrap().depth, line.len() - 2);
}

fn overlap(a: &Card, b: &Card) -> bool {
    let apart = |from: usize, length: usize, other: usize| from + length <= other;
    !(apart(a.x, WIDTH, b.x)
        || apart(b.x, WIDTH, a.x)
        || apart(a.y, a.height, b.y)
        || apart(b.y, b.height, a.y))
}

#[test]
fn no_card_lies_on_another_or_outside_and_each_line_joins_two() {
    let lines = [
        "a", "ab", "ac", "acd", "ace", "acd", "acdf", "acdg", "h", "ijk", "ijl", "ijm",
    ];
    let machines = lines.map(|line| machine(line, line));
    let lineage = tree_of(machines);
    let layout = layout(lineage.taken_unix_ms, &lineage.generations);
    assert_eq!(layout.cards.len(), lines.len() + 1);
    for (number, card) in layout.cards.iter().enumerate() {
        assert!(card.x >= MARGIN && card.y >= MARGIN, "{card:?}");
        assert!(card.x + WIDTH + MARGIN <= layout.width, "{card:?}");
        assert!(card.y + card.height + MARGIN <= layout.height, "{card:?}");
        for other in &layout.cards[..number] {
            assert!(!overlap(card, other), "{card:?} {other:?}");
        }
    }
    let roots = lineage.generations.iter().filter(|it| it.depth == 0);
    assert_eq!(
        layout.edges.len(),
        lineage.generations.len() - roots.count()
    );
    for edge in &layout.edges {
        let ends = |x: usize, at: (usize, usize)| {
            let mut cards = layout.cards.iter();
            cards.any(|card| {
                card.x + x == at.0 && (card.y..=card.y + card.height + 8).contains(&at.1)
            })
        };
        assert!(ends(WIDTH, edge.from) && ends(0, edge.to), "{edge:?}");
    }
}

#[test]
fn what_others_say_is_text_on_the_page_and_no_longer_than_a_card() {
    let mut hostile = machine(&"</title><script>alert(1)</script>\u{1b}".repeat(40), "a");
    hostile.drawn = Some("'\"&<img src=x onerror=alert(1)>".repeat(9));
    if let Some(generation) = &mut hostile.generation {
        generation.id = "<b>\"bold\"</b>".to_owned();
    }
    let lineage = tree_of([hostile]);
    let options = Page {
        title: "A <title>",
        note: Some("<note>"),
        live: false,
    };
    let html = page(&lineage, options);
    for tag in ["<script", "<img", "<b>", "<note", "\u{1b}"] {
        assert!(!html.contains(tag), "{tag}: {html}");
    }
    assert!(html.contains("A &lt;title&gt;") && html.contains("&lt;note&gt;"));
    let layout = layout(0, &lineage.generations);
    let card = &layout.cards[0];
    assert!(card.title.chars().count() <= 30 && card.title.ends_with('\u{2026}'));
    assert!(card.lines.iter().all(|line| line.chars().count() <= 36));
    // The longest times there are fit as they are.
    let times: Vec<_> = card.lines.iter().filter(|it| it.contains("ms")).collect();
    assert_eq!(times, ["reseeded 999.9 ms, identity 999.9 ms"]);
}

#[test]
fn a_page_has_a_script_only_if_it_is_live() {
    let lineage = tree_of([machine("a", "a")]);
    let of = |live| {
        let title = "t";
        page(
            &lineage,
            Page {
                title,
                note: None,
                live,
            },
        )
    };
    assert!(!of(false).contains("script-src") && !of(false).contains("<script"));
    assert!(of(true).contains("<script>") && of(true).contains("connect-src 'self'"));
}

#[test]
fn numbers_that_were_drawn_twice_are_seen() {
    let drew = |name: &str, line: &str, drawn: &str| Machine {
        drawn: Some(drawn.to_owned()),
        ..machine(name, line)
    };
    let summary = |machines: [Machine; 2]| {
        let title = "t";
        let options = Page {
            title,
            note: None,
            live: false,
        };
        page(&tree_of(machines), options)
    };
    let different = summary([drew("a", "a", "1"), drew("b", "ab", "2")]);
    assert!(different.contains("2 of 2 numbers drawn are different"));
    let same = summary([drew("a", "a", "1"), drew("b", "ab", "1")]);
    assert!(same.contains("1 of 2 numbers drawn are different"));
}

#[test]
fn a_machine_says_what_it_does() {
    let said = |change: fn(&mut Machine)| {
        let mut machine = machine("a", "a");
        change(&mut machine);
        status(&machine).1
    };
    assert_eq!(said(|_| ()), "ready");
    assert_eq!(said(|it| it.api_socket = None), "has no API");
    assert_eq!(said(|it| it.state = None), "does not answer");
    assert_eq!(said(|it| it.state = Some(State::Paused)), "paused");
    assert_eq!(said(|it| it.state = Some(State::NotStarted)), "not started");
    assert_eq!(said(|it| it.ready = None), "running");
    let lacking = |it: &mut Machine, missing: Vec<Missing>| {
        if let Some(ready) = &mut it.ready {
            ready.ready = false;
            ready.missing = missing;
        }
    };
    let mut adapting = machine("a", "a");
    lacking(&mut adapting, vec![Missing::Watchers, Missing::Agent]);
    assert_eq!(status(&adapting).1, "lacks watchers, agent");
    lacking(&mut adapting, vec![Missing::Driver]);
    assert_eq!(status(&adapting).1, "running, no driver");
}
