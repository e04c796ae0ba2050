//! Which files of a directory are hooks, and which of them may be trusted.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What is left behind by editors and package managers, or put out of the way.
const LEFT_OUT: [&str; 8] = [
    "~",
    ".bak",
    ".disabled",
    ".sample",
    ".rpmnew",
    ".rpmsave",
    ".rpmorig",
    ".swp",
];

const SET_BY_OTHERS: u32 = 0o022;
const STICKY: u32 = 0o1000;
const EXECUTABLE: u32 = 0o111;

/// Why there are no hooks at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum HooksError {
    #[error("could not read the hooks directory {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error("the hooks directory {0} is refused: {1} {2}")]
    Refused(PathBuf, PathBuf, Reason),
}

/// A file in the directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    Hook(PathBuf),
    /// It is not meant to be run.
    Skipped(PathBuf),
    /// It is meant to be run, but somebody else could have written it.
    Refused {
        path: PathBuf,
        reason: Reason,
    },
}

impl Finding {
    fn path(&self) -> &Path {
        match self {
            Self::Hook(path) | Self::Skipped(path) | Self::Refused { path, .. } => path,
        }
    }
}

/// Why a file is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Writable(u32),
    Owner(u32),
    Link,
    Gone,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Writable(mode) => write!(f, "is writable by others (mode {:04o})", mode & 0o7777),
            Self::Owner(uid) => {
                write!(f, "belongs to user {uid}, who is neither root nor this one")
            }
            Self::Link => f.write_str("is a symbolic link"),
            Self::Gone => f.write_str("cannot be looked at"),
        }
    }
}

/// The files of `dir` in the order in which they are run: that of the bytes of their names.
///
/// # Errors
/// When the directory cannot be read, or others could put files into it.
pub(crate) fn find(dir: &Path) -> Result<Vec<Finding>, HooksError> {
    let failed = |error| HooksError::Read(dir.into(), error);
    let dir = dir.canonicalize().map_err(failed)?;
    let user = rustix::process::geteuid().as_raw();
    for (depth, ancestor) in dir.ancestors().enumerate() {
        let metadata = fs::metadata(ancestor).map_err(failed)?;
        // In a sticky directory above, others may add files but not move this one away.
        let sticky = depth > 0 && metadata.mode() & STICKY != 0;
        if let Some(reason) = distrust(&metadata, user, sticky) {
            return Err(HooksError::Refused(dir.clone(), ancestor.into(), reason));
        }
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).map_err(failed)? {
        found.push(judge(entry.map_err(failed)?.path(), user));
    }
    found.sort_by(|a, b| {
        let bytes = |finding: &Finding| finding.path().as_os_str().as_bytes().to_vec();
        bytes(a).cmp(&bytes(b))
    });
    Ok(found)
}

fn judge(path: PathBuf, user: u32) -> Finding {
    if is_left_out(path.file_name().unwrap_or_default()) {
        return Finding::Skipped(path);
    }
    let Ok(metadata) = fs::symlink_metadata(&path) else {
        let reason = Reason::Gone;
        return Finding::Refused { path, reason };
    };
    if metadata.is_symlink() {
        let reason = Reason::Link;
        return Finding::Refused { path, reason };
    }
    if !metadata.is_file() || metadata.mode() & EXECUTABLE == 0 {
        return Finding::Skipped(path);
    }
    match distrust(&metadata, user, false) {
        Some(reason) => Finding::Refused { path, reason },
        None => Finding::Hook(path),
    }
}

fn is_left_out(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b".")
        || LEFT_OUT.iter().any(|end| name.ends_with(end.as_bytes()))
        || name.windows(6).any(|part| part == b".dpkg-")
}

/// Why somebody but root and `user` could change it.
fn distrust(metadata: &Metadata, user: u32, sticky: bool) -> Option<Reason> {
    if ![0, user].contains(&metadata.uid()) {
        return Some(Reason::Owner(metadata.uid()));
    }
    (metadata.mode() & SET_BY_OTHERS != 0 && !sticky).then_some(Reason::Writable(metadata.mode()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    fn directory(files: &[(&str, u32)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in files {
            let path = dir.path().join(name);
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
        }
        dir
    }

    fn hooks(dir: &Path) -> Vec<String> {
        find(dir)
            .unwrap()
            .iter()
            .filter(|finding| matches!(finding, Finding::Hook(_)))
            .map(|hook| {
                hook.path()
                    .file_name()
                    .unwrap()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect()
    }

    #[test]
    fn hooks_come_in_the_order_of_their_names_bytes() {
        let names = ["9", "10-b", "10-a", "B", "a", "10-a.sh"];
        let dir = directory(&names.map(|name| (name, 0o755)));
        assert_eq!(
            hooks(dir.path()),
            ["10-a", "10-a.sh", "10-b", "9", "B", "a"]
        );
    }

    #[test]
    fn what_is_not_meant_to_be_run_is_left_out() {
        let names = [
            ".hidden",
            "a~",
            "b.bak",
            "c.disabled",
            "d.dpkg-new",
            "e.sample",
            "f.swp",
        ];
        let dir = directory(&names.map(|name| (name, 0o755)));
        fs::create_dir(dir.path().join("directory")).unwrap();
        fs::write(dir.path().join("not-executable"), "").unwrap();
        let found = find(dir.path()).unwrap();
        assert_eq!(found.len(), names.len() + 2);
        let all = found
            .iter()
            .all(|finding| matches!(finding, Finding::Skipped(_)));
        assert!(all, "{found:?}");
    }

    #[test]
    fn a_hook_that_others_may_write_to_is_refused() {
        let dir = directory(&[("group", 0o775), ("others", 0o757), ("mine", 0o700)]);
        let found = find(dir.path()).unwrap();
        assert_eq!(hooks(dir.path()), ["mine"]);
        let refused = found.iter().filter(|finding| {
            matches!(
                finding,
                Finding::Refused {
                    reason: Reason::Writable(_),
                    ..
                }
            )
        });
        assert_eq!(refused.count(), 2);
    }

    #[test]
    fn a_symbolic_link_is_refused() {
        let dir = directory(&[]);
        symlink("/bin/true", dir.path().join("link")).unwrap();
        let found = find(dir.path()).unwrap();
        assert!(matches!(
            found[..],
            [Finding::Refused {
                reason: Reason::Link,
                ..
            }]
        ));
    }

    #[test]
    fn a_hook_of_another_user_is_refused() {
        let dir = directory(&[("theirs", 0o755)]);
        if chown(dir.path().join("theirs"), Some(65534), None).is_err() {
            // Not by `eprintln!`, which is kept from sight when a test passes.
            let _ = writeln!(io::stderr(), "needs the right to give files away; left out");
            return;
        }
        let found = find(dir.path()).unwrap();
        assert!(matches!(
            found[..],
            [Finding::Refused {
                reason: Reason::Owner(65534),
                ..
            }]
        ));
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let dir = directory(&[("hook", 0o755)]);
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        find(&inner).unwrap();
        for (path, mode) in [(inner.as_path(), 0o1777), (dir.path(), 0o777)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(find(&inner), Err(HooksError::Refused(..))));
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let error = find(Path::new("/nonexistent/hooks")).unwrap_err();
        assert!(matches!(error, HooksError::Read(..)));
    }
}
