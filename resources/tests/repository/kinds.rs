//! A kind of device is in few files: see "How to add a device" in `docs/architecture.md`.
//!
//! The entropy device stands for all kinds: it has all that a kind has here, and nothing of its own elsewhere.

use std::path::{Path, PathBuf};

use crate::files::{read, with_extension};

/// The most sources that a new kind of device touches.
const MOST: usize = 8;

/// What names the kind.
const KIND: &str = "entropy";

/// Whether a file is a source of the product: it is no test, and nothing that tests alone are made of.
fn is_source(path: &Path) -> bool {
    let tests = |name: &str| {
        let stem = name.trim_end_matches(".rs");
        ["tests", "examples", "fuzz"].contains(&stem) || stem.ends_with("_test")
    };
    !path.iter().any(|name| tests(&name.to_string_lossy()))
}

/// The sources that name the kind, in any case: `text` reads one.
fn naming(files: &[PathBuf], text: impl Fn(&Path) -> String) -> Vec<PathBuf> {
    let sources = files.iter().filter(|path| is_source(path));
    let naming = sources.filter(|path| text(path).to_lowercase().contains(KIND));
    naming.cloned().collect()
}

/// Why there are too many of them.
fn complaint(naming: &[PathBuf]) -> Option<String> {
    let list: Vec<_> = naming.iter().map(|path| path.display()).collect();
    (naming.len() > MOST).then(|| {
        format!(
            "a kind of device is in {} files, {MOST} at most: {list:#?}",
            naming.len()
        )
    })
}

#[test]
fn a_kind_of_device_is_in_few_files() {
    let naming = naming(&with_extension("", "rs"), |path| read(path));
    if let Some(complaint) = complaint(&naming) {
        panic!("{complaint}");
    }
    // Those that "How to add a device" lists.
    let guide = read("docs/architecture.md");
    assert!(naming.len() > 1, "{naming:#?}");
    for path in naming {
        let listed = format!("`{}`", path.display().to_string().replace(KIND, "<kind>"));
        assert!(
            guide.contains(&listed),
            "docs/architecture.md lacks {listed}"
        );
    }
}

#[test]
fn a_file_too_many_is_seen_and_a_test_is_none() {
    let file = |number: usize| PathBuf::from(format!("vmm/src/{number}.rs"));
    let mut files: Vec<_> = (0..MOST).map(file).collect();
    files.extend(
        [
            "fuzz/src/api.rs",
            "tests/src/booted.rs",
            "tests/tests/entropy.rs",
            "vmm/src/api/routes_test/devices.rs",
            "vmm/machine/src/virtio/kinds/saved_test.rs",
        ]
        .map(PathBuf::from),
    );
    let text = |path: &Path| match path.ends_with("none.rs") {
        true => "use super::Vsock;".to_owned(),
        false => "use super::{Vsock, EntropyConfig};".to_owned(),
    };
    files.push("vmm/src/none.rs".into());
    assert_eq!(naming(&files, text).len(), MOST);
    assert_eq!(complaint(&naming(&files, text)), None);
    files.push(file(MOST));
    let told = complaint(&naming(&files, text)).unwrap();
    assert!(
        told.contains("9 files") && told.contains("vmm/src/8.rs"),
        "{told}"
    );
    assert!(
        !told.contains("none.rs") && !told.contains("_test"),
        "{told}"
    );
}
