//! Entries in files that the kernel has: each goes where the file's order wants it.

use anyhow::{Context, Result, ensure};

/// How a file of the kernel's is entered into.
pub(crate) type Enter = fn(text: &str, entry: &str) -> Result<String>;

/// A section of `MAINTAINERS`, in the order of their titles.
pub(crate) fn section(text: &str, entry: &str) -> Result<String> {
    let title = entry.lines().next().context("the entry is empty")?;
    let list = "Maintainers List\n----------------\n\n";
    let begin = text.find(list).context("it has no list of maintainers")? + list.len();
    let sections = &text[begin..];
    // A paragraph of the list is a section if its second line has a letter and a colon.
    let is_section = |paragraph: &str| {
        let second = paragraph.lines().nth(1).unwrap_or_default();
        second.as_bytes().get(1) == Some(&b':')
    };
    // Where the section may begin, and how many titles would be on its wrong side: not all of the
    // list is in order.
    let mut at = begin;
    let mut places = vec![(at, 0_isize)];
    for paragraph in sections.split_inclusive("\n\n") {
        let name = paragraph.lines().next().unwrap_or_default();
        ensure!(name != title, "it has a section {title} already");
        let wrong = places.last().map_or(0, |(_, wrong)| *wrong);
        at += paragraph.len();
        if is_section(paragraph) {
            let before = name.to_uppercase() < title.to_uppercase();
            places.push((at, wrong + if before { -1 } else { 1 }));
        } else {
            places.push((at, wrong));
        }
    }
    // The end of the list is no place: the last section has to stay the last.
    let ordered = places.iter().rev().skip(1);
    let best = ordered.min_by_key(|(_, wrong)| *wrong);
    let (at, _) = *best.context("the list has no sections")?;
    let entry = entry.trim_end();
    Ok(format!("{}{entry}\n\n{}", &text[..at], &text[at..]))
}

/// A row of the table of `ioctl()` numbers, in the order of their codes.
pub(crate) fn ioctl_row(text: &str, entry: &str) -> Result<String> {
    let code = |line: &str| u8::from_str_radix(line.strip_prefix("0x")?.get(..2)?, 16).ok();
    let ours = code(entry).context("the entry does not begin with a code")?;
    ensure!(
        !text.lines().any(|line| code(line) == Some(ours)),
        "the code {ours:#x} has been given away"
    );
    insert_line(text, entry, |line| code(line) > Some(ours))
}

/// A document in a table of contents, in the order of their names.
pub(crate) fn content(text: &str, entry: &str) -> Result<String> {
    let line = format!("   {entry}");
    insert_line(text, &line, |other| {
        let name = other.strip_prefix("   ").unwrap_or_default();
        name.starts_with(|first: char| first.is_ascii_alphanumeric()) && name > entry
    })
}

/// A line of a `Kconfig`, after the last one that includes another file.
pub(crate) fn kconfig_source(text: &str, entry: &str) -> Result<String> {
    let last = text.lines().rev().find(|line| line.starts_with("source "));
    let last = last.context("it includes no other Kconfig")?;
    Ok(text.replacen(last, &format!("{last}\n{entry}"), 1))
}

/// The last line of a `Makefile`.
pub(crate) fn last_line(text: &str, entry: &str) -> Result<String> {
    ensure!(text.ends_with('\n'), "its last line has no end");
    Ok(format!("{text}{entry}\n"))
}

/// Puts a line before the first one that has to follow it.
fn insert_line(text: &str, entry: &str, follows: impl Fn(&str) -> bool) -> Result<String> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if follows(line.trim_end()) {
            let (before, after) = text.split_at(at);
            return Ok(format!("{before}{}\n{after}", entry.trim_end()));
        }
        at += line.len();
    }
    anyhow::bail!("no line would follow the entry's")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_goes_where_its_title_belongs() {
        let text = "X: like a section\n\nMaintainers List\n----------------\n\n.. note:: z\n  a\n\n\
                    ABC\nS:\tx\n\nTASK\nS:\tx\n\nSYSFS\nS:\tx\n\nSYSTEM\nS:\tx\n\nTHE REST\nS:\tx\n";
        let entry = "SYSGENID\nS:\tx\n";
        let new = section(text, entry).unwrap();
        assert!(
            new.contains("SYSFS\nS:\tx\n\nSYSGENID\nS:\tx\n\nSYSTEM\n"),
            "{new}"
        );
        assert_eq!(new.len(), text.len() + entry.len() + 1);
        assert!(section(&new, entry).is_err());
        assert!(section("no list", entry).is_err());
    }

    #[test]
    fn a_row_goes_where_its_code_belongs_and_no_code_is_given_twice() {
        let text = "Code\n0xDD  00\n      more\n0xE5  00-3F  linux/fuse.h\n0xEC  00\n";
        let new = ioctl_row(text, "0xE4  01-0A  a.h\n").unwrap();
        assert!(new.contains("      more\n0xE4  01-0A  a.h\n0xE5"), "{new}");
        let error = ioctl_row(&new, "0xE4  01").unwrap_err().to_string();
        assert!(error.contains("0xe4"), "{error}");
    }

    #[test]
    fn a_document_goes_into_the_table_of_contents() {
        let text =
            "Title\n\n.. toctree::\n   :maxdepth: 2\n\n   max6875\n   tps6594-pfsm\n   uacce\n";
        let new = content(text, "sysgenid").unwrap();
        assert!(new.contains("   max6875\n   sysgenid\n   tps6594"), "{new}");
    }

    #[test]
    fn hooks_for_the_build_go_last() {
        let text = "config X\n\nsource \"a/Kconfig\"\nsource \"b/Kconfig\"\nendmenu\n";
        let new = kconfig_source(text, "source \"c/Kconfig\"").unwrap();
        assert!(
            new.ends_with("\"b/Kconfig\"\nsource \"c/Kconfig\"\nendmenu\n"),
            "{new}"
        );
        assert_eq!(last_line("a\n", "b").unwrap(), "a\nb\n");
        assert!(last_line("a", "b").is_err() && kconfig_source("", "x").is_err());
    }
}
