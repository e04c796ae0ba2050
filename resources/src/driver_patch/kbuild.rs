//! What the driver's own `Kbuild`, `Kconfig` and sources say of its parts.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Begins what only a build out of the kernel's tree has; `endif` ends it.
const OUT_OF_TREE: &str = "ifneq ($(KBUILD_EXTMOD),)";

/// A kernel module: one patch of the series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its name, as `NAME.ko`.
    pub(crate) name: String,
    /// What chooses it, without `CONFIG_`.
    pub(crate) symbol: String,
}

/// The modules of a `Kbuild`, in its order.
pub(crate) fn modules(kbuild: &str) -> Vec<Module> {
    let module = |line: &str| {
        let (symbol, object) = line.strip_prefix("obj-$(CONFIG_")?.split_once(") += ")?;
        Some(Module {
            name: object.trim().strip_suffix(".o")?.to_owned(),
            symbol: symbol.to_owned(),
        })
    };
    kbuild.lines().filter_map(module).collect()
}

/// The objects that a module is linked from.
fn objects(kbuild: &str, module: &str) -> Vec<String> {
    let parts = format!("{module}-y := ");
    let listed = kbuild.lines().find_map(|line| line.strip_prefix(&parts));
    let single = format!("{module}.o");
    let objects = listed.unwrap_or(&single).split_whitespace();
    objects
        .map(|object| object.trim_end_matches(".o").to_owned())
        .collect()
}

/// The files that a module is built from: those of its objects, and what their `mod` lines name.
/// `read` gives a file's text, if there is one of that name.
pub(crate) fn files_of<'a>(
    kbuild: &str,
    module: &str,
    read: impl Fn(&str) -> Option<&'a str>,
) -> Result<BTreeSet<String>> {
    let mut files = BTreeSet::new();
    for object in objects(kbuild, module) {
        let found = ["rs", "c"].map(|extension| format!("{object}.{extension}"));
        let file = found.into_iter().find(|file| read(file).is_some());
        let file =
            file.with_context(|| format!("Kbuild names {object}.o, and it has no source"))?;
        add_with_parts(&file, &read, &mut files)?;
    }
    Ok(files)
}

fn add_with_parts<'a>(
    file: &str,
    read: &impl Fn(&str) -> Option<&'a str>,
    files: &mut BTreeSet<String>,
) -> Result<()> {
    let text = read(file).with_context(|| format!("there is no {file}"))?;
    if !files.insert(file.to_owned()) || !file.ends_with(".rs") {
        return Ok(());
    }
    for line in text.lines() {
        let line = line.strip_prefix("pub(crate) ").unwrap_or(line);
        if let Some(part) = line
            .strip_prefix("mod ")
            .and_then(|rest| rest.strip_suffix(';'))
        {
            add_with_parts(&format!("{part}.rs"), read, files)?;
        }
    }
    Ok(())
}

/// The `Makefile` for a kernel's tree that has only these modules of a `Kbuild`.
pub(crate) fn makefile(kbuild: &str, present: &[Module]) -> String {
    let absent: Vec<Module> = modules(kbuild)
        .into_iter()
        .filter(|module| !present.contains(module))
        .collect();
    let (mut text, mut outside) = (String::new(), false);
    for line in kbuild.lines() {
        if line == OUT_OF_TREE || outside {
            outside = line != "endif";
            continue;
        }
        let is_absent = |module: &Module| {
            line.contains(&format!("(CONFIG_{})", module.symbol))
                || line.starts_with(&format!("{}-y ", module.name))
        };
        let blank_again = line.is_empty() && text.ends_with("\n\n");
        if !absent.iter().any(is_absent) && !blank_again {
            text += line;
            text.push('\n');
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// The `Kconfig` that has only the symbols of these modules, and what belongs to them.
pub(crate) fn kconfig(kconfig: &str, all: &[Module], present: &[Module]) -> Result<String> {
    let (mut text, mut shown) = (String::new(), true);
    for line in kconfig.lines() {
        if let Some(symbol) = line.strip_prefix("config ") {
            // A symbol that chooses no module belongs to the one before.
            if let Some(module) = all.iter().find(|module| module.symbol == symbol.trim()) {
                shown = present.contains(module);
            }
        }
        if shown {
            text += line;
            text.push('\n');
        }
    }
    for module in present {
        let line = format!("config {}", module.symbol);
        let there = text.lines().any(|other| other == line);
        ensure!(there, "Kconfig has no {line}, which Kbuild asks for");
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    Ok(text)
}

/// Whether a file is a source that some module has to be built from.
pub(crate) fn is_built(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("rs" | "c")) && path.components().count() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const KBUILD: &str = "# SPDX\n\nifneq ($(KBUILD_EXTMOD),)\nCONFIG_A ?= m\nendif\n\n\
                          obj-$(CONFIG_A) += a.o\na-y := a_main.o a_export.o\n\n\
                          obj-$(CONFIG_A_B) += a_b.o\n";
    const KCONFIG: &str = "# SPDX\n\nconfig A\n\ttristate \"a\"\n\nconfig A_MORE\n\tbool \"more\"\n\n\
                           config A_B\n\ttristate \"b\"\n\tdepends on A\n";

    fn read(file: &str) -> Option<&'static str> {
        match file {
            "a_main.rs" => Some("//! a\nmod a_core;\nmod a_file;\n"),
            "a_file.rs" | "a_core.rs" => Some("use x;\n"),
            "a_export.c" => Some("mod no_rust;\n"),
            "a_b.rs" => Some("pub(crate) mod a_core;\n"),
            _ => None,
        }
    }

    #[test]
    fn modules_and_their_files_are_those_of_kbuild_and_of_the_mod_lines() {
        let modules = modules(KBUILD);
        let names: Vec<_> = modules.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["a", "a_b"]);
        let files = |module| files_of(KBUILD, module, read).unwrap();
        let first: Vec<_> = files("a").into_iter().collect();
        assert_eq!(first, ["a_core.rs", "a_export.c", "a_file.rs", "a_main.rs"]);
        assert_eq!(files("a_b").len(), 2);
        assert!(files_of("c-y := d.o\n", "c", read).is_err());
    }

    #[test]
    fn a_makefile_has_what_is_there_so_far_and_nothing_of_a_build_out_of_tree() {
        let modules = modules(KBUILD);
        let first = "# SPDX\n\nobj-$(CONFIG_A) += a.o\na-y := a_main.o a_export.o\n";
        assert_eq!(makefile(KBUILD, &modules[..1]), first);
        let all = format!("{first}\nobj-$(CONFIG_A_B) += a_b.o\n");
        assert_eq!(makefile(KBUILD, &modules), all);
    }

    #[test]
    fn kconfig_has_the_symbols_of_what_is_there_so_far() {
        let modules = modules(KBUILD);
        let (first, _) = KCONFIG.split_once("\nconfig A_B").unwrap();
        assert_eq!(kconfig(KCONFIG, &modules, &modules[..1]).unwrap(), first);
        assert_eq!(kconfig(KCONFIG, &modules, &modules).unwrap(), KCONFIG);
        assert!(kconfig("config A\n", &modules, &modules).is_err());
    }

    #[test]
    fn headers_and_documents_are_not_built() {
        assert!(is_built(Path::new("a.rs")) && is_built(Path::new("a.c")));
        assert!(!is_built(Path::new("include/linux/a.h")) && !is_built(Path::new("Kbuild")));
    }
}
