//! Each code and each test that `docs/promises.md` names is there.
//!
//! A line of it that begins with `- Code:` or `- Tests:` has paths and names between backticks.
//! A name belongs to the path before it.

use crate::files;

const PAGE: &str = "docs/promises.md";

/// What a line of the page names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `- Code:`: a name is a word of the file.
    Code,
    /// `- Tests:`: a name is a test in the file.
    Tests,
}

/// A path, and the names that are looked for in its file.
#[derive(Debug, PartialEq, Eq)]
struct Claim {
    kind: Kind,
    path: String,
    names: Vec<String>,
}

/// All claims of the page. A list item goes on in indented lines.
fn claims(page: &str) -> Vec<Claim> {
    let mut claims = Vec::new();
    let mut kind = None;
    for line in page.lines() {
        if line.starts_with("- Code:") {
            kind = Some(Kind::Code);
        } else if line.starts_with("- Tests:") {
            kind = Some(Kind::Tests);
        } else if !line.starts_with("  ") {
            kind = None;
        }
        let Some(kind) = kind else { continue };
        for quoted in line.split('`').skip(1).step_by(2) {
            if is_path(quoted) {
                claims.push(Claim {
                    kind,
                    path: quoted.to_owned(),
                    names: Vec::new(),
                });
            } else if let Some(last) = claims.last_mut() {
                last.names.push(quoted.to_owned());
            }
        }
    }
    claims
}

fn is_path(quoted: &str) -> bool {
    quoted.contains('/')
}

/// What the page names and nothing in the repository is.
fn made_up(page: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for claim in claims(page) {
        let path = files::root().join(&claim.path);
        if path.is_dir() && claim.names.is_empty() {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(path) else {
            wrong.push(format!("no file {}", claim.path));
            continue;
        };
        for name in claim.names {
            let there = match claim.kind {
                Kind::Code => has_word(&text, &name),
                Kind::Tests => has_test(&text, &name),
            };
            if !there {
                wrong.push(format!("nothing is called {name} in {}", claim.path));
            }
        }
    }
    wrong
}

fn has_word(text: &str, name: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .any(|word| word == name)
}

/// Whether there is a function of that name that is marked as a test right before.
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let function = format!("fn {name}(");
    lines.iter().enumerate().any(|(at, line)| {
        line.starts_with(&function)
            && lines[..at]
                .iter()
                .rev()
                .take_while(|line| line.starts_with("#[") || line.starts_with("//"))
                .any(|line| *line == "#[test]")
    })
}

/// The titles of the page that have no test, and do not say why.
fn without_a_test(page: &str) -> Vec<&str> {
    page.split("\n### ")
        .skip(1)
        .filter(|promise| !promise.contains("\n- Tests:") && !promise.contains("\n- Open:"))
        .filter_map(|promise| promise.lines().next())
        .collect()
}

#[test]
fn each_promise_names_code_and_tests_that_are_there() {
    let page = files::read(PAGE);
    assert_eq!(made_up(&page), [""; 0], "in {PAGE}");
    assert_eq!(without_a_test(&page), [""; 0], "in {PAGE}");
    let claimed = claims(&page);
    let tests = claimed.iter().filter(|claim| claim.kind == Kind::Tests);
    assert!(tests.map(|claim| claim.names.len()).sum::<usize>() > 50);
}

#[test]
fn a_name_that_is_made_up_is_found() {
    let page = "### A promise\n- Code: `resources/src/main.rs`: `no_such_word`, `main`\n\
                - Tests: `resources/tests/repository/promises.rs`: `a_name_that_is_made_up_is_found`,\n  \
                `a_test_that_nobody_wrote`, `has_test`; `resources/tests/no_such_file.rs`\n\
                Elsewhere `no/such/path` is no claim.\n";
    assert_eq!(
        made_up(page),
        [
            "nothing is called no_such_word in resources/src/main.rs",
            "nothing is called a_test_that_nobody_wrote in resources/tests/repository/promises.rs",
            "nothing is called has_test in resources/tests/repository/promises.rs",
            "no file resources/tests/no_such_file.rs",
        ]
    );
}

#[test]
fn a_promise_without_a_test_is_found_unless_it_says_that_it_is_open() {
    let page = "# Promises\n\n### Kept\n- Tests: `a/b`\n\n### Forgotten\n- Code: `a/b`\n\n\
                ### Not yet\n- Open: it is not there.\n";
    assert_eq!(without_a_test(page), ["Forgotten"]);
}
