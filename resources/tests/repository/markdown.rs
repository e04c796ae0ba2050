//! Documents can be read in a terminal, and their links lead somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use crate::files;

/// The longest line, in characters. A row of a table may be longer.
const COLUMNS: usize = 100;
/// No cell of a table has so many characters.
const CELL: usize = 100;

/// The folders of the repository whose files documents name.
const FOLDERS: [&str; 8] = [
    "acpi",
    "devices",
    "docs",
    "fuzz",
    "guest-driver",
    "resources",
    "tests",
    "vmm",
];

/// A document, read for what is looked at.
#[derive(Debug, Default)]
struct Document {
    /// What is wrong with its lines.
    wrong: Vec<String>,
    /// What links lead to its headings.
    anchors: BTreeSet<String>,
    /// The targets of its links, with the numbers of their lines.
    links: Vec<(usize, String)>,
    /// What stands between backticks, with the numbers of their lines.
    names: Vec<(usize, String)>,
}

impl Document {
    fn read(text: &str) -> Self {
        let mut document = Self::default();
        let mut in_code = false;
        for (line, number) in text.lines().zip(1..) {
            let is_fence = line.trim_start().starts_with("```");
            if is_fence {
                in_code = !in_code;
            }
            let is_row = line.starts_with('|') && !in_code;
            match is_row {
                true => document.look_at_row(line, number),
                false if line.chars().count() > COLUMNS => {
                    let length = line.chars().count();
                    document.wrong.push(format!("{number}: {length} columns"));
                }
                false => {}
            }
            if line.ends_with([' ', '\t']) {
                document.wrong.push(format!("{number}: ends with a space"));
            }
            if !in_code && !is_fence {
                document.look_at_text(line, number);
            }
        }
        if in_code {
            document.wrong.push("a code block has no end".into());
        }
        document
    }

    fn look_at_row(&mut self, line: &str, number: usize) {
        let line = line.replace("\\|", "/");
        let cells = line.trim_matches('|').split('|');
        let lengths = cells.map(|cell| cell.trim().chars().count());
        if let Some(longest) = lengths.max().filter(|length| *length >= CELL) {
            self.wrong.push(format!("{number}: a cell of {longest}"));
        }
    }

    fn look_at_text(&mut self, line: &str, number: usize) {
        if let Some((marks, title)) = line.split_once(' ')
            && (1..=6).contains(&marks.len())
            && marks.chars().all(|mark| mark == '#')
        {
            let slug = slug(title);
            let taken = |slug: &str| self.anchors.contains(slug);
            let first = match taken(&slug) {
                false => Some(slug.clone()),
                true => (1..).map(|n| format!("{slug}-{n}")).find(|one| !taken(one)),
            };
            self.anchors.extend(first);
        }
        let found = line.match_indices("](").filter_map(|(at, _)| {
            let target = &line[at + 2..];
            target.find(')').map(|end| target[..end].to_owned())
        });
        self.links.extend(found.map(|target| (number, target)));
        let names = line.split('`').skip(1).step_by(2);
        self.names
            .extend(names.map(|name| (number, name.to_owned())));
    }
}

/// The anchor of a heading, as GitHub makes it.
fn slug(title: &str) -> String {
    title
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// What is wrong with these documents, by path and line. `exists` says whether a path that is no
/// document of these is there.
fn wrong(texts: &BTreeMap<PathBuf, String>, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let documents: BTreeMap<_, _> = texts
        .iter()
        .map(|(path, text)| (path, Document::read(text)))
        .collect();
    let mut wrong = Vec::new();
    for (path, document) in &documents {
        let of_it = document.wrong.iter();
        wrong.extend(of_it.map(|what| format!("{}:{what}", path.display())));
        for (number, name) in document.names.iter().filter(|(_, name)| is_path(name)) {
            if !exists(Path::new(name)) {
                wrong.push(format!("{}:{number}: no {name}", path.display()));
            }
        }
        for (number, link) in &document.links {
            if link.contains("://") {
                continue;
            }
            let (target, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match target.is_empty() {
                true => (*path).clone(),
                false => beside(path, target),
            };
            let leads = match documents.get(&target) {
                Some(document) => anchor.is_empty() || document.anchors.contains(anchor),
                None => anchor.is_empty() && exists(&target),
            };
            if !leads {
                wrong.push(format!("{}:{number}: no {link}", path.display()));
            }
        }
    }
    wrong
}

/// Whether it can be nothing but a path of the repository: it begins with a folder of ours.
fn is_path(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let folder = name.split_once('/').map(|(folder, _)| folder);
    name.chars().all(plain) && folder.is_some_and(|folder| FOLDERS.contains(&folder))
}

/// The path that a link in a document leads to.
fn beside(document: &Path, link: &str) -> PathBuf {
    let mut path = document.parent().unwrap().to_path_buf();
    for part in Path::new(link).components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            part => path.push(part),
        }
    }
    path
}

#[test]
fn documents_fit_a_terminal_and_their_links_lead_somewhere() {
    let paths = files::with_extension("", "md");
    let texts: BTreeMap<_, _> = paths
        .into_iter()
        .map(|path| (path.clone(), files::read(&path)))
        .collect();
    assert!(texts.len() > 10);
    let found = wrong(&texts, |path| files::root().join(path).exists());
    assert_eq!(found, [""; 0], "\n{}\n", found.join("\n"));
}

#[test]
fn the_readme_has_at_most_900_words() {
    let words = files::read("README.md").split_whitespace().count();
    assert!(words <= 900, "{words}");
}

#[test]
fn lines_cells_and_links_that_are_wrong_are_found() {
    let long = "x".repeat(COLUMNS + 1);
    let cell = "y".repeat(CELL);
    let page = format!(
        "# Of `this`, that\n{long}\n| {cell} | z |\n| {} | {} |\n```\n{long}\n[no](link)\n```\n\
         space \n[a](../other.md#there) [b](../other.md#not-there) [c](#of-this-that) [d](#no)\n\
         [e](gone.md) [f](picture.svg) [g](https://example.org/x#y)\n\
         `docs/gone.rs` `docs/picture.svg` `no/path` `vmm/FILE*` `vmm`\n",
        "y".repeat(CELL - 1),
        "y".repeat(CELL - 1),
    );
    let texts = BTreeMap::from([
        (PathBuf::from("docs/page.md"), page),
        (
            PathBuf::from("other.md"),
            "## There\n## There\n```\n".into(),
        ),
    ]);
    let exists = |path: &Path| path == Path::new("docs/picture.svg");
    assert_eq!(
        wrong(&texts, exists),
        [
            "docs/page.md:2: 101 columns",
            "docs/page.md:3: a cell of 100",
            "docs/page.md:6: 101 columns",
            "docs/page.md:9: ends with a space",
            "docs/page.md:12: no docs/gone.rs",
            "docs/page.md:10: no ../other.md#not-there",
            "docs/page.md:10: no #no",
            "docs/page.md:11: no gone.md",
            "other.md:a code block has no end",
        ]
    );
    assert_eq!(
        Document::read("# A b\n# A b\n").anchors,
        ["a-b", "a-b-1"].map(str::to_owned).into()
    );
}
