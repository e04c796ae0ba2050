//! The patches of the series, as messages and as files before and after.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::entries::{self, Enter};
use super::kbuild::{self, Module};
use crate::patches::Patch;
use crate::unified;

/// Where the driver lives in the kernel's tree.
pub(crate) const DRIVER_DIR: &str = "drivers/misc/sysgenid";

/// Entries with the first module: a file of the kernel's, a file of ours in `upstream/` with the
/// entry, and where it goes.
const ENTRIES: &[(&str, &str, Enter)] = &[
    (
        "Documentation/userspace-api/ioctl/ioctl-number.rst",
        "ioctl-number.rst",
        entries::ioctl_row,
    ),
    ("MAINTAINERS", "MAINTAINERS", entries::section),
];

/// One patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commit {
    /// Subject, empty line, body.
    pub(crate) message: String,
    /// Paths in the kernel's tree, and what they become.
    pub(crate) files: BTreeMap<PathBuf, String>,
}

/// The kernel's tree while the series is made: what the patches so far have changed, over the
/// pristine source.
struct Tree<'a> {
    pristine: &'a Path,
    changed: BTreeMap<PathBuf, String>,
}

impl Tree<'_> {
    fn read(&self, path: &Path) -> Result<String> {
        if let Some(text) = self.changed.get(path) {
            return Ok(text.clone());
        }
        let path = self.pristine.join(path);
        fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))
    }

    /// Ends a patch.
    fn commit(&mut self, message: &str, files: BTreeMap<PathBuf, String>) -> Result<Commit> {
        check_message(message)?;
        self.changed.extend(files.clone());
        Ok(Commit {
            message: message.trim_end().to_owned() + "\n",
            files,
        })
    }
}

/// Makes the series: our patches of the kernel, then a patch for each module, then the documents.
pub(crate) fn series(pristine: &Path, driver: &Driver, patches: &[Patch]) -> Result<Vec<Commit>> {
    let taken = pristine.join(DRIVER_DIR);
    ensure!(
        !taken.exists(),
        "the kernel source has a {DRIVER_DIR} already"
    );
    let mut tree = Tree {
        pristine,
        changed: BTreeMap::new(),
    };
    let mut commits = Vec::new();
    for patch in patches {
        commits.push(of_patch(&mut tree, patch)?);
    }
    let modules = kbuild::modules(driver.text("Kbuild")?);
    ensure!(!modules.is_empty(), "Kbuild builds no module");
    for count in 1..=modules.len() {
        commits.push(of_module(&mut tree, driver, &modules, count)?);
    }
    driver.check_all_built(&tree)?;
    commits.push(of_documents(&mut tree, driver)?);
    Ok(commits)
}

fn of_patch(tree: &mut Tree, patch: &Patch) -> Result<Commit> {
    let mut files = BTreeMap::new();
    for file in unified::parse(&patch.text).with_context(|| patch.name.clone())? {
        let path = PathBuf::from(&file.path);
        let new = file
            .apply(&tree.read(&path)?)
            .with_context(|| format!("{} does not apply to {}", patch.name, file.path))?;
        files.insert(path, new);
    }
    let message = message_of_mail(&patch.text).with_context(|| patch.name.clone())?;
    tree.commit(&message, files)
}

/// The patch that adds the last of the first `count` modules.
fn of_module(tree: &mut Tree, driver: &Driver, modules: &[Module], count: usize) -> Result<Commit> {
    let (present, added) = (&modules[..count], &modules[count - 1]);
    let (kbuild, kconfig) = (driver.text("Kbuild")?, driver.text("Kconfig")?);
    let place = Path::new(DRIVER_DIR);
    let mut files = BTreeMap::new();
    files.insert(place.join("Makefile"), kbuild::makefile(kbuild, present));
    let symbols = kbuild::kconfig(kconfig, modules, present)?;
    files.insert(place.join("Kconfig"), symbols);
    for name in kbuild::files_of(kbuild, &added.name, |name| driver.text(name).ok())? {
        if !tree.changed.contains_key(&place.join(&name)) {
            files.insert(place.join(&name), driver.text(&name)?.to_owned());
        }
    }
    if count == 1 {
        files.extend(driver.below("include"));
        let source = format!("source \"{DRIVER_DIR}/Kconfig\"");
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        let object = format!("obj-$(CONFIG_{})\t\t+= {name}/", added.symbol);
        enter(
            tree,
            &mut files,
            "drivers/misc/Kconfig",
            &source,
            entries::kconfig_source,
        )?;
        enter(
            tree,
            &mut files,
            "drivers/misc/Makefile",
            &object,
            entries::last_line,
        )?;
        for (path, entry, how) in ENTRIES {
            let entry = driver.text(&format!("upstream/{entry}"))?;
            enter(tree, &mut files, path, entry, *how)?;
        }
    }
    let message = driver.text(&format!("upstream/{}.txt", added.name))?;
    tree.commit(message, files)
}

/// The patch with what is below `Documentation`.
fn of_documents(tree: &mut Tree, driver: &Driver) -> Result<Commit> {
    let mut files = driver.below("Documentation");
    ensure!(!files.is_empty(), "the driver has no documents");
    let documents: Vec<PathBuf> = files.keys().cloned().collect();
    for document in documents {
        let index = document.with_file_name("index.rst");
        let name = document.file_stem().unwrap_or_default().to_string_lossy();
        enter(
            tree,
            &mut files,
            &index.to_string_lossy(),
            &name,
            entries::content,
        )?;
    }
    tree.commit(driver.text("upstream/documentation.txt")?, files)
}

/// Enters something into a file of the kernel's.
fn enter(
    tree: &Tree,
    files: &mut BTreeMap<PathBuf, String>,
    path: &str,
    entry: &str,
    how: Enter,
) -> Result<()> {
    let path = PathBuf::from(path);
    let text = match files.get(&path) {
        Some(text) => text.clone(),
        None => tree.read(&path)?,
    };
    let new = how(&text, entry)
        .with_context(|| format!("could not enter the driver into {}", path.display()))?;
    files.insert(path, new);
    Ok(())
}

/// The files of the driver in this workspace.
#[derive(Debug, Clone, Default)]
pub(crate) struct Driver {
    /// Paths below its directory, and contents.
    pub(crate) files: BTreeMap<PathBuf, String>,
}

impl Driver {
    pub(crate) fn text(&self, path: &str) -> Result<&str> {
        let text = self.files.get(Path::new(path));
        text.map(String::as_str)
            .with_context(|| format!("the driver has no file {path}"))
    }

    /// The files of a directory, which lie at the same paths in the kernel's tree.
    fn below(&self, dir: &str) -> BTreeMap<PathBuf, String> {
        let files = self.files.iter().filter(|(path, _)| path.starts_with(dir));
        files
            .map(|(path, text)| (path.clone(), text.clone()))
            .collect()
    }

    fn check_all_built(&self, tree: &Tree) -> Result<()> {
        let forgotten = self.files.keys().find(|path| {
            kbuild::is_built(path) && !tree.changed.contains_key(&Path::new(DRIVER_DIR).join(path))
        });
        match forgotten {
            Some(path) => bail!("no module is built from the driver's {}", path.display()),
            None => Ok(()),
        }
    }
}

/// Subject and body of a mailed patch, without what is for its readers alone.
pub(crate) fn message_of_mail(mail: &str) -> Result<String> {
    let (head, body) = mail.split_once("\n\n").context("the mail has no body")?;
    let subject = head
        .lines()
        .find_map(|line| line.strip_prefix("Subject: "))
        .context("the mail has no subject")?;
    let subject = match subject.strip_prefix('[') {
        Some(tagged) => tagged.split_once("] ").map_or(subject, |(_, rest)| rest),
        None => subject,
    };
    let (body, _) = body
        .split_once("\n---\n")
        .context("the mail's message has no end, a line ---")?;
    Ok(format!("{subject}\n\n{body}\n"))
}

/// Whether a message is of a commit's form.
fn check_message(message: &str) -> Result<()> {
    let mut lines = message.lines();
    let subject = lines.next().unwrap_or_default();
    ensure!(
        !subject.is_empty() && subject.len() <= 75 && lines.next() == Some(""),
        "not the message of a patch, which is a subject of at most 75 characters, an empty line \
         and a body: {subject:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(files: &[(&str, &str)]) -> Driver {
        let files = files
            .iter()
            .map(|(path, text)| (PathBuf::from(path), text.to_string()));
        Driver {
            files: files.collect(),
        }
    }

    const DRIVER: &[(&str, &str)] = &[
        ("Kbuild", "obj-$(CONFIG_A) += a.o\nobj-$(CONFIG_B) += b.o\n"),
        ("Kconfig", "config A\n\tbool\n\nconfig B\n\tbool\n"),
        ("a.rs", "mod core;\n"),
        ("core.rs", "// core\n"),
        ("b.rs", "mod core;\n"),
        ("include/linux/a.h", "/* h */\n"),
        ("Documentation/misc-devices/a.rst", "A\n"),
        ("upstream/a.txt", "a: add\n\nBody.\n"),
        ("upstream/b.txt", "b: add\n\nBody.\n"),
        ("upstream/documentation.txt", "doc: add\n\nBody.\n"),
        ("upstream/MAINTAINERS", "SYS\nS:\tx\n"),
        ("upstream/ioctl-number.rst", "0xE4  01  a.h\n"),
    ];

    fn kernel() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("drivers/misc/Kconfig", "source \"x\"\nendmenu\n"),
            ("drivers/misc/Makefile", "obj-y += x/\n"),
            (
                "MAINTAINERS",
                "Maintainers List\n----------------\n\nTHE REST\nS:\tx\n",
            ),
            ("Documentation/misc-devices/index.rst", "I\n\n   uacce\n"),
            (
                "Documentation/userspace-api/ioctl/ioctl-number.rst",
                "0xE5  00\n",
            ),
            ("drivers/char/r.c", "one\ntwo\n"),
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn patch() -> Patch {
        Patch {
            name: "0001-r.patch".into(),
            text: "From: x\nSubject: [PATCH] r: mend\n\nBody.\n---\nNot this.\n\n\
                   --- a/drivers/char/r.c\n+++ b/drivers/char/r.c\n@@ -1,2 +1,2 @@\n one\n-two\n+2\n"
                .into(),
        }
    }

    #[test]
    fn each_module_is_a_patch_with_what_it_needs_and_the_earlier_ones_have_not() {
        let kernel = kernel();
        let commits = series(kernel.path(), &driver(DRIVER), &[patch()]).unwrap();
        let paths = |commit: &Commit| -> Vec<String> {
            let paths = commit.files.keys();
            paths.map(|path| path.display().to_string()).collect()
        };
        assert_eq!(commits.len(), 4);
        assert_eq!(commits[0].message, "r: mend\n\nBody.\n");
        assert_eq!(paths(&commits[0]), ["drivers/char/r.c"]);
        let first = paths(&commits[1]);
        for path in [
            "include/linux/a.h",
            "MAINTAINERS",
            "drivers/misc/sysgenid/core.rs",
        ] {
            assert!(first.contains(&path.to_owned()), "{first:?}");
        }
        let second = ["Kconfig", "Makefile", "b.rs"];
        assert_eq!(
            paths(&commits[2]),
            second.map(|name| format!("{DRIVER_DIR}/{name}"))
        );
        assert_eq!(
            paths(&commits[3]),
            [
                "Documentation/misc-devices/a.rst",
                "Documentation/misc-devices/index.rst"
            ]
        );
        let kconfig = &commits[1].files[&Path::new(DRIVER_DIR).join("Kconfig")];
        assert_eq!(kconfig, "config A\n\tbool\n");
    }

    #[test]
    fn what_is_missing_or_in_the_way_is_named() {
        let kernel = kernel();
        let refused = |files: &[(&str, &str)]| {
            format!(
                "{:#}",
                series(kernel.path(), &driver(files), &[]).unwrap_err()
            )
        };
        let without = |name: &str| {
            let files = DRIVER.iter().filter(|(path, _)| *path != name);
            files.copied().collect::<Vec<_>>()
        };
        assert!(refused(&without("upstream/b.txt")).contains("upstream/b.txt"));
        assert!(refused(&without("core.rs")).contains("core.rs"));
        let forgotten = [DRIVER, &[("forgotten.rs", "")]].concat();
        assert!(refused(&forgotten).contains("forgotten.rs"));
        fs::create_dir_all(kernel.path().join(DRIVER_DIR)).unwrap();
        assert!(refused(DRIVER).contains("already"));
    }

    #[test]
    fn a_message_has_a_subject_and_a_body() {
        assert!(message_of_mail("Subject: x\n\nno end").is_err());
        assert!(check_message("subject\nbody").is_err());
        assert!(check_message(&format!("{}\n\nbody", "x".repeat(76))).is_err());
    }
}
