//! Unified diffs, applied as strictly as `patch --fuzz=0` does: a hunk may have moved, but each of
//! its lines has to be there as the diff says.

use std::fmt;

/// The change of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileDiff {
    /// Its path in the tree, without the leading `a/`.
    pub(crate) path: String,
    hunks: Vec<Hunk>,
}

/// Lines that follow each other, and what they become.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hunk {
    /// The line that the diff has it at, counted from 1.
    line: usize,
    old: Vec<String>,
    new: Vec<String>,
}

/// Why a text is not a diff that we can apply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseError {
    /// Nothing in it is a diff.
    #[error("there is no diff in it")]
    Empty,
    /// Not a change of a file that exists.
    #[error("line {0}: a file is made, removed or renamed, and only changes can be applied")]
    NotAChange(usize),
    /// Not the begin of a hunk.
    #[error("line {0}: not a hunk of a unified diff")]
    Hunk(usize),
    /// A hunk with more or fewer lines than its head says.
    #[error("line {0}: the hunk has not the number of lines that its head says")]
    Length(usize),
}

/// Why a diff does not fit a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ApplyError {
    /// What it makes is there.
    #[error("all that it changes has been changed already")]
    Done,
    /// The old lines are nowhere in the file.
    #[error("hunk {number}, for line {line}, does not fit; it wants these lines:\n{wanted}")]
    Hunk {
        /// Counted from 1.
        number: usize,
        /// The line that the diff has it at.
        line: usize,
        /// The lines that should be there, indented.
        wanted: Indented,
    },
}

/// Lines as an error shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Indented(Vec<String>);

impl fmt::Display for Indented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(|line| format!("    {line}")).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// The diffs in a text, which may be a whole mail.
pub(crate) fn parse(text: &str) -> Result<Vec<FileDiff>, ParseError> {
    let mut lines = text.lines().enumerate().peekable();
    let mut files: Vec<FileDiff> = Vec::new();
    while let Some((index, line)) = lines.next() {
        let number = index + 1;
        let next = lines.peek().map(|(_, next)| *next);
        if let (Some(old), Some(new)) = (
            line.strip_prefix("--- "),
            next.and_then(|next| next.strip_prefix("+++ ")),
        ) {
            let path = changed_path(old, new).ok_or(ParseError::NotAChange(number))?;
            lines.next();
            files.push(FileDiff {
                path: path.to_owned(),
                hunks: Vec::new(),
            });
        } else if let (true, Some(file)) = (line.starts_with("@@ "), files.last_mut()) {
            let (at, old, new) = hunk_head(line).ok_or(ParseError::Hunk(number))?;
            let body = std::iter::from_fn(|| lines.next().map(|(_, line)| line));
            let hunk = hunk(at, old, new, body).ok_or(ParseError::Length(number))?;
            file.hunks.push(hunk);
        }
    }
    if files.is_empty() {
        return Err(ParseError::Empty);
    }
    Ok(files)
}

/// The path of a file that is changed; none if it is made, removed or renamed.
fn changed_path<'a>(old: &'a str, new: &str) -> Option<&'a str> {
    let old = old.strip_prefix("a/")?;
    let inside = !old.split('/').any(|part| part.is_empty() || part == "..");
    (inside && new.strip_prefix("b/") == Some(old)).then_some(old)
}

/// Of `@@ -LINE,OLD +LINE,NEW @@` the first line and the two lengths.
fn hunk_head(line: &str) -> Option<(usize, usize, usize)> {
    let (ranges, _) = line.strip_prefix("@@ -")?.split_once(" @@")?;
    let (old, new) = ranges.split_once(" +")?;
    let range = |text: &str| -> Option<(usize, usize)> {
        let (line, length) = text.split_once(',').unwrap_or((text, "1"));
        Some((line.parse().ok()?, length.parse().ok()?))
    };
    let ((line, old), (_, new)) = (range(old)?, range(new)?);
    Some((line, old, new))
}

/// Reads a hunk of so many old and new lines; none if it is longer or shorter.
fn hunk<'a>(
    line: usize,
    old_length: usize,
    new_length: usize,
    mut body: impl Iterator<Item = &'a str>,
) -> Option<Hunk> {
    let (mut old, mut new) = (Vec::new(), Vec::new());
    while old.len() < old_length || new.len() < new_length {
        let line = body.next()?;
        // Mail programs take away the blank of an empty line.
        match line.split_at_checked(1).unwrap_or((" ", "")) {
            (" ", text) => {
                old.push(text.to_owned());
                new.push(text.to_owned());
            }
            ("-", text) => old.push(text.to_owned()),
            ("+", text) => new.push(text.to_owned()),
            _ => return None,
        }
    }
    let exact = old.len() == old_length && new.len() == new_length;
    exact.then_some(Hunk { line, old, new })
}

impl FileDiff {
    /// The file's new text.
    pub(crate) fn apply(&self, text: &str) -> Result<String, ApplyError> {
        let result = self.apply_hunks(text);
        match result {
            Err(_) if self.reversed().apply_hunks(text).is_ok() => Err(ApplyError::Done),
            other => other,
        }
    }

    fn apply_hunks(&self, text: &str) -> Result<String, ApplyError> {
        let mut lines: Vec<&str> = text.split('\n').collect();
        // Where the hunks so far have moved what follows them, and the first line that is free.
        let (mut moved, mut free) = (0_isize, 0);
        for (index, hunk) in self.hunks.iter().enumerate() {
            let expected = (hunk.line.saturating_sub(1)).saturating_add_signed(moved);
            let at =
                nearest(&lines, &hunk.old, expected, free).ok_or_else(|| ApplyError::Hunk {
                    number: index + 1,
                    line: hunk.line,
                    wanted: Indented(hunk.old.clone()),
                })?;
            lines.splice(at..at + hunk.old.len(), hunk.new.iter().map(String::as_str));
            free = at + hunk.new.len();
            moved += at as isize - expected as isize;
            moved += hunk.new.len() as isize - hunk.old.len() as isize;
        }
        Ok(lines.join("\n"))
    }

    fn reversed(&self) -> Self {
        let hunks = self.hunks.iter().cloned().map(|hunk| Hunk {
            old: hunk.new,
            new: hunk.old,
            ..hunk
        });
        Self {
            path: self.path.clone(),
            hunks: hunks.collect(),
        }
    }
}

/// Where `wanted` is among `lines`, from `free` on: as near to `expected` as there is one.
fn nearest(lines: &[&str], wanted: &[String], expected: usize, free: usize) -> Option<usize> {
    let last = lines.len().checked_sub(wanted.len())?;
    (free..=last)
        .filter(|&at| {
            lines[at..]
                .iter()
                .zip(wanted)
                .all(|(a, b)| *a == b.as_str())
        })
        .min_by_key(|at| at.abs_diff(expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIL: &str = "\
From: A <a@b>
Subject: x
--- not a diff
---
 f | 2 +-

diff --git a/d/f b/d/f
index 1..2 100644
--- a/d/f
+++ b/d/f
@@ -2,3 +2,3 @@ section
 two
-three
+THREE

@@ -8 +8,2 @@
-eight
+EIGHT
+more
--\u{20}
2.47
";

    const FILE: &str = "one\ntwo\nthree\n\nfive\nsix\nseven\neight\nnine\n";

    fn diff() -> FileDiff {
        let [diff] = &parse(MAIL).unwrap()[..] else {
            panic!("not one file");
        };
        diff.clone()
    }

    #[test]
    fn a_mail_s_diff_is_applied_where_it_says() {
        let text = diff().apply(FILE).unwrap();
        assert_eq!(diff().path, "d/f");
        assert_eq!(
            text,
            "one\ntwo\nTHREE\n\nfive\nsix\nseven\nEIGHT\nmore\nnine\n"
        );
    }

    #[test]
    fn hunks_that_have_moved_are_found_nearest_to_their_line() {
        let moved = format!("zero\nzero\n{FILE}eight\n");
        let text = diff().apply(&moved).unwrap();
        assert!(text.contains("two\nTHREE\n") && text.contains("EIGHT\nmore\nnine\neight\n"));
    }

    #[test]
    fn one_changed_line_of_context_is_enough_to_refuse() {
        let error = diff().apply(&FILE.replace("two", "2")).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("hunk 1, for line 2"), "{text}");
        assert!(text.ends_with("    two\n    three\n    "), "{text}");
        let error = diff().apply(&FILE.replace("eight", "8")).unwrap_err();
        assert!(error.to_string().starts_with("hunk 2"), "{error}");
    }

    #[test]
    fn a_change_that_is_there_is_told_from_one_that_does_not_fit() {
        let done = diff().apply(FILE).unwrap();
        assert_eq!(diff().apply(&done), Err(ApplyError::Done));
    }

    #[test]
    fn hunks_do_not_overlap() {
        // The second hunk's lines are before the first one's alone.
        let file = "eight\none\ntwo\nthree\n\nfive\n";
        assert!(diff().apply(file).is_err());
    }

    #[test]
    fn what_cannot_be_applied_is_refused_by_its_line() {
        assert_eq!(parse("no diff"), Err(ParseError::Empty));
        let refused = [
            ("--- /dev/null\n+++ b/f\n", ParseError::NotAChange(1)),
            ("--- a/f\n+++ b/g\n", ParseError::NotAChange(1)),
            ("--- a/../f\n+++ b/../f\n", ParseError::NotAChange(1)),
            ("--- a/f\n+++ b/f\n@@ -x @@\n", ParseError::Hunk(3)),
            (
                "--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n a\n",
                ParseError::Length(3),
            ),
            (
                "--- a/f\n+++ b/f\n@@ -1,2 +1 @@\n a\n+b\n-c\n",
                ParseError::Length(3),
            ),
        ];
        for (text, error) in refused {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }
}
