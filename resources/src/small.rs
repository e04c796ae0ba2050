//! The small kernel: our own configuration of the same source with our patches, built in the
//! toolchain root.
//!
//! Source and build tree stay in the cache because modules are built against them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::build;
use crate::cache::Cache;
use crate::chroot::Root;
use crate::kernel_tree::{BUILD_DIR, SOURCE_DIR, Target};
use crate::modules;
use crate::progress::Progress;
use crate::stock::write_modules;

/// The package that the source comes from.
const SOURCE: &str = "linux-source-7.3";

/// Our lines on top of `make tinyconfig`.
const CONFIG: &str = include_str!("../small-kernel.config");

/// What a kernel that looks for mistakes has on top of that.
const DEBUG_CONFIG: &str = include_str!("../debug-kernel.config");

/// Which small kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Flavor {
    /// The one of every day.
    #[default]
    Plain,
    /// One that looks for mistakes of drivers: KASAN, lockdep, sleeping in atomic context.
    Debug,
}

impl Flavor {
    fn config(self) -> String {
        match self {
            Self::Plain => CONFIG.to_owned(),
            Self::Debug => format!("{CONFIG}{DEBUG_CONFIG}"),
        }
    }

    /// The variables of `make`. KASAN does not go together with Rust where gcc compiles the rest.
    fn variables(self) -> &'static str {
        match self {
            Self::Plain => MAKE_VARIABLES,
            Self::Debug => "ARCH=x86 CROSS_COMPILE=x86_64-linux-gnu- CC=clang-19",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "small",
            Self::Debug => "small-debug",
        }
    }
}

/// The variables of every `make`, those that Debian builds its kernel with.
pub(crate) const MAKE_VARIABLES: &str =
    "ARCH=x86 CROSS_COMPILE=x86_64-linux-gnu- CC=x86_64-linux-gnu-gcc-14";

/// The modules that go into the guest, in an order in which they can be loaded.
const MODULES: &[&str] = &["vmgenid", "ptp_vmclock"];

/// About how many files a build compiles, for the progress bar.
const STEPS: u64 = 1900;

/// The small kernel's files.
#[derive(Debug, Clone)]
pub(crate) struct Small {
    dir: PathBuf,
    flavor: Flavor,
    source: PathBuf,
}

impl Small {
    /// Where the files are; its name is part of every recipe that uses them.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The ELF kernel.
    pub(crate) fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// The same as a bzImage.
    pub(crate) fn bzimage(&self) -> PathBuf {
        self.dir.join("bzImage")
    }

    /// Its modules.
    pub(crate) fn modules(&self) -> PathBuf {
        self.dir.join("modules")
    }

    /// The kernel as something that modules can be built for.
    pub(crate) fn target(&self) -> Target<'_> {
        Target {
            name: self.flavor.name(),
            source: &self.source,
            tree: self.dir.join("build"),
            variables: self.flavor.variables().to_owned(),
        }
    }
}

/// The small kernel of that source, built if it is not there.
pub(crate) fn small(
    cache: &Cache,
    root: &Root,
    source: &Path,
    flavor: Flavor,
    progress: &Progress,
) -> Result<Small> {
    let (variables, config) = (flavor.variables(), flavor.config());
    let recipe = format!(
        "{}; {}; {variables}; {BUILD}; {MODULES:?}; {config}",
        root.dir().display(),
        source.display()
    );
    let dir = cache.place(flavor.name(), &recipe);
    if !dir.exists() {
        cache
            .make(&dir, |inside| {
                build_kernel(inside, flavor, source, cache, root, progress)
            })
            .context("could not build the small kernel")?;
    }
    Ok(Small {
        dir,
        flavor,
        source: source.to_path_buf(),
    })
}

/// The unpacked kernel source, with Debian's patches: the stock kernel's too.
pub(crate) fn source(cache: &Cache, root: &Root, progress: &Progress) -> Result<PathBuf> {
    let recipe = format!("{}; {SOURCE}; {UNPACK}", root.dir().display());
    let dir = cache.place("linux-source", &recipe);
    if !dir.exists() {
        cache
            .make(&dir, |inside| {
                let log = cache.log("linux-source")?;
                let _ = fs::remove_file(&log);
                let step = progress.step("kernel source");
                let script = UNPACK.replace("SOURCE", SOURCE);
                let argv = ["sh", "-ec", &script];
                step.run(&mut root.command(&[(inside, SOURCE_DIR)], &argv), &log)?;
                step.done();
                Ok(())
            })
            .context("could not get the kernel source")?;
    }
    Ok(dir)
}

const UNPACK: &str = r#"
cd /mnt/linux
mkdir .package
cd .package
apt-get download SOURCE || { apt-get update; apt-get download SOURCE; }
dpkg-deb --extract *.deb .
rm *.deb
cd ..
tar --extract --strip-components=1 --file .package/usr/src/SOURCE.tar.xz
rm -r .package
"#;

fn build_kernel(
    inside: &Path,
    flavor: Flavor,
    source: &Path,
    cache: &Cache,
    root: &Root,
    progress: &Progress,
) -> Result<()> {
    let wanted = flavor.config();
    let log = cache.log(&format!("{}-kernel", flavor.name()))?;
    let _ = fs::remove_file(&log);
    let tree = inside.join("build");
    fs::create_dir(&tree).context("could not make the build directory")?;
    fs::write(tree.join("fragment.config"), &wanted).context("could not write the fragment")?;
    let step = progress.counted_step(&format!("{} kernel", flavor.name()), STEPS, is_build_step);
    let script = BUILD
        .replace("VARIABLES", flavor.variables())
        .replace("JOBS", &build::jobs().to_string());
    let binds = [(source, SOURCE_DIR), (tree.as_path(), BUILD_DIR)];
    step.run(&mut root.command(&binds, &["sh", "-ec", &script]), &log)?;
    let config = fs::read_to_string(tree.join(".config")).context("could not read .config")?;
    let lost = lost_lines(&wanted, &config);
    ensure!(
        lost.is_empty(),
        "the kernel's configuration did not take these lines of ours: {lost:?}"
    );
    symlink("build/vmlinux", inside.join("vmlinux"))
        .and_then(|()| symlink("build/arch/x86/boot/bzImage", inside.join("bzImage")))
        .context("could not link the kernel")?;
    write_modules(&inside.join("modules"), &modules::collect(&tree, MODULES)?)?;
    step.done();
    Ok(())
}

/// Low priority, because nobody should feel a kernel build.
const BUILD: &str = r#"
cd /mnt/linux
make="nice make O=/mnt/build VARIABLES"
$make tinyconfig
./scripts/kconfig/merge_config.sh -m -O /mnt/build /mnt/build/.config /mnt/build/fragment.config
$make olddefconfig
$make -j JOBS vmlinux bzImage modules
"#;

/// Whether a line of `make` says that a file is being compiled or linked.
pub(crate) fn is_build_step(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let tool = words.next().unwrap_or_default();
    line.starts_with("  ") && matches!(tool, "CC" | "AS" | "AR" | "LD" | "RUSTC" | "HOSTCC")
}

/// The lines of the fragment that the configuration does not have. `n` is the same as absence.
fn lost_lines<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    fragment
        .lines()
        .filter(|line| line.starts_with("CONFIG_"))
        .filter(|line| match line.strip_suffix("=n") {
            Some(name) => config.contains(&format!("\n{name}=")),
            None => !config.lines().any(|other| other == *line),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_the_configuration_dropped_is_found() {
        let config = "# x\nCONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D=y\n";
        let fragment = "CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=n\nCONFIG_D=n\n# CONFIG_E=y\n";
        assert_eq!(lost_lines(fragment, config), ["CONFIG_B=y", "CONFIG_D=n"]);
    }

    #[test]
    fn only_build_steps_move_the_bar() {
        assert!(is_build_step("  CC      init/main.o"));
        assert!(is_build_step("  RUSTC L rust/core.o"));
        assert!(!is_build_step("make: Entering directory"));
    }
}
