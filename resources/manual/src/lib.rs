//! Manual pages (man(7)) of a program whose command line clap reads: one for the program, and one
//! for each command. What stands behind the options in `--help` has sections of its own.
//!
//! Programs use this in an example and in tests alone, so that nothing of it is in what is shipped.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_mangen::Man;
use roff::{Roff, roman};

/// A page: the name of its file, and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// `program-command.1`.
    pub file: String,
    /// The text for man(1).
    pub text: String,
}

/// The pages of a program and all of its commands that are not hidden. The program is the first.
///
/// # Errors
/// None is expected: pages are written to memory.
pub fn pages(command: Command) -> io::Result<Vec<Page>> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    add(&command, &mut pages)?;
    Ok(pages)
}

/// Writes the pages into a directory, which is made if it is not there. Returns their paths.
///
/// # Errors
/// The directory's or a file's.
pub fn write(command: Command, directory: &Path) -> io::Result<Vec<PathBuf>> {
    fs::create_dir_all(directory)?;
    let written = pages(command)?.into_iter().map(|page| {
        let path = directory.join(page.file);
        fs::write(&path, page.text).map(|()| path)
    });
    written.collect()
}

/// The page of a command, and those of its commands.
fn add(command: &Command, pages: &mut Vec<Page>) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let version = command.get_version().unwrap_or(env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone())
        .title(name)
        .source(version)
        .manual("User commands");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.get_subcommands().any(|one| !one.is_hide_set()) {
        man.render_subcommands_section(&mut text)?;
    }
    let after = command.get_after_help().map(ToString::to_string);
    sections(&after.unwrap_or_default()).to_writer(&mut text)?;
    pages.push(Page {
        file: man.get_filename(),
        text: String::from_utf8_lossy(&text).into_owned(),
    });
    for command in command.get_subcommands().filter(|one| !one.is_hide_set()) {
        add(command, pages)?;
    }
    Ok(())
}

/// What stands behind the options: a paragraph whose first line ends with a colon, and whose others
/// are indented, is a section of its own, shown line by line. All else is a paragraph of NOTES.
fn sections(after: &str) -> Roff {
    let mut roff = Roff::new();
    let mut has_notes = false;
    for paragraph in after.split("\n\n").filter(|text| !text.is_empty()) {
        match titled(paragraph) {
            Some((title, lines)) => {
                roff.control("SH", [title.to_uppercase().as_str()]);
                roff.control("nf", []);
                for line in lines {
                    roff.text([roman(line)]);
                }
                roff.control("fi", []);
            }
            None => {
                let control = if has_notes { "PP" } else { "SH" };
                roff.control(control, (!has_notes).then_some("NOTES"));
                has_notes = true;
                for line in paragraph.lines() {
                    roff.text([roman(line)]);
                }
            }
        }
    }
    roff
}

/// The title and the lines of such a paragraph.
fn titled(paragraph: &str) -> Option<(&str, impl Iterator<Item = &str>)> {
    let (title, lines) = paragraph.split_once(":\n")?;
    let indented = lines.lines().all(|line| line.starts_with("  "));
    (indented && !title.contains('\n')).then(|| (title, lines.lines().map(|line| &line[2..])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Arg;

    fn program() -> Command {
        let run = Command::new("run")
            .about("Run it")
            .arg(Arg::new("kernel").long("kernel").help("The kernel"))
            .after_help("Ctrl-A x ends it.\n\nIt is loud.\n\nExamples:\n  genie run\n    deeper");
        Command::new("genie")
            .version("1.2")
            .about("A test")
            .subcommand(run)
            .subcommand(Command::new("secret").hide(true))
    }

    #[test]
    fn a_program_and_its_commands_have_a_page_each_and_what_is_hidden_has_none() {
        let pages = pages(program()).unwrap();
        let files: Vec<_> = pages.iter().map(|page| page.file.as_str()).collect();
        assert_eq!(files, ["genie.1", "genie-run.1"]);
        assert!(
            pages[0].text.contains("genie\\-run(1)"),
            "{}",
            pages[0].text
        );
        assert!(!pages[0].text.contains("secret"), "{}", pages[0].text);
        assert!(pages[1].text.contains("The kernel"), "{}", pages[1].text);
    }

    #[test]
    fn examples_are_a_section_that_is_shown_line_by_line() {
        let text = &pages(program()).unwrap()[1].text;
        let end = ".SH NOTES\nCtrl\\-A x ends it.\n.PP\nIt is loud.\n\
                   .SH EXAMPLES\n.nf\ngenie run\n  deeper\n.fi\n";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn pages_are_written_into_a_directory_that_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let man1 = directory.path().join("man/man1");
        let written = write(program(), &man1).unwrap();
        assert_eq!(
            written,
            ["genie.1", "genie-run.1"].map(|name| man1.join(name))
        );
        assert!(
            fs::read_to_string(&written[0])
                .unwrap()
                .contains(".TH genie 1")
        );
    }
}
