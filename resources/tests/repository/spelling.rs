//! Documents and comments have no word that is misspelt as others have misspelt it before. The list
//! of such words is that of the program `typos`.

use unicase::UniCase;

use crate::files;

/// Right in what we write about, and no misspelling.
const OURS: &[&str] = &["reseedings"];

/// The misspelt words of a document, with the numbers of their lines.
fn misspelt_in_document(text: &str) -> Vec<String> {
    let mut in_code = false;
    let prose = text.lines().map(|line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        if in_code || is_fence { "" } else { line }
    });
    misspelt(prose)
}

/// The misspelt words of the comments in Rust.
fn misspelt_in_comments(text: &str) -> Vec<String> {
    misspelt(text.lines().map(|line| {
        let line = line.trim_start();
        if line.starts_with("//") { line } else { "" }
    }))
}

fn misspelt<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut found = Vec::new();
    for (line, number) in lines.zip(1..) {
        // Between backticks are names, and in links files.
        let prose = line.split('`').step_by(2).collect::<Vec<_>>().join(" ");
        let prose = prose.split("](").map(after_link).collect::<Vec<_>>();
        for word in prose.join(" ").split(|c: char| !c.is_alphabetic()) {
            // Shorter words are abbreviations, or ends of what an apostrophe or a digit has cut.
            if word.chars().count() < 4 || OURS.contains(&word) {
                continue;
            }
            if let Some(right) = typos_dict::WORD.find(&UniCase::ascii(word)) {
                found.push(format!("{number}: {word}, not {}", right.join(" or ")));
            }
        }
    }
    found
}

fn after_link(text: &str) -> &str {
    text.split_once(')').map_or(text, |(_, rest)| rest)
}

#[test]
fn words_are_spelt_as_they_should_be() {
    let mut found = Vec::new();
    for (extension, look) in [
        ("md", misspelt_in_document as fn(&str) -> Vec<String>),
        ("rs", misspelt_in_comments),
    ] {
        let paths = files::with_extension("", extension);
        assert!(paths.len() > 10);
        for path in paths {
            let wrong = look(&files::read(&path)).into_iter();
            found.extend(wrong.map(|what| format!("{}:{what}", path.display())));
        }
    }
    assert_eq!(found, [""; 0]);
}

#[test]
fn a_misspelt_word_is_found_where_somebody_reads_it() {
    let wrong = ["rec", "ieve"].concat();
    let page = format!("To {wrong}\n`{wrong}` [{wrong}](a/{wrong}.md)\n```\n{wrong}\n```\n");
    let found = |number| format!("{number}: {wrong}, not receive");
    assert_eq!(misspelt_in_document(&page), [found(1), found(2)]);
    let code = format!("let {wrong} = 1;\n    /// To {wrong}.\n");
    assert_eq!(misspelt_in_comments(&code), [found(2)]);
}
