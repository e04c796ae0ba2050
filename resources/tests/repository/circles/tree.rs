//! A crate's modules: which file each is in, what it names, and which names it has from elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A path as it is written: `crate::a::B`.
pub(super) type Names = Vec<String>;

/// A crate.
pub(super) struct Crate {
    /// Its modules, of which the first is the root.
    pub(super) modules: Vec<Module>,
}

/// A module.
pub(super) struct Module {
    /// The file in which it is.
    pub(super) file: PathBuf,
    /// The module that it is in.
    pub(super) parent: Option<usize>,
    /// The modules in it.
    pub(super) children: BTreeMap<String, usize>,
    /// Names that are declared elsewhere, with the path to there.
    pub(super) imports: BTreeMap<String, Names>,
    /// Modules whose names are all imported.
    pub(super) globs: Vec<Names>,
    /// Paths in code.
    pub(super) paths: Vec<Names>,
    /// What is defined here.
    pub(super) defines: BTreeSet<String>,
}

impl Crate {
    /// Reads the crate that begins in `root`.
    pub(super) fn read(root: &Path) -> Self {
        let mut found = Self {
            modules: Vec::new(),
        };
        let folder = root.parent().unwrap_or(Path::new("")).to_owned();
        found.read_file(root.to_owned(), &folder, None);
        found
    }

    /// Reads a file; `folder` is where its modules' files are.
    fn read_file(&mut self, file: PathBuf, folder: &Path, parent: Option<usize>) -> usize {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let tokens: TokenStream = text
            .parse()
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let module = self.add(file, parent);
        self.read_tokens(module, folder, tokens);
        module
    }

    fn add(&mut self, file: PathBuf, parent: Option<usize>) -> usize {
        self.modules.push(Module {
            file,
            parent,
            children: BTreeMap::new(),
            imports: BTreeMap::new(),
            globs: Vec::new(),
            paths: Vec::new(),
            defines: BTreeSet::new(),
        });
        self.modules.len() - 1
    }

    fn read_tokens(&mut self, module: usize, folder: &Path, tokens: TokenStream) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let mut at = 0;
        let mut for_tests = false;
        let mut elsewhere = None;
        while at < tokens.len() {
            if let Some(attribute) = attribute(&tokens, at) {
                for_tests |= attribute.replace(' ', "") == "cfg(test)";
                let path = attribute.strip_prefix("path = ");
                elsewhere = path
                    .map(|path| path.trim_matches('"').to_owned())
                    .or(elsewhere);
                at += 2;
                continue;
            }
            if for_tests {
                at = end_of_item(&tokens, at);
                for_tests = false;
                continue;
            }
            at = match word(&tokens, at).as_deref() {
                Some("mod") => {
                    self.read_mod(module, folder, (&tokens, at), elsewhere.take().as_deref())
                }
                Some("use") => {
                    let end = end_of_item(&tokens, at);
                    read_use(
                        &tokens[at + 1..end],
                        &mut Vec::new(),
                        &mut self.modules[module],
                    );
                    end
                }
                Some(
                    "struct" | "enum" | "union" | "trait" | "type" | "fn" | "const" | "static",
                ) => {
                    self.modules[module].defines.extend(word(&tokens, at + 1));
                    at + 1
                }
                Some(_) => self.read_path(module, &tokens, at),
                None => {
                    if let TokenTree::Group(group) = &tokens[at] {
                        self.read_tokens(module, folder, group.stream());
                    }
                    at + 1
                }
            };
        }
    }

    /// `mod name;` or `mod name { … }`, perhaps in a file that `elsewhere` names.
    fn read_mod(
        &mut self,
        module: usize,
        folder: &Path,
        (tokens, at): (&[TokenTree], usize),
        elsewhere: Option<&str>,
    ) -> usize {
        let Some(name) = word(tokens, at + 1) else {
            return at + 1;
        };
        let inner = folder.join(&name);
        let child = match tokens.get(at + 2) {
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let child = self.add(self.modules[module].file.clone(), Some(module));
                self.read_tokens(child, &inner, group.stream());
                child
            }
            _ => {
                let flat = folder.join(format!("{name}.rs"));
                let file = match elsewhere {
                    Some(path) => self.modules[module].file.with_file_name(path),
                    None if flat.exists() => flat,
                    None => inner.join("mod.rs"),
                };
                assert!(
                    file.exists(),
                    "{}: where is module {name}?",
                    folder.display()
                );
                self.read_file(file, &inner, Some(module))
            }
        };
        self.modules[module].children.insert(name, child);
        at + 3
    }

    /// A word, or a path of some.
    fn read_path(&mut self, module: usize, tokens: &[TokenTree], at: usize) -> usize {
        let mut names: Names = word(tokens, at).into_iter().collect();
        let mut at = at + 1;
        while is_colons(tokens, at)
            && let Some(name) = word(tokens, at + 2)
        {
            names.push(name);
            at += 3;
        }
        if names.len() > 1 {
            self.modules[module].paths.push(names);
        }
        at
    }
}

/// The tree of a `use`, after `prefix`.
fn read_use(tokens: &[TokenTree], prefix: &mut Names, module: &mut Module) {
    let mut names = prefix.clone();
    let mut renamed = None;
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token {
            TokenTree::Ident(ident) if ident == "as" => {
                renamed = word(tokens, at + 1);
                at += 1;
            }
            TokenTree::Ident(ident) => names.push(ident.to_string()),
            TokenTree::Punct(punct) if punct.as_char() == '*' => {
                module.globs.push(names.clone());
                return;
            }
            TokenTree::Group(group) => {
                let inner: Vec<_> = group.stream().into_iter().collect();
                let is_comma =
                    |token: &TokenTree| matches!(token, TokenTree::Punct(p) if p.as_char() == ',');
                for part in inner.split(is_comma).filter(|part| !part.is_empty()) {
                    read_use(part, &mut names, module);
                }
                return;
            }
            _ => {}
        }
        at += 1;
    }
    if names.len() > 1 && names.last().is_some_and(|last| last == "self") {
        names.pop();
    }
    if let Some(last) = names.last() {
        module
            .imports
            .insert(renamed.unwrap_or_else(|| last.clone()), names);
    }
}

/// The text of an attribute that begins here.
fn attribute(tokens: &[TokenTree], at: usize) -> Option<String> {
    match (tokens.get(at)?, tokens.get(at + 1)?) {
        (TokenTree::Punct(hash), TokenTree::Group(group))
            if hash.as_char() == '#' && group.delimiter() == Delimiter::Bracket =>
        {
            Some(group.stream().to_string())
        }
        _ => None,
    }
}

/// Behind the item that begins here: its semicolon or its braces.
fn end_of_item(tokens: &[TokenTree], mut at: usize) -> usize {
    let is_use = (at..at + 4).any(|at| word(tokens, at).as_deref() == Some("use"));
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token {
            TokenTree::Punct(punct) if punct.as_char() == ';' => break,
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace && !is_use => break,
            _ => {}
        }
    }
    at
}

fn word(tokens: &[TokenTree], at: usize) -> Option<String> {
    match tokens.get(at)? {
        TokenTree::Ident(ident) => Some(ident.to_string()),
        _ => None,
    }
}

fn is_colons(tokens: &[TokenTree], at: usize) -> bool {
    let colon = |at| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == ':');
    colon(at) && colon(at + 1)
}
