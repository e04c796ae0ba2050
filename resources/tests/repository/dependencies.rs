//! Licences, doubled versions and sources of all that the workspace depends on are as `deny.toml`
//! says. The part of cargo-deny that needs neither its build, which takes minutes, nor a list of
//! advisories from the network.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;
use toml_edit::{DocumentMut, Item};

use crate::files;
use crate::licence::Licence;

/// Where packages come from that are not this workspace's.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// What `deny.toml` allows.
struct Rules {
    licences: BTreeSet<String>,
    /// By the name of the crate.
    exceptions: BTreeMap<String, BTreeSet<String>>,
    /// `name@version`: a second version that is known.
    doubled: BTreeSet<String>,
}

impl Rules {
    fn read(text: &str) -> Self {
        let document: DocumentMut = text.parse().unwrap();
        let licences = &document["licenses"];
        let exceptions = items(&licences["exceptions"])
            .map(|one| (text_of(one, "crate"), strings(&one["allow"])))
            .collect();
        let doubled = items(&document["bans"]["skip"])
            .map(|one| text_of(one, "crate"))
            .collect();
        Self {
            licences: strings(&licences["allow"]),
            exceptions,
            doubled,
        }
    }
}

fn items(list: &Item) -> impl Iterator<Item = &toml_edit::InlineTable> {
    let list = list.as_array().unwrap().iter();
    list.map(|one| one.as_inline_table().unwrap())
}

fn text_of(table: &toml_edit::InlineTable, key: &str) -> String {
    table[key].as_str().unwrap().to_owned()
}

fn strings(list: &(impl AsArray + ?Sized)) -> BTreeSet<String> {
    let list = list.array().iter();
    list.map(|one| one.as_str().unwrap().to_owned()).collect()
}

/// What holds a list, in a table of either form.
trait AsArray {
    fn array(&self) -> &toml_edit::Array;
}

impl AsArray for Item {
    fn array(&self) -> &toml_edit::Array {
        self.as_array().unwrap()
    }
}

impl AsArray for toml_edit::Value {
    fn array(&self) -> &toml_edit::Array {
        self.as_array().unwrap()
    }
}

/// What of these packages, as `cargo metadata` tells of them, is against the rules; and which
/// rules nobody needs.
fn against(rules: &Rules, metadata: &Value) -> Vec<String> {
    let packages = used(metadata);
    let mut wrong = Vec::new();
    let mut needed = BTreeSet::new();
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        match package["source"].as_str() {
            None | Some(REGISTRY) => {}
            Some(source) => wrong.push(format!("{name} comes from {source}")),
        }
        let Some(licence) = package["license"].as_str() else {
            wrong.push(format!("{name} has no licence"));
            continue;
        };
        let allowed = rules.exceptions.get(name).unwrap_or(&rules.licences);
        match Licence::parse(licence) {
            Some(licence) if licence.is_allowed(allowed) => needed.extend(licence.names()),
            _ => wrong.push(format!("{name} is {licence}")),
        }
    }
    let unused = rules.licences.iter().filter(|name| !needed.contains(*name));
    wrong.extend(unused.map(|name| format!("nothing is {name}")));
    wrong.extend(doubled(rules, &packages));
    wrong
}

/// The packages that are built for our target, with those of tests.
fn used(metadata: &Value) -> Vec<&Value> {
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let ids: BTreeSet<_> = nodes
        .iter()
        .filter_map(|node| node["id"].as_str())
        .collect();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .filter(|package| ids.contains(package["id"].as_str().unwrap()))
        .collect()
}

/// Crates with several versions, but for the known ones; and known ones that are not there.
fn doubled(rules: &Rules, packages: &[&Value]) -> Vec<String> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let version = package["version"].as_str().unwrap();
        versions.entry(name).or_default().push(version);
    }
    let mut known = rules.doubled.clone();
    let mut wrong = Vec::new();
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        let unknown = versions
            .iter()
            .filter(|version| !known.remove(&format!("{name}@{version}")))
            .count();
        if unknown > 1 {
            wrong.push(format!("{name} is there as {}", versions.join(", ")));
        }
    }
    wrong.extend(known.iter().map(|one| format!("{one} is not there twice")));
    wrong
}

#[test]
fn licences_sources_and_versions_are_as_deny_toml_says() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(files::root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(used(&metadata).len() > 100);
    let rules = Rules::read(&files::read("deny.toml"));
    assert_eq!(against(&rules, &metadata), [""; 0], "see deny.toml");
}

#[test]
fn a_licence_a_source_and_a_version_that_nobody_allowed_are_found() {
    let rules = Rules::read(
        "[licenses]\nallow = [\"MIT\", \"ISC\"]\n\
         exceptions = [{ crate = \"ours\", allow = [\"GPL-2.0-only\"] }]\n\
         [bans]\nskip = [{ crate = \"old@1.0.0\" }, { crate = \"gone@1.0.0\" }]\n",
    );
    let package = |name: &str, version: &str, licence: Option<&str>, source: Option<&str>| {
        serde_json::json!({
            "id": format!("{name} {version}"), "name": name, "version": version,
            "license": licence, "source": source,
        })
    };
    let mit = Some("MIT OR Apache-2.0");
    let packages = [
        package("ours", "0.1.0", Some("GPL-2.0-only"), None),
        package("good", "1.0.0", mit, Some(REGISTRY)),
        package("copyleft", "1.0.0", Some("MIT AND GPL-3.0"), Some(REGISTRY)),
        package("silent", "1.0.0", None, Some(REGISTRY)),
        package(
            "forked",
            "1.0.0",
            mit,
            Some("git+https://example.org/forked"),
        ),
        package("old", "1.0.0", mit, Some(REGISTRY)),
        package("old", "2.0.0", mit, Some(REGISTRY)),
        package("twice", "1.0.0", mit, Some(REGISTRY)),
        package("twice", "2.0.0", mit, Some(REGISTRY)),
        package("for-others", "1.0.0", Some("GPL-3.0"), Some(REGISTRY)),
    ];
    let built = packages.iter().filter(|one| one["name"] != "for-others");
    let nodes: Vec<_> = built
        .map(|one| serde_json::json!({ "id": one["id"] }))
        .collect();
    let metadata = serde_json::json!({ "packages": packages, "resolve": { "nodes": nodes } });
    assert_eq!(
        against(&rules, &metadata),
        [
            "copyleft is MIT AND GPL-3.0",
            "silent has no licence",
            "forked comes from git+https://example.org/forked",
            "nothing is ISC",
            "twice is there as 1.0.0, 2.0.0",
            "gone@1.0.0 is not there twice",
        ]
    );
}
