//! The resident memory of a monitor outside its guest's memory, by what it is used for.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Resident KiB by what they are used for.
#[derive(Debug)]
pub(crate) struct Resident {
    parts: BTreeMap<String, u64>,
}

/// One entry of smaps.
#[derive(Debug, Default)]
struct Mapping {
    permissions: String,
    name: String,
    rss_kib: u64,
}

impl Resident {
    /// Looks at process `pid`, whose guest memory is a mapping of the file `guest_memory`.
    pub(crate) fn of(pid: u32, guest_memory: &Path) -> Result<Self> {
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))
            .with_context(|| format!("could not look at the memory of process {pid}"))?;
        let program = fs::read_link(format!("/proc/{pid}/exe"))
            .with_context(|| format!("could not look at the program of process {pid}"))?;
        let program = program.to_string_lossy();
        let guest_memory = guest_memory.to_string_lossy();
        let mut parts = BTreeMap::new();
        for mapping in mappings(&smaps) {
            if mapping.name != guest_memory && mapping.rss_kib > 0 {
                *parts.entry(use_of(&mapping, &program)).or_default() += mapping.rss_kib;
            }
        }
        Ok(Self { parts })
    }

    /// All of it, in KiB.
    pub(crate) fn total_kib(&self) -> u64 {
        self.parts.values().sum()
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        json!({ "total_kib": self.total_kib(), "parts_kib": self.parts })
    }
}

impl fmt::Display for Resident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<_> = self.parts.iter().collect();
        parts.sort_by_key(|(_, kib)| std::cmp::Reverse(**kib));
        for (place, (name, kib)) in parts.into_iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}{name} {kib} KiB")?;
        }
        Ok(())
    }
}

fn use_of(mapping: &Mapping, program: &str) -> String {
    let code = mapping.permissions.contains('x');
    match mapping.name.as_str() {
        name if name == program && code => "code".to_owned(),
        name if name == program && mapping.permissions.contains('w') => "data".to_owned(),
        name if name == program => "constants".to_owned(),
        "" => "heap and thread stacks".to_owned(),
        name if name.starts_with('[') => name.trim_matches(['[', ']']).to_owned(),
        name if name.contains("kvm-vcpu") => "vCPU pages".to_owned(),
        name if name.starts_with('/') => "shared libraries and files".to_owned(),
        name => name.to_owned(),
    }
}

fn mappings(smaps: &str) -> Vec<Mapping> {
    let mut all = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            // address permissions offset device inode name
            all.push(Mapping {
                permissions: words.next().unwrap_or_default().to_owned(),
                name: words.skip(3).collect::<Vec<_>>().join(" "),
                ..Default::default()
            });
        } else if first == "Rss:"
            && let Some(last) = all.last_mut()
        {
            last.rss_kib = words.next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaps_are_read_mapping_by_mapping() {
        let smaps = "55d0-55d1 r-xp 00001000 08:01 42 /bin/a program\nSize: 8 kB\nRss: 4 kB\n\
                     7f00-7f01 rw-p 00000000 00:00 0\nRss:                12 kB\n\
                     7ffc-7ffd rw-p 00000000 00:00 0 [stack]\nRss: 16 kB\n";
        let found = mappings(smaps);
        let uses: Vec<_> = found
            .iter()
            .map(|mapping| (use_of(mapping, "/bin/a program"), mapping.rss_kib))
            .collect();
        assert_eq!(
            uses,
            [
                ("code".to_owned(), 4),
                ("heap and thread stacks".to_owned(), 12),
                ("stack".to_owned(), 16)
            ]
        );
    }
}
