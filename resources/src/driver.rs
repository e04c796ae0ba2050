//! Our kernel modules, built for each kernel that guests run: the guest driver's, and those of tests.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::build;
use crate::cache::{self, Cache};
use crate::chroot::Root;
use crate::kernel_tree::{BUILD_DIR, SOURCE_DIR, Target};
use crate::modules::{self, Module};
use crate::progress::Progress;
use crate::stock::write_modules;

/// Modules that are built together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Family {
    /// Their name in the cache.
    name: &'static str,
    /// Their name for those who wait for them.
    title: &'static str,
    /// Where their sources are, in the workspace.
    sources: &'static str,
    /// What is built, in an order in which the modules can be loaded.
    modules: &'static [&'static str],
}

/// The modules of [`DRIVER`].
pub(crate) const MODULES: &[&str] = &["sysgenid", "sysgenid_vmgenid"];

/// The guest driver.
pub(crate) const DRIVER: Family = Family {
    name: "driver",
    title: "guest driver",
    sources: "guest-driver/sysgenid",
    modules: MODULES,
};

/// What does to the kernel and to the driver what a test wants.
pub(crate) const FAULTS: Family = Family {
    name: "faults",
    title: "modules for tests",
    sources: "tests/modules/faults",
    modules: &["crng_delay", "fork_faults"],
};

/// Where the sources' copy is mounted in the root.
const MODULE_DIR: &str = "/mnt/module";

/// The directory with the modules for the kernel `target`, built if they are not there.
pub(crate) fn driver(
    cache: &Cache,
    root: &Root,
    sources: &Sources,
    target: &Target,
    progress: &Progress,
) -> Result<PathBuf> {
    let recipe = recipe(root.dir(), sources, target);
    let family = sources.family;
    let dir = cache.place(&format!("{}-{}", family.name, target.name), &recipe);
    if !dir.exists() {
        cache
            .make(&dir, |inside| {
                build_for(inside, cache, root, sources, target, progress)
            })
            .with_context(|| {
                format!(
                    "could not build the {} for the {} kernel",
                    family.title, target.name
                )
            })?;
    }
    Ok(dir)
}

fn recipe(root: &Path, sources: &Sources, target: &Target) -> String {
    format!(
        "{}; {}; {}; {BUILD}; {:?}; {}",
        root.display(),
        target.tree.display(),
        target.variables,
        sources.family.modules,
        sources.digest()
    )
}

/// The debugging information is many times what a guest needs to unpack.
const BUILD: &str = r#"
nice make -C /mnt/build VARIABLES M=/mnt/module -j JOBS modules
cd /mnt/module
x86_64-linux-gnu-strip --strip-debug *.ko
"#;

fn build_for(
    inside: &Path,
    cache: &Cache,
    root: &Root,
    sources: &Sources,
    target: &Target,
    progress: &Progress,
) -> Result<()> {
    let family = sources.family;
    let log = cache.log(&format!("{}-{}", family.name, target.name))?;
    let _ = fs::remove_file(&log);
    let step = progress.step(&format!("{} for the {} kernel", family.title, target.name));
    let work = inside.join("work");
    sources.write_to(&work)?;
    let script = BUILD
        .replace("VARIABLES", &target.variables)
        .replace("JOBS", &build::jobs().to_string());
    let binds = [
        (target.source, SOURCE_DIR),
        (target.tree.as_path(), BUILD_DIR),
        (work.as_path(), MODULE_DIR),
    ];
    step.run(&mut root.command(&binds, &["sh", "-ec", &script]), &log)?;
    let modules: Vec<Module> = modules::collect(&work, family.modules)?;
    write_modules(inside, &modules)?;
    fs::remove_dir_all(&work).context("could not remove the modules' build directory")?;
    step.done();
    Ok(())
}

/// What the modules are built from, read once, so that what is built is what its name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sources {
    family: Family,
    /// Paths below the source directory, sorted, and contents.
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Sources {
    /// The sources in this workspace.
    pub(crate) fn of_workspace(family: Family) -> Result<Self> {
        Self::read(family, &build::workspace().join(family.sources))
    }

    fn read(family: Family, dir: &Path) -> Result<Self> {
        let mut files = Vec::new();
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
                } else if is_source(&path) {
                    let contents = fs::read(entry.path())
                        .with_context(|| format!("could not read {}", entry.path().display()))?;
                    files.push((path, contents));
                }
            }
        }
        if !files.iter().any(|(path, _)| path == Path::new("Kbuild")) {
            bail!(
                "there are no kernel modules in {}: no Kbuild",
                dir.display()
            );
        }
        files.sort();
        Ok(Self { family, files })
    }

    /// Names these sources: other paths or other contents are another digest.
    fn digest(&self) -> String {
        let mut digest = Sha256::new();
        for (path, contents) in &self.files {
            for bytes in [path.as_os_str().as_encoded_bytes(), contents] {
                digest.update((bytes.len() as u64).to_le_bytes());
                digest.update(bytes);
            }
        }
        cache::hex(&digest.finalize())
    }

    fn write_to(&self, dir: &Path) -> Result<()> {
        for (path, contents) in &self.files {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap_or(dir))
                .and_then(|()| fs::write(&path, contents))
                .with_context(|| format!("could not write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Not what an editor or an earlier build has left beside the sources.
fn is_source(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let extension = path.extension().and_then(|extension| extension.to_str());
    let hidden = name.is_none_or(|name| name.starts_with('.') || name.ends_with(".mod.c"));
    !hidden && (name == Some("Kbuild") || matches!(extension, Some("rs" | "c" | "h")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, contents) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        dir
    }

    fn sources(files: &[(&str, &str)]) -> Sources {
        Sources::read(DRIVER, directory(files).path()).unwrap()
    }

    fn target(tree: &str) -> Target<'static> {
        Target {
            name: "small",
            source: Path::new("/s"),
            tree: PathBuf::from(tree),
            variables: "ARCH=x86".into(),
        }
    }

    #[test]
    fn what_a_build_left_beside_the_sources_does_not_count() {
        let clean = [("Kbuild", "k"), ("a.rs", "a"), ("include/linux/a.h", "h")];
        let built = [&clean[..], &[("a.o", ""), ("a.mod.c", ""), (".a.c", "")]].concat();
        assert_eq!(sources(&clean), sources(&built));
        assert_eq!(sources(&clean).files.len(), 3);
    }

    #[test]
    fn a_recipe_changes_with_contents_names_kernel_and_variables() {
        let one = sources(&[("Kbuild", "k"), ("a.rs", "bc")]);
        let root = Path::new("/r");
        let mut other_variables = target("/t");
        other_variables.variables += " LOCALVERSION=+x";
        let recipes = [
            recipe(root, &one, &target("/t")),
            recipe(root, &one, &target("/u")),
            recipe(root, &one, &other_variables),
            recipe(Path::new("/q"), &one, &target("/t")),
            recipe(
                root,
                &sources(&[("Kbuild", "k"), ("a.rs", "b")]),
                &target("/t"),
            ),
            recipe(
                root,
                &sources(&[("Kbuild", "k"), ("b.rs", "bc")]),
                &target("/t"),
            ),
        ];
        for (i, recipe) in recipes.iter().enumerate() {
            assert!(!recipes[..i].contains(recipe), "recipe {i}");
        }
        assert_eq!(recipe(root, &one.clone(), &target("/t")), recipes[0]);
    }

    #[test]
    fn sources_are_written_as_they_were_read() {
        let one = sources(&[("Kbuild", "k"), ("include/linux/a.h", "h")]);
        let dir = tempfile::tempdir().unwrap();
        one.write_to(dir.path()).unwrap();
        assert_eq!(Sources::read(DRIVER, dir.path()).unwrap(), one);
    }

    #[test]
    fn a_directory_without_kbuild_has_no_modules() {
        assert!(Sources::read(DRIVER, directory(&[("a.rs", "")]).path()).is_err());
    }
}
