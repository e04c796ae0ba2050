//! Kernel modules as files: which others one needs, and how a package compresses them.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A module that is ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its name, with `_` for `-`.
    pub(crate) name: String,
    /// The uncompressed ELF file.
    pub(crate) contents: Vec<u8>,
}

/// Reads the modules `names` and all that they need from the tree `dir`, in an order in which they
/// can be loaded. What is not in the tree is taken to be built into the kernel, if it is a
/// dependency, and is an error otherwise.
pub(crate) fn collect(dir: &Path, names: &[&str]) -> Result<Vec<Module>> {
    let files = find_files(dir)?;
    let mut found = Vec::new();
    for name in names {
        let known = files.iter().any(|(stem, _)| stem == &canonical(name));
        anyhow::ensure!(known, "there is no module {name} in {}", dir.display());
        add(&files, &canonical(name), &mut found)?;
    }
    Ok(found)
}

fn add(files: &[(String, PathBuf)], name: &str, found: &mut Vec<Module>) -> Result<()> {
    if found.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let Some((_, path)) = files.iter().find(|(stem, _)| stem == name) else {
        return Ok(());
    };
    let contents = read(path).with_context(|| format!("could not read {}", path.display()))?;
    for needed in dependencies(&contents) {
        add(files, &needed, found)?;
    }
    found.push(Module {
        name: name.to_owned(),
        contents,
    });
    Ok(())
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// All modules below `dir`, by name.
fn find_files(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(dir) = pending.pop() {
        let entries =
            fs::read_dir(&dir).with_context(|| format!("could not list {}", dir.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("could not list {}", dir.display()))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            } else if let Some((stem, "ko" | "ko.xz")) =
                entry.file_name().to_string_lossy().split_once('.')
            {
                files.push((canonical(stem), entry.path()));
            }
        }
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path)?;
    if path.extension().is_none_or(|extension| extension != "xz") {
        return Ok(bytes);
    }
    let mut contents = Vec::new();
    xz2::read::XzDecoder::new(&bytes[..]).read_to_end(&mut contents)?;
    Ok(contents)
}

/// The names in a module's `depends=` string, which stands in its `.modinfo` section among
/// strings that each end with a zero.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|bytes| bytes == KEY) else {
        return Vec::new();
    };
    let value = &module[at + KEY.len()..];
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(canonical)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        for (name, depends) in modules {
            let contents = format!("\x7fELF\0license=GPL\0depends={depends}\0name=x\0");
            fs::write(dir.path().join("sub").join(name), contents).unwrap();
        }
        dir
    }

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|module| &module.name[..]).collect()
    }

    #[test]
    fn a_module_comes_after_all_that_it_needs_and_only_once() {
        let tree = tree(&[
            ("kvm-amd.ko", "kvm,ccp"),
            ("kvm.ko", "irqbypass"),
            ("ccp.ko", ""),
            ("irqbypass.ko", ""),
        ]);
        let modules = collect(tree.path(), &["kvm", "kvm-amd"]).unwrap();
        assert_eq!(names(&modules), ["irqbypass", "kvm", "ccp", "kvm_amd"]);
    }

    #[test]
    fn a_dependency_that_is_no_module_is_taken_to_be_built_in() {
        let tree = tree(&[("a.ko", "builtin_thing")]);
        assert_eq!(names(&collect(tree.path(), &["a"]).unwrap()), ["a"]);
    }

    #[test]
    fn a_wanted_module_that_is_missing_is_an_error() {
        let tree = tree(&[]);
        assert!(collect(tree.path(), &["a"]).is_err());
    }

    #[test]
    fn a_compressed_module_is_unpacked() {
        let tree = tree(&[]);
        let mut packed = Vec::new();
        xz2::read::XzEncoder::new(&b"\0depends=\0"[..], 1)
            .read_to_end(&mut packed)
            .unwrap();
        fs::write(tree.path().join("a.ko.xz"), packed).unwrap();
        let modules = collect(tree.path(), &["a"]).unwrap();
        assert_eq!(modules[0].contents, b"\0depends=\0");
    }
}
