//! Which file a path names.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::tree::{Crate, Names};

/// Longer chains of re-exports than this go round.
const CHAIN: usize = 20;

/// Adds which file of `source` names something in which.
pub(super) fn edges(source: &Crate, edges: &mut BTreeSet<(PathBuf, PathBuf)>) {
    for (index, module) in source.modules.iter().enumerate() {
        let imports = module.imports.values();
        for path in imports.chain(&module.globs).chain(&module.paths) {
            // A path may begin with an imported name, unless it is what imports that name.
            let own = module.imports.get(&path[0]).is_some_and(|own| own == path);
            if let Some(target) = from_scope(source, index, path, CHAIN, own) {
                let target = &source.modules[target].file;
                if *target != module.file {
                    edges.insert((module.file.clone(), target.clone()));
                }
            }
        }
    }
}

/// The module that defines what `path` names in `module`; none for another crate's.
fn from_scope(
    source: &Crate,
    module: usize,
    path: &Names,
    chain: usize,
    is_import: bool,
) -> Option<usize> {
    let here = &source.modules[module];
    match path[0].as_str() {
        "crate" => walk(source, 0, &path[1..], chain),
        "self" => walk(source, module, &path[1..], chain),
        "super" => {
            let mut at = module;
            let supers = path.iter().take_while(|name| *name == "super").count();
            for _ in 0..supers {
                at = source.modules[at].parent?;
            }
            walk(source, at, &path[supers..], chain)
        }
        first if here.children.contains_key(first) => walk(source, module, path, chain),
        first if !is_import && here.imports.contains_key(first) => {
            walk(source, module, path, chain)
        }
        _ => None,
    }
}

/// Follows `path` from inside `module`.
fn walk(source: &Crate, module: usize, path: &[String], chain: usize) -> Option<usize> {
    let Some(first) = path.first() else {
        return Some(module);
    };
    let chain = chain.checked_sub(1)?;
    let here = &source.modules[module];
    if let Some(child) = here.children.get(first) {
        return walk(source, *child, &path[1..], chain);
    }
    if let Some(import) = here.imports.get(first) {
        let target = from_scope(source, module, import, chain, true)?;
        let is_module = leads_to_module(source, module, import, target);
        return if is_module {
            walk(source, target, &path[1..], chain)
        } else {
            Some(target)
        };
    }
    for glob in &here.globs {
        if let Some(target) = from_scope(source, module, glob, chain, true)
            && has(source, target, first, chain)
        {
            return walk(source, target, path, chain);
        }
    }
    Some(module)
}

/// Is what `import` names the module `target` itself, and no item in it?
fn leads_to_module(source: &Crate, module: usize, import: &Names, target: usize) -> bool {
    let name = import.last().map_or("", String::as_str);
    let parent = source.modules[target].parent;
    let is_child =
        parent.is_some_and(|parent| source.modules[parent].children.get(name) == Some(&target));
    is_child && target != module
}

/// Does `module` define a name, import it, or have a module of it?
fn has(source: &Crate, module: usize, name: &str, chain: usize) -> bool {
    let Some(chain) = chain.checked_sub(1) else {
        return false;
    };
    let here = &source.modules[module];
    here.children.contains_key(name)
        || here.imports.contains_key(name)
        || here.defines.contains(name)
        || here.globs.iter().any(|glob| {
            from_scope(source, module, glob, chain, true)
                .is_some_and(|target| has(source, target, name, chain))
        })
}
