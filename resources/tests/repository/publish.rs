//! Crates that others may depend on can be published: what `cargo publish --dry-run` looks at
//! before it builds, without a network. That they build is what all other tests begin with.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use crate::files;

/// The crates: package and folder.
const CRATES: &[(&str, &str)] = &[("sysgenid", "guest-driver/lib"), ("vmgenie-api", "vmm/api")];

/// What a manifest has to say, as people look for it in a registry.
const KEYS: &[&str] = &["description", "license", "readme", "keywords", "categories"];

fn cargo(package: &str, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO"))
        .args(["package", "--allow-dirty", "--offline", "--quiet"])
        .args(["--package", package])
        .args(arguments)
        .current_dir(files::root())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a manifest as it is published lacks, and what a registry would not have.
fn lacks(manifest: &str) -> Vec<String> {
    let manifest: toml_edit::DocumentMut = manifest.parse().unwrap();
    let package = &manifest["package"];
    let mut wrong: Vec<_> = KEYS
        .iter()
        .filter(|key| package.get(key).is_none())
        .map(|key| format!("no {key}"))
        .collect();
    let dependencies = manifest
        .get("dependencies")
        .and_then(|list| list.as_table());
    for (name, dependency) in dependencies.into_iter().flatten() {
        if dependency.get("version").is_none() && dependency.as_str().is_none() {
            wrong.push(format!("{name} has no version"));
        }
    }
    wrong
}

/// The sources of a crate that are not among the files of its package.
fn missing(folder: &str, packaged: &str) -> Vec<String> {
    let packaged: BTreeSet<_> = packaged.lines().collect();
    let sources = files::with_extension(folder, "rs");
    assert!(!sources.is_empty());
    sources
        .iter()
        .map(|path| path.strip_prefix(folder).unwrap().display().to_string())
        .chain(["README.md", "LICENSE-APACHE"].map(str::to_owned))
        .filter(|path| !packaged.contains(path.as_str()))
        .collect()
}

#[test]
fn crates_for_others_can_be_packaged_with_all_that_they_need() {
    for (package, folder) in CRATES {
        let list = cargo(package, &["--list"]);
        assert_eq!(missing(folder, &text(&list.stdout)), [""; 0], "{package}");
        let target = tempfile::tempdir().unwrap();
        let target_dir = target.path().to_str().unwrap();
        let made = cargo(package, &["--no-verify", "--target-dir", target_dir]);
        assert!(made.status.success(), "{package}: {}", text(&made.stderr));
        assert_eq!(lacks(&manifest_in(target.path())), [""; 0], "{package}");
    }
}

/// The manifest in the one package below the directory.
fn manifest_in(target: &Path) -> String {
    let packages = std::fs::read_dir(target.join("package")).unwrap();
    let package = packages
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|found| found == "crate"))
        .unwrap();
    let root = package.file_stem().unwrap().to_str().unwrap();
    let unpacked = Command::new("tar")
        .args(["--extract", "--to-stdout", "--file"])
        .arg(&package)
        .arg(format!("{root}/Cargo.toml"))
        .output()
        .unwrap();
    assert!(unpacked.status.success(), "{}", text(&unpacked.stderr));
    text(&unpacked.stdout)
}

#[test]
fn a_crate_that_cannot_be_published_is_found() {
    let manifest = "[package]\ndescription = \"x\"\nlicense = \"MIT\"\nreadme = \"README.md\"\n\
                    keywords = []\n[dependencies.ours]\npath = \"../ours\"\n\
                    [dependencies.good]\nversion = \"1\"\n";
    assert_eq!(lacks(manifest), ["no categories", "ours has no version"]);
    let packaged = "README.md\nsrc/lib.rs\n";
    let found = missing("guest-driver/lib", packaged);
    assert!(found.contains(&"src/watcher.rs".into()) && found.contains(&"LICENSE-APACHE".into()));
    assert!(!found.contains(&"src/lib.rs".into()));
    // One that is ours alone cannot be packaged, and for that reason.
    let tests = cargo("vmgenie-tests", &["--no-verify"]);
    assert!(!tests.status.success());
    let told = text(&tests.stderr);
    let why = "must have a version requirement specified when p";
    assert!(told.contains(why), "{told}");
}
