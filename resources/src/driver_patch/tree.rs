//! What the kernel's own tools say of the series: its style checker, and its build.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::kbuild::Module;
use super::series::{Commit, DRIVER_DIR};
use crate::build;
use crate::cache::Scratch;
use crate::chroot::Root;
use crate::kernel_tree::{BUILD_DIR, SOURCE_DIR};
use crate::patches;
use crate::progress::Progress;
use crate::small::Small;

/// Where the mails are mounted in the root.
const MAILS_DIR: &str = "/mnt/out";

/// What `checkpatch.pl` has to say of one mail.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Style {
    /// Its numbers, 0 where it has none.
    pub(crate) errors: u64,
    /// See above.
    pub(crate) warnings: u64,
    /// What `--strict` adds.
    pub(crate) checks: u64,
    /// All that it wrote.
    pub(crate) text: String,
}

/// A tree without history knows no commits; and nobody has signed what is not to be sent yet.
const CHECK: &str = r#"
cd /mnt/linux
perl scripts/checkpatch.pl --strict --ignore UNKNOWN_COMMIT_ID OPTIONS /mnt/out/MAIL || true
"#;

/// Has the kernel's style checker read a mail.
pub(crate) fn style(root: &Root, source: &Path, mail: &Path, signed: bool) -> Result<Style> {
    let (dir, name) = mail
        .parent()
        .zip(mail.file_name().and_then(|name| name.to_str()))
        .context("a mail has no name")?;
    let options = match signed {
        true => "",
        false => "--no-signoff",
    };
    let script = CHECK.replace("OPTIONS", options).replace("MAIL", name);
    let binds = [(source, SOURCE_DIR), (dir, MAILS_DIR)];
    let text = root.output_with(&binds, &["sh", "-ec", &script])?;
    parse_style(&text).with_context(|| format!("checkpatch.pl has no total for {name}:\n{text}"))
}

fn parse_style(text: &str) -> Option<Style> {
    let total = text.lines().find_map(|line| line.strip_prefix("total: "))?;
    let number = |word: &str| {
        total
            .split(", ")
            .find_map(|part| part.strip_suffix(word)?.trim().parse().ok())
    };
    Some(Style {
        errors: number("errors")?,
        warnings: number("warnings")?,
        checks: number("checks").unwrap_or_default(),
        text: text.to_owned(),
    })
}

/// Configures the driver like `CHOICE`, checks that the configuration took it, and builds.
const BUILD: &str = r#"
cd /mnt/linux
make="nice make O=/mnt/build VARIABLES"
./scripts/config --file /mnt/build/.config SYMBOLS
$make olddefconfig
for symbol in WANTED; do
    grep -q "^CONFIG_$symbol=" /mnt/build/.config || { echo "Kconfig did not take $symbol"; exit 1; }
done
echo "as CHOICE:"
$make -j JOBS TARGETS
"#;

/// What is built, and how it is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Everything as modules.
    Modules,
    /// Built into the kernel, as far as `Kconfig` lets it.
    BuiltIn,
}

impl Choice {
    pub(crate) const ALL: [Self; 2] = [Self::Modules, Self::BuiltIn];

    pub(crate) fn letter(self) -> &'static str {
        match self {
            Self::Modules => "m",
            Self::BuiltIn => "y",
        }
    }

    fn script(self, variables: &str, modules: &[Module], others: &[String]) -> String {
        let symbols = modules.iter().map(|module| match self {
            Self::Modules => format!("--module {}", module.symbol),
            Self::BuiltIn => format!("--enable {}", module.symbol),
        });
        let symbols: Vec<String> = symbols.collect();
        let wanted: Vec<&str> = modules
            .iter()
            .map(|module| module.symbol.as_str())
            .collect();
        let mut targets = others.to_vec();
        targets.push(format!("{DRIVER_DIR}/"));
        if self == Self::Modules {
            let linked = modules.iter();
            targets.extend(linked.map(|module| format!("{DRIVER_DIR}/{}.ko", module.name)));
        }
        BUILD
            .replace("VARIABLES", variables)
            .replace("SYMBOLS", &symbols.join(" "))
            .replace("WANTED", &wanted.join(" "))
            .replace("TARGETS", &targets.join(" "))
            .replace("CHOICE", self.letter())
            .replace("JOBS", &build::jobs().to_string())
    }
}

/// Builds the driver, and each other C file that the series touches, in the tree of the small
/// kernel's source: in a copy of its build tree, so that nothing else is built again.
pub(crate) fn build_in_tree(
    scratch: &Scratch,
    root: &Root,
    small: &Small,
    commits: &[Commit],
    modules: &[Module],
    progress: &Progress,
    log: &Path,
) -> Result<()> {
    let target = small.target();
    let (source, tree) = (scratch.path().join("linux"), scratch.path().join("build"));
    let step = progress.step("copy of the small kernel's tree");
    patches::link_tree(target.source, &source)?;
    for (path, text) in last_of_each(commits) {
        put(&source.join(path), text)?;
    }
    copy_tree(&target.tree, &tree)?;
    step.done();
    let others = objects_of_others(commits);
    for choice in Choice::ALL {
        let name = format!("driver in the kernel's tree (={})", choice.letter());
        let step = progress.step(&name);
        let script = choice.script(&target.variables, modules, &others);
        let binds = [(source.as_path(), SOURCE_DIR), (tree.as_path(), BUILD_DIR)];
        step.run(&mut root.command(&binds, &["sh", "-ec", &script]), log)?;
        check_built(&tree, choice, modules)?;
        step.done();
    }
    Ok(())
}

/// The files as the whole series leaves them.
fn last_of_each(commits: &[Commit]) -> BTreeMap<&PathBuf, &String> {
    commits.iter().flat_map(|commit| &commit.files).collect()
}

/// Puts a file into a linked tree; one that is the same stays, so that nothing is built for it.
fn put(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let parent = path.parent().context("a file has no directory")?;
    fs::create_dir_all(parent).with_context(|| format!("could not make {}", parent.display()))?;
    patches::replace(path, text.as_bytes())
}

/// A build writes into its files, so they are copied and not linked.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let mut command = std::process::Command::new("cp");
    command.args(["--archive", "--reflink=auto", "--no-target-directory"]);
    let output = crate::lifetime::bind(command.arg(from).arg(to))
        .output()
        .context("could not run cp")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "could not copy {} to {}: {said}",
        from.display(),
        to.display()
    );
    Ok(())
}

/// The objects of the C files outside the driver's directory.
fn objects_of_others(commits: &[Commit]) -> Vec<String> {
    let paths = last_of_each(commits).into_keys();
    let others = paths.filter(|path| !path.starts_with(DRIVER_DIR));
    others
        .filter_map(|path| Some(format!("{}.o", path.to_str()?.strip_suffix(".c")?)))
        .collect()
}

/// `make` succeeds also where it has found nothing to do.
fn check_built(tree: &Path, choice: Choice, modules: &[Module]) -> Result<()> {
    let place = tree.join(DRIVER_DIR);
    let expected = match choice {
        Choice::Modules => modules
            .iter()
            .map(|module| format!("{}.ko", module.name))
            .collect(),
        Choice::BuiltIn => vec!["built-in.a".to_owned()],
    };
    for name in expected {
        let built = fs::metadata(place.join(&name)).is_ok_and(|file| file.len() > 8);
        ensure!(built, "the build made no {DRIVER_DIR}/{name}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_style_checker_s_total_is_read() {
        let text = "WARNING: x\n\ntotal: 1 errors, 2 warnings, 3 checks, 40 lines checked\n";
        let style = parse_style(text).unwrap();
        assert_eq!((style.errors, style.warnings, style.checks), (1, 2, 3));
        let text = "total: 0 errors, 2 warnings, 40 lines checked\n";
        assert_eq!(parse_style(text).unwrap().checks, 0);
        assert_eq!(parse_style("Can't open perl script"), None);
    }

    #[test]
    fn objects_are_those_of_touched_c_files_outside_the_driver() {
        let files = [
            "drivers/char/random.c",
            "MAINTAINERS",
            "drivers/misc/sysgenid/a.c",
        ];
        let files = files.map(|path| (PathBuf::from(path), String::new()));
        let commit = Commit {
            message: String::new(),
            files: files.into(),
        };
        assert_eq!(objects_of_others(&[commit]), ["drivers/char/random.o"]);
    }

    #[test]
    fn modules_are_linked_and_what_is_built_in_is_not() {
        let modules = [Module {
            name: "a".into(),
            symbol: "A".into(),
        }];
        let script = Choice::Modules.script("ARCH=x86", &modules, &["r.o".into()]);
        assert!(script.contains("--module A") && script.contains("r.o drivers/misc/sysgenid/ "));
        assert!(script.contains("drivers/misc/sysgenid/a.ko"), "{script}");
        let script = Choice::BuiltIn.script("ARCH=x86", &modules, &[]);
        assert!(
            script.contains("--enable A") && !script.contains(".ko"),
            "{script}"
        );
    }
}
