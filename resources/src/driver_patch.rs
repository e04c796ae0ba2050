//! `cargo xtask driver-patch`: the guest driver as a patch series for the kernel's tree.
//!
//! The files are those that the modules are built from; what belongs to the kernel's tree alone is
//! in the driver's `upstream` directory.

mod entries;
mod git;
mod kbuild;
mod series;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::json;

use crate::build;
use crate::cache::Cache;
use crate::chroot::{self, Root};
use crate::patches;
use crate::progress::Progress;
use crate::small::{self, Flavor, Small};
use crate::tools;

use git::{Identity, Repository};
use kbuild::Module;
use series::{Commit, Driver};
use tree::Style;

/// Where the driver is, in the workspace.
const SOURCES: &str = "guest-driver/sysgenid";

/// What the command takes.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Options {
    /// Write the mails there; the directory may hold an earlier series, which is replaced.
    #[arg(long, value_name = "DIR", default_value = "target/driver-patch")]
    pub(crate) output: PathBuf,
    /// Build the driver in the tree of the small kernel, as modules and built in. The small kernel
    /// is built first if it is not there.
    #[arg(long)]
    pub(crate) build: bool,
    /// Sign the mails off, with the name and the address that git has for you.
    #[arg(long)]
    pub(crate) signoff: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is known of the kernel that the series is for.
struct Kernel {
    root: Root,
    /// The source without our patches.
    source: PathBuf,
    version: String,
    small: Option<Small>,
}

/// What has been made.
struct Made {
    /// The version of the kernel that the series is for.
    version: String,
    directory: PathBuf,
    mails: Vec<PathBuf>,
    subjects: Vec<String>,
    styles: Vec<Style>,
    built: Vec<&'static str>,
}

/// Makes the series, checks that it applies, and has the kernel's style checker read it.
pub(crate) fn run(options: &Options) -> Result<i32> {
    let made = make(options, &Progress::default())?;
    match options.json {
        true => println!("{}", report(&made)),
        false => print!("{}", text(&made, options.signoff)),
    }
    Ok(0)
}

/// The same as a test: into a directory that goes again, built, and without an error of style. What there is to say of it.
pub(crate) fn check(progress: &Progress) -> Result<String> {
    let dir = tempfile::tempdir().context("could not make a directory for the series")?;
    let options = Options {
        output: dir.path().to_path_buf(),
        build: true,
        ..Options::default()
    };
    let made = make(&options, progress)?;
    for (subject, style) in made.subjects.iter().zip(&made.styles) {
        ensure!(style.errors == 0, "{subject}: {}", style.text);
    }
    Ok(text(&made, false))
}

fn make(options: &Options, progress: &Progress) -> Result<Made> {
    let sender = sender(options.signoff)?;
    let cache = Cache::open()?;
    let kernel = kernel(&cache, options.build, progress)?;
    let driver = driver(&build::workspace().join(SOURCES))?;
    let output = prepare(&options.output)?;
    let step = progress.step("patch series of the guest driver");
    let commits = series::series(&kernel.source, &driver, &patches::of_workspace()?)?;
    let scratch = cache.run_dir()?;
    let mails = mails(
        scratch.path(),
        &kernel,
        &driver,
        &commits,
        sender,
        &output,
        options.signoff,
    )?;
    step.say("checkpatch.pl");
    let styles = styles(&kernel, &mails, options.signoff, &output)?;
    step.done();
    let mut built = Vec::new();
    if let Some(small) = &kernel.small {
        let modules = kbuild::modules(driver.text("Kbuild")?);
        build(&cache, &kernel.root, small, &commits, &modules, progress)?;
        built = tree::Choice::ALL.map(tree::Choice::letter).to_vec();
    }
    Ok(Made {
        version: kernel.version,
        directory: output,
        mails,
        subjects: commits.iter().map(subject).collect(),
        styles,
        built,
    })
}

/// Who the mails are from.
fn sender(sign_off: bool) -> Result<Identity> {
    match Identity::of_git()? {
        Some(identity) => Ok(identity),
        None if sign_off => bail!(
            "git has no name and no address of yours to sign off with: git config user.name and \
             user.email set them"
        ),
        None => Ok(Identity::placeholder()),
    }
}

fn kernel(cache: &Cache, build: bool, progress: &Progress) -> Result<Kernel> {
    let _lock = cache.lock()?;
    cache.sweep()?;
    tools::install(cache, progress)?;
    let root = chroot::root(cache, progress)?;
    let source = small::source(cache, &root, progress)?;
    let small = match build {
        true => {
            let patched = patches::patched(cache, &source, progress)?;
            Some(small::small(
                cache,
                &root,
                &patched,
                Flavor::Plain,
                progress,
            )?)
        }
        false => None,
    };
    let makefile = fs::read_to_string(source.join("Makefile"))
        .context("could not read the kernel's Makefile")?;
    let version = crate::prepared::source_version(&makefile)
        .context("the kernel's Makefile has no version")?;
    Ok(Kernel {
        root,
        source,
        version,
        small,
    })
}

/// The driver's files, without what an editor or a build has left.
fn driver(dir: &Path) -> Result<Driver> {
    let mut driver = Driver::default();
    let mut pending = vec![PathBuf::new()];
    while let Some(below) = pending.pop() {
        let at = dir.join(&below);
        let entries =
            fs::read_dir(&at).with_context(|| format!("could not list {}", at.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("could not list {}", at.display()))?;
            let path = below.join(entry.file_name());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(path);
            } else if is_of_driver(&path) {
                let text = fs::read_to_string(entry.path())
                    .with_context(|| format!("could not read {}", entry.path().display()))?;
                driver.files.insert(path, text);
            }
        }
    }
    Ok(driver)
}

fn is_of_driver(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or(".");
    let extension = path.extension().and_then(|extension| extension.to_str());
    let known = matches!(extension, Some("rs" | "c" | "h" | "rst" | "txt"));
    !name.starts_with('.')
        && !name.ends_with(".mod.c")
        && (known || ["Kbuild", "Kconfig", "MAINTAINERS"].contains(&name))
}

/// The directory for the mails, without those of an earlier series.
fn prepare(output: &Path) -> Result<PathBuf> {
    let output = match output.is_absolute() {
        true => output.to_path_buf(),
        false => std::env::current_dir()
            .context("there is no current directory")?
            .join(output),
    };
    fs::create_dir_all(&output).with_context(|| format!("could not make {}", output.display()))?;
    for old in git::mails(&output)? {
        let name = old.file_name().unwrap_or_default().to_string_lossy();
        ensure!(
            name.starts_with(|digit: char| digit.is_ascii_digit()),
            "{} is in the way: give a directory of its own with --output",
            old.display()
        );
        fs::remove_file(&old).with_context(|| format!("could not remove {}", old.display()))?;
    }
    Ok(output)
}

fn mails(
    scratch: &Path,
    kernel: &Kernel,
    driver: &Driver,
    commits: &[Commit],
    sender: Identity,
    output: &Path,
    sign_off: bool,
) -> Result<Vec<PathBuf>> {
    let dir = scratch.join("repository");
    fs::create_dir(&dir).context("could not make a directory for the repository")?;
    let repository = Repository::new(&dir, &kernel.source, commits, sender)?;
    repository.commit(commits)?;
    let cover = driver.text("upstream/cover-letter.txt")?.trim_end();
    let cover = format!("{cover}\n\nMade against Linux {}.\n", kernel.version);
    let mails = repository.format(output, &cover, sign_off)?;
    repository.check(&mails)?;
    Ok(mails)
}

/// What the style checker says of each mail but the cover letter; all of it in a file as well.
fn styles(kernel: &Kernel, mails: &[PathBuf], signed: bool, output: &Path) -> Result<Vec<Style>> {
    let styles: Vec<Style> = mails
        .iter()
        .skip(1)
        .map(|mail| tree::style(&kernel.root, &kernel.source, mail, signed))
        .collect::<Result<_>>()?;
    let text: Vec<&str> = styles.iter().map(|style| style.text.as_str()).collect();
    let path = output.join("checkpatch.txt");
    fs::write(&path, text.join("\n"))
        .with_context(|| format!("could not write {}", path.display()))?;
    Ok(styles)
}

fn build(
    cache: &Cache,
    root: &Root,
    small: &Small,
    commits: &[Commit],
    modules: &[Module],
    progress: &Progress,
) -> Result<()> {
    let log = cache.log("driver-patch")?;
    let _ = fs::remove_file(&log);
    let scratch = cache.run_dir()?;
    tree::build_in_tree(&scratch, root, small, commits, modules, progress, &log)
        .context("the series does not build in the kernel's tree")
}

fn subject(commit: &Commit) -> String {
    commit.message.lines().next().unwrap_or_default().to_owned()
}

fn report(made: &Made) -> serde_json::Value {
    let patches = made
        .mails
        .iter()
        .skip(1)
        .zip(&made.subjects)
        .zip(&made.styles);
    let patches = patches.map(|((mail, subject), style)| {
        json!({
            "file": mail,
            "subject": subject,
            "checkpatch": {
                "errors": style.errors, "warnings": style.warnings, "checks": style.checks,
            },
        })
    });
    json!({
        "kernel": made.version,
        "directory": made.directory,
        "cover_letter": made.mails.first(),
        "patches": patches.collect::<Vec<_>>(),
        "applies": true,
        "built": made.built,
    })
}

/// What there is to say.
fn text(made: &Made, signed: bool) -> String {
    let mut lines = vec![format!(
        "{} patches for Linux {}, in {}:",
        made.subjects.len(),
        made.version,
        made.directory.display()
    )];
    for (subject, style) in made.subjects.iter().zip(&made.styles) {
        lines.push(format!(
            "  {subject}\n      checkpatch.pl --strict: {} errors, {} warnings, {} checks",
            style.errors, style.warnings, style.checks
        ));
    }
    lines.push("They apply to the pristine source, with no fuzz.".to_owned());
    for letter in &made.built {
        lines.push(format!(
            "They build in its tree with CONFIG_SYSGENID={letter}."
        ));
    }
    lines.push(format!(
        "All that checkpatch.pl says is in {}.",
        made.directory.join("checkpatch.txt").display()
    ));
    if !signed {
        lines.push(
            "They are not signed off. Whoever sends them makes them with --signoff.".to_owned(),
        );
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_of_this_workspace_has_all_that_a_series_asks_for() {
        let driver = driver(&build::workspace().join(SOURCES)).unwrap();
        let modules = kbuild::modules(driver.text("Kbuild").unwrap());
        assert_eq!(modules.len(), 2);
        for module in &modules {
            let read = |name: &str| driver.text(name).ok();
            kbuild::files_of(driver.text("Kbuild").unwrap(), &module.name, read).unwrap();
            driver
                .text(&format!("upstream/{}.txt", module.name))
                .unwrap();
        }
        let kconfig = driver.text("Kconfig").unwrap();
        assert_eq!(
            kbuild::kconfig(kconfig, &modules, &modules).unwrap(),
            kconfig
        );
        let maintainers = driver.text("upstream/MAINTAINERS").unwrap();
        for line in maintainers.lines() {
            let path = line
                .strip_prefix("F:\t")
                .unwrap_or("include/linux/sysgenid.h");
            let there = path.starts_with(series::DRIVER_DIR) || driver.text(path).is_ok();
            assert!(there, "{line}");
            assert!(!line.starts_with("M:"), "a person in {line}");
        }
    }

    #[test]
    fn the_kernel_s_documents_know_each_ioctl_of_the_header() {
        let driver = driver(&build::workspace().join(SOURCES)).unwrap();
        let header = driver.text("include/uapi/linux/sysgenid.h").unwrap();
        let manual = driver.text("Documentation/misc-devices/sysgenid.rst");
        let requests = header.lines().filter_map(|line| {
            let (name, number) = line
                .strip_prefix("#define ")?
                .split_once("_IO(SYSGENID_IOCTL,")?;
            Some((
                name.trim(),
                number.trim().strip_suffix(')')?.parse::<u8>().ok()?,
            ))
        });
        let requests: Vec<_> = requests.collect();
        assert!(requests.len() > 6, "{requests:?}");
        let row = driver.text("upstream/ioctl-number.rst").unwrap();
        let range = row.split_whitespace().nth(1).unwrap();
        let (first, last) = range.split_once('-').unwrap();
        let [first, last] = [first, last].map(|number| u8::from_str_radix(number, 16).unwrap());
        for (name, number) in requests {
            assert!((first..=last).contains(&number), "{name} is not in {row}");
            // Those are there for programs that know them, and described as a whole.
            let told = name.starts_with("SYSGENID_V8_") || manual.as_ref().unwrap().contains(name);
            assert!(told, "{name} is not in the manual");
        }
    }

    #[test]
    fn what_a_build_left_is_not_the_driver_s() {
        for name in ["a.o", ".a.c", "a.mod.c", "Module.symvers", "a.ko"] {
            assert!(!is_of_driver(Path::new(name)), "{name}");
        }
        for name in [
            "a.rs",
            "Kconfig",
            "Documentation/a.rst",
            "upstream/MAINTAINERS",
        ] {
            assert!(is_of_driver(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn only_an_earlier_series_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        fs::write(file("0001-x.patch"), "").unwrap();
        fs::write(file("notes"), "").unwrap();
        prepare(dir.path()).unwrap();
        assert!(!file("0001-x.patch").exists() && file("notes").exists());
        fs::write(file("mine.patch"), "").unwrap();
        assert!(prepare(dir.path()).is_err() && file("mine.patch").exists());
    }
}
