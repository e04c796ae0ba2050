//! The stock kernel's build tree, as far as modules need one.
//!
//! Debian's packages leave out what the Rust compiler knows of its kernel, so that part is made
//! again, from the source and with the compilers that Debian had. Rust mangles the compiler's
//! version into the names of symbols: a kernel takes only modules of the compiler that built it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::build;
use crate::cache::Cache;
use crate::chroot::Root;
use crate::kernel_tree::{BUILD_DIR, SOURCE_DIR, Target};
use crate::progress::Progress;
use crate::small::{self, MAKE_VARIABLES};
use crate::stock::Stock;

/// About how many files are compiled, for the progress bar.
const STEPS: u64 = 114;

/// The file in which a build tree lists what Rust's `kernel` crate exports.
const RUST_EXPORTS: &str = "rust/exports_kernel_generated.h";

/// The stock kernel as something that modules can be built for, prepared if it is not.
pub(crate) fn prepared<'a>(
    cache: &Cache,
    root: &Root,
    stock: &Stock,
    source: &'a Path,
    progress: &Progress,
) -> Result<Target<'a>> {
    let variables = format!(
        "{MAKE_VARIABLES} LOCALVERSION={}",
        local_version(stock, source)?
    );
    let recipe = recipe(root.dir(), source, stock.dir(), &variables);
    let tree = cache.place("stock-build", &recipe);
    if !tree.exists() {
        cache
            .make(&tree, |inside| {
                prepare(inside, cache, root, stock, source, &variables, progress)
            })
            .context("could not prepare the stock kernel's build tree")?;
    }
    Ok(Target {
        name: "debian",
        source,
        tree,
        variables,
    })
}

fn recipe(root: &Path, source: &Path, stock: &Path, variables: &str) -> String {
    format!(
        "{}; {}; {}; {variables}; {PREPARE}; 1",
        root.display(),
        source.display(),
        stock.display()
    )
}

const PREPARE: &str = r#"
cd /mnt/linux
make="nice make O=/mnt/build VARIABLES"
$make olddefconfig
$make -j JOBS prepare modules_prepare
"#;

fn prepare(
    tree: &Path,
    cache: &Cache,
    root: &Root,
    stock: &Stock,
    source: &Path,
    variables: &str,
    progress: &Progress,
) -> Result<()> {
    let log = cache.log("stock-build")?;
    let _ = fs::remove_file(&log);
    let step = progress.counted_step("stock kernel's build tree", STEPS, small::is_build_step);
    copy(&stock.config(), &tree.join(".config"))?;
    let script = PREPARE
        .replace("VARIABLES", variables)
        .replace("JOBS", &build::jobs().to_string());
    let binds = [(source, SOURCE_DIR), (tree, BUILD_DIR)];
    step.run(&mut root.command(&binds, &["sh", "-ec", &script]), &log)?;
    copy(&stock.symvers(), &tree.join("Module.symvers"))?;
    let release = read(&tree.join("include/config/kernel.release"))?;
    ensure!(
        release.trim() == stock.version(),
        "the tree is for {}, and the stock kernel is {}",
        release.trim(),
        stock.version()
    );
    check_symbols(&read(&tree.join(RUST_EXPORTS))?, &read(&stock.symvers())?)?;
    step.done();
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(|_| ())
        .with_context(|| format!("could not copy {} to {}", from.display(), to.display()))
}

fn read(path: &PathBuf) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))
}

/// What the stock kernel's version has behind that of the source: `+deb13-cloud-amd64`.
fn local_version(stock: &Stock, source: &Path) -> Result<String> {
    let version = source_version(&read(&source.join("Makefile"))?)
        .with_context(|| format!("the Makefile in {} has no version", source.display()))?;
    match suffix(stock.version(), &version) {
        Some(suffix) => Ok(suffix.to_owned()),
        None => bail!(
            "the kernel source is {version}, and the stock kernel is {}: modules need one version. \
             Remove {} and {}, so that both are fetched anew",
            stock.version(),
            source.display(),
            stock.dir().display()
        ),
    }
}

/// The version at the head of a kernel's `Makefile`.
pub(crate) fn source_version(makefile: &str) -> Option<String> {
    let value = |name: &str| {
        makefile.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == name).then(|| value.trim())
        })
    };
    Some(format!(
        "{}.{}.{}{}",
        value("VERSION")?,
        value("PATCHLEVEL")?,
        value("SUBLEVEL")?,
        value("EXTRAVERSION")?
    ))
}

/// `kernel` without the version `source` at its head, if that is all of the version's numbers.
fn suffix<'a>(kernel: &'a str, source: &str) -> Option<&'a str> {
    kernel
        .strip_prefix(source)
        .filter(|rest| !rest.starts_with(|c: char| c.is_ascii_digit() || c == '.'))
}

/// Checks that the stock kernel exports all that our build of its `kernel` crate does, by the same
/// names. `exports` are the lines `EXPORT_SYMBOL_RUST_GPL(NAME);` of our build; `symvers` is the
/// stock kernel's list of symbols, whose second column is the name.
fn check_symbols(exports: &str, symvers: &str) -> Result<()> {
    let theirs: BTreeSet<&str> = symvers
        .lines()
        .filter_map(|line| line.split('\t').nth(1))
        .collect();
    let ours: Vec<&str> = exports
        .lines()
        .filter_map(|line| {
            line.strip_prefix("EXPORT_SYMBOL_RUST_GPL(")?
                .strip_suffix(");")
        })
        .collect();
    ensure!(!ours.is_empty(), "the prepared tree has no Rust symbols");
    let missing: Vec<&&str> = ours
        .iter()
        .filter(|name| !theirs.contains(**name))
        .collect();
    if let Some(first) = missing.first() {
        bail!(
            "{} of {} symbols of Rust's kernel crate have other names in the stock kernel, the \
             first of them {first}: the toolchain root's Rust compiler is no longer the one that \
             Debian built this kernel with, and no module that it builds would load",
            missing.len(),
            ours.len()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPORTS: &str = "EXPORT_SYMBOL_RUST_GPL(_RNvCsAAA_6kernel1a);\n\
                           EXPORT_SYMBOL_RUST_GPL(_RNvCsAAA_6kernel1b);\n";

    fn symvers(names: &[&str]) -> String {
        names
            .iter()
            .map(|name| format!("0x00000000\t{name}\tvmlinux\tEXPORT_SYMBOL_GPL\t\n"))
            .collect()
    }

    #[test]
    fn a_version_is_read_from_a_makefile_with_its_extra_part() {
        let makefile = "# SPDX\nVERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\nEXTRAVERSION =\n\
                        KERNELVERSION = $(VERSION)\n";
        assert_eq!(source_version(makefile).as_deref(), Some("7.3.4"));
        let candidate = makefile.replace("EXTRAVERSION =", "EXTRAVERSION = -rc2");
        assert_eq!(source_version(&candidate).as_deref(), Some("7.3.4-rc2"));
        assert_eq!(source_version("VERSION = 7\n"), None);
    }

    #[test]
    fn what_follows_the_source_s_version_is_the_local_version() {
        let stock = "7.3.4+deb13-cloud-amd64";
        assert_eq!(suffix(stock, "7.3.4"), Some("+deb13-cloud-amd64"));
        assert_eq!(suffix(stock, "7.3.3"), None);
        assert_eq!(suffix("7.3.42+deb13", "7.3.4"), None);
        assert_eq!(suffix("7.3.4.1+deb13", "7.3.4"), None);
    }

    #[test]
    fn a_kernel_that_exports_the_same_symbols_fits() {
        let theirs = symvers(&["printk", "_RNvCsAAA_6kernel1a", "_RNvCsAAA_6kernel1b"]);
        check_symbols(EXPORTS, &theirs).unwrap();
    }

    #[test]
    fn a_moved_toolchain_is_named_as_the_reason() {
        let theirs = symvers(&["printk", "_RNvCsBBB_6kernel1a", "_RNvCsBBB_6kernel1b"]);
        let error = check_symbols(EXPORTS, &theirs).unwrap_err().to_string();
        assert!(error.starts_with("2 of 2 symbols"), "{error}");
        assert!(error.contains("_RNvCsAAA_6kernel1a"), "{error}");
        assert!(error.contains("compiler"), "{error}");
    }

    #[test]
    fn a_tree_without_rust_is_no_tree_that_fits() {
        assert!(check_symbols("", &symvers(&["printk"])).is_err());
    }

    #[test]
    fn another_local_version_is_another_tree() {
        let dir = Path::new("/d");
        let one = recipe(dir, dir, dir, "LOCALVERSION=+a");
        assert_ne!(one, recipe(dir, dir, dir, "LOCALVERSION=+b"));
        assert_ne!(one, recipe(dir, dir, Path::new("/e"), "LOCALVERSION=+a"));
    }
}
