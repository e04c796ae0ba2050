//! Tests of `vmgenie tree`'s text.

use super::*;

fn place(depth: usize) -> Generation {
    Generation {
        id: Some(format!("{depth}1223344-0000")),
        parent: None,
        depth,
        ended: 1,
        name: None,
        machines: Vec::new(),
    }
}

fn machine(id: &str) -> Machine {
    Machine {
        pid: 7,
        id: id.to_owned(),
        api_socket: None,
        state: None,
        generation: None,
        ready: None,
        drawn: None,
    }
}

#[test]
fn a_tree_has_its_branches() {
    let depths = [0, 1, 2, 2, 1, 2, 3, 0];
    let generations: Vec<_> = depths.map(place).into();
    let drawn: Vec<_> = (0..depths.len())
        .map(|number| branches(&generations, number).0)
        .collect();
    assert_eq!(
        drawn,
        [
            "",
            "├─ ",
            "│  ├─ ",
            "│  └─ ",
            "└─ ",
            "   └─ ",
            "      └─ ",
            ""
        ]
    );
}

#[test]
fn the_text_keeps_its_columns_and_moves_no_cursor() {
    let mut clone = place(2);
    clone.machines = vec![machine("a\u{1b}[2J"), machine("twin")];
    let lineage = Lineage {
        taken_unix_ms: 0,
        generations: vec![place(0), place(1), clone],
    };
    let text = text(&lineage);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    let columns: Vec<_> = ["PID", "-", "-", "7", "7"]
        .iter()
        .zip(&lines)
        .map(|(word, line)| {
            let (before, _) = line.split_once(word).unwrap();
            before.chars().count()
        })
        .collect();
    assert!(columns.iter().all(|at| *at == columns[0]), "{text}");
    assert!(lines[1].starts_with("(ended) "), "{text}");
    assert!(lines[2].starts_with("└─ (ended) ") && lines[2].contains(" 11223344 "));
    assert!(lines[3].starts_with("   └─ a\\u{1b}[2J "), "{text}");
    assert!(lines[4].starts_with("      = twin "), "{text}");
}
