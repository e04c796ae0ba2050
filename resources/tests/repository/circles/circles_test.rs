//! The workspace has no circle, and circles that are made up are found.

use std::fs;

use super::*;

/// The circles that are still there.
const KNOWN: &[&str] = &[];

#[test]
fn there_is_no_circle_in_the_workspace() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut edges = BTreeSet::new();
    let roots = roots(workspace);
    for root in &roots {
        resolve::edges(&Crate::read(root), &mut edges);
    }
    assert!(roots.len() > 20, "{roots:#?}");
    assert!(edges.len() > 500, "only {} imports found", edges.len());
    let circles = circles(workspace);
    let first_lines: Vec<_> = circles
        .iter()
        .map(|it| it.lines().next().unwrap_or(""))
        .collect();
    let folder = workspace.display();
    let known: Vec<_> = KNOWN.iter().map(|it| format!("{folder}/{it}")).collect();
    assert_eq!(first_lines, known, "{}", circles.join("\n"));
}

/// Writes a crate's files, and finds the circles.
fn circles_of(files: &[(&str, &str)]) -> Vec<String> {
    let place = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = place.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    circles(place.path())
}

#[test]
fn a_circle_of_files_is_found() {
    let found = circles_of(&[
        ("src/lib.rs", "mod a; mod b;"),
        ("src/a.rs", "use crate::b::B; pub struct A(B);"),
        ("src/b.rs", "pub struct B; fn f() { let _ = super::a::A; }"),
    ]);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("src: a, b"), "{found:#?}");
}

#[test]
fn a_circle_of_folders_without_one_of_files_is_found() {
    let found = circles_of(&[
        ("src/lib.rs", "mod a; mod b;"),
        ("src/a/mod.rs", "pub mod one; pub mod two;"),
        ("src/a/one.rs", "use crate::b::one::X;"),
        ("src/a/two.rs", "pub struct Y;"),
        ("src/b/mod.rs", "pub mod one; pub mod two;"),
        ("src/b/one.rs", "pub struct X;"),
        ("src/b/two.rs", "fn f() { assert!(crate::a::two::Y == 1); }"),
    ]);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("src: a, b"), "{found:#?}");
}

#[test]
fn a_name_is_followed_through_renames_and_globs() {
    let found = circles_of(&[
        ("src/lib.rs", "mod a; mod b; mod door; mod hall;"),
        ("src/door.rs", "pub use crate::hall::*;"),
        ("src/hall.rs", "pub use crate::a::{A as Renamed, Other};"),
        ("src/a.rs", "pub struct A; pub struct Other; use crate::b;"),
        ("src/b.rs", "use crate::door::Renamed;"),
    ]);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("src: a, b\n"), "{found:#?}");
}

#[test]
fn one_way_imports_reexports_parents_and_unit_tests_are_no_circle() {
    let found = circles_of(&[
        ("src/lib.rs", "mod a; mod b; mod c;"),
        (
            "src/a/mod.rs",
            "mod x; mod y; pub use x::X; pub use y::Y; pub struct A(X);",
        ),
        ("src/a/x.rs", "use super::{A, Y}; pub struct X(Y);"),
        ("src/a/y.rs", "pub struct Y;"),
        (
            "src/b.rs",
            "use crate::a::X; #[cfg(test)] mod test { use crate::c::C; }",
        ),
        (
            "src/c.rs",
            "use crate::b::B; pub struct C; #[cfg(test)] mod c_test;",
        ),
        ("src/c/c_test.rs", "use super::C; use crate::b::B;"),
    ]);
    assert_eq!(found, Vec::<String>::new());
}
