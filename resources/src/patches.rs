//! Our patches of Linux, in `resources/kernel-patches`: the source that our own kernels are built
//! from has them, the stock kernel's has not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::cache::Cache;
use crate::progress::Progress;
use crate::unified::{self, FileDiff};

/// Where the patches are, in the workspace.
const DIRECTORY: &str = "resources/kernel-patches";

/// A patch as it lies in the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Patch {
    /// The file's name.
    pub(crate) name: String,
    /// The mail.
    pub(crate) text: String,
}

/// The patches of this workspace, in the order of their names.
pub(crate) fn of_workspace() -> Result<Vec<Patch>> {
    read_all(&build::workspace().join(DIRECTORY))
}

fn read_all(dir: &Path) -> Result<Vec<Patch>> {
    let entries = fs::read_dir(dir).with_context(|| format!("could not list {}", dir.display()))?;
    let mut patches = Vec::new();
    for entry in entries {
        let path = entry
            .with_context(|| format!("could not list {}", dir.display()))?
            .path();
        if path
            .extension()
            .is_none_or(|extension| extension != "patch")
        {
            continue;
        }
        patches.push(Patch {
            name: path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
            text: fs::read_to_string(&path)
                .with_context(|| format!("could not read {}", path.display()))?,
        });
    }
    patches.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(patches)
}

/// The kernel source with our patches, made if it is not there. `pristine` stays as it is.
pub(crate) fn patched(cache: &Cache, pristine: &Path, progress: &Progress) -> Result<PathBuf> {
    let patches = of_workspace()?;
    let dir = cache.place("linux-patched", &recipe(pristine, &patches)?);
    if !dir.exists() {
        cache
            .make(&dir, |inside| {
                let step = progress.step("kernel source with our patches");
                let tree = inside.join("tree");
                link_tree(pristine, &tree)?;
                for patch in &patches {
                    step.say(&patch.name);
                    patch.apply(&tree)?;
                }
                step.done();
                Ok(())
            })
            .context("could not patch the kernel source")?;
    }
    Ok(dir.join("tree"))
}

/// Names what the patches change: their messages may be worded anew without a new kernel.
fn recipe(pristine: &Path, patches: &[Patch]) -> Result<String> {
    let mut recipe = format!("{}; 1", pristine.display());
    for patch in patches {
        recipe += &format!("; {:?}", patch.files()?);
    }
    Ok(recipe)
}

/// A second tree of the same files. Whoever changes one of them replaces it.
pub(crate) fn link_tree(from: &Path, to: &Path) -> Result<()> {
    // Links are quick and take no room; a file system that has none gets copies.
    for how in ["--link", "--reflink=auto"] {
        let mut command = Command::new("cp");
        command.args(["--archive", "--no-target-directory", how]);
        if crate::lifetime::bind(command.arg(from).arg(to))
            .output()
            .is_ok_and(|output| output.status.success())
        {
            return Ok(());
        }
        crate::trees::remove_tree(to)?;
    }
    bail!("could not copy {} to {}", from.display(), to.display());
}

/// Gives a file of a linked tree new contents, and the other tree's its old ones.
pub(crate) fn replace(path: &Path, contents: &[u8]) -> Result<()> {
    let _ = fs::remove_file(path);
    fs::write(path, contents).with_context(|| format!("could not write {}", path.display()))
}

impl Patch {
    /// Changes the files of a tree, all or none of this patch.
    pub(crate) fn apply(&self, tree: &Path) -> Result<()> {
        let files = self.files()?;
        let changed: Vec<_> = files
            .iter()
            .map(|file| self.changed(tree, file))
            .collect::<Result<_>>()?;
        changed
            .iter()
            .try_for_each(|(path, text)| replace(path, text.as_bytes()))
    }

    fn files(&self) -> Result<Vec<FileDiff>> {
        unified::parse(&self.text)
            .with_context(|| format!("{DIRECTORY}/{} cannot be used", self.name))
    }

    fn changed(&self, tree: &Path, file: &FileDiff) -> Result<(PathBuf, String)> {
        let path = tree.join(&file.path);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("could not read {}", path.display()))?;
        let new = file.apply(&text).with_context(|| self.refusal(file))?;
        Ok((path, new))
    }

    fn refusal(&self, file: &FileDiff) -> String {
        format!(
            "{DIRECTORY}/{} does not apply to {} of this kernel source. If Linux has changed there, \
             make the patch again; if it has taken the patch, remove it",
            self.name, file.path
        )
    }

    /// Whether a tree has all that this patch makes.
    #[cfg(test)]
    fn is_in(&self, tree: &Path) -> bool {
        self.apply(tree)
            .is_err_and(|error| error.downcast_ref() == Some(&unified::ApplyError::Done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "--- a/d/f\n+++ b/d/f\n@@ -1,2 +1,2 @@\n one\n-two\n+TWO\n";

    fn patch() -> Patch {
        Patch {
            name: "0001-x.patch".into(),
            text: TEXT.into(),
        }
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("pristine/d")).unwrap();
        fs::write(dir.path().join("pristine/d/f"), "one\ntwo\n").unwrap();
        fs::write(dir.path().join("pristine/d/g"), "other\n").unwrap();
        dir
    }

    #[test]
    fn a_patch_changes_its_own_tree_alone() {
        let dir = tree();
        let (pristine, tree) = (dir.path().join("pristine"), dir.path().join("tree"));
        link_tree(&pristine, &tree).unwrap();
        patch().apply(&tree).unwrap();
        assert_eq!(fs::read_to_string(tree.join("d/f")).unwrap(), "one\nTWO\n");
        assert_eq!(fs::read_to_string(tree.join("d/g")).unwrap(), "other\n");
        let old = fs::read_to_string(pristine.join("d/f")).unwrap();
        assert_eq!(old, "one\ntwo\n");
        assert!(patch().is_in(&tree) && !patch().is_in(&pristine));
    }

    #[test]
    fn a_patch_that_does_not_fit_is_named_with_its_file_and_hunk() {
        let dir = tree();
        let tree = dir.path().join("pristine");
        fs::write(tree.join("d/f"), "one\n2\n").unwrap();
        let error = format!("{:#}", patch().apply(&tree).unwrap_err());
        for part in ["kernel-patches/0001-x.patch", "d/f", "hunk 1", "    two"] {
            assert!(error.contains(part), "{error}");
        }
        let none = patch().apply(&dir.path().join("elsewhere")).unwrap_err();
        assert!(format!("{none:#}").contains("could not read"), "{none:#}");
    }

    #[test]
    fn other_changes_are_another_source_and_another_message_is_not() {
        let recipe = |source: &str, patches: &[Patch]| recipe(Path::new(source), patches).unwrap();
        let with = |from: &str, to: &str| Patch {
            text: TEXT.replace(from, to),
            ..patch()
        };
        let one = recipe("/s", &[patch()]);
        assert_ne!(one, recipe("/s", &[with("TWO", "2")]));
        assert_ne!(one, recipe("/s", &[with("d/f", "d/g")]));
        assert_ne!(one, recipe("/s", &[]));
        assert_ne!(one, recipe("/t", &[patch()]));
        assert_eq!(one, recipe("/s", &[with("--- a", "Subject: x\n\n--- a")]));
    }

    #[test]
    fn the_workspace_s_patches_can_be_read_and_are_signed_by_nobody() {
        let patches = of_workspace().unwrap();
        assert!(!patches.is_empty());
        for patch in patches {
            assert!(unified::parse(&patch.text).is_ok(), "{}", patch.name);
            assert!(!patch.text.contains("Signed-off-by: "), "{}", patch.name);
        }
    }
}
