//! No error repeats its cause: who reports it adds the chain (`report()`).

use crate::files;

/// The messages of errors in a source that have their field `source` in their text.
fn repeated(text: &str) -> Vec<&str> {
    let attributes = text.split("#[error(").skip(1);
    let messages = attributes.filter_map(|rest| rest.split(")]").next());
    messages
        .filter(|message| message.contains("{source"))
        .collect()
}

#[test]
fn no_error_says_its_cause_itself() {
    for folder in ["acpi", "devices", "vmm", "guest-driver", "resources/src"] {
        let sources = files::with_extension(folder, "rs");
        assert!(!sources.is_empty(), "{folder}");
        for path in sources {
            let text = files::read(&path);
            assert_eq!(repeated(&text), [""; 0], "{}", path.display());
        }
    }
}

#[test]
fn a_message_with_its_cause_is_found() {
    let text =
        "#[error(\"could not write {path:?}: {source}\")]\nWrite,\n#[error(\"full\")]\nFull,";
    assert_eq!(repeated(text), ["\"could not write {path:?}: {source}\""]);
}
