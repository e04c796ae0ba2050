//! The directories above one of ours: whoever can exchange one of them leads the path elsewhere.
//!
//! As `StrictModes` of sshd(8): from `/` on, each belongs to this user or to the superuser, and nobody else may write to it
//! but with the sticky bit. Links on the way must belong to the same, and so must the way that they lead.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::{TrustError, others_may_change};

/// As many links as the kernel follows.
pub(super) const MAX_LINKS: usize = 40;

/// Checks that nobody else can lead `path` elsewhere. What it leads to is not looked at, and may be missing with directories
/// above it.
///
/// # Errors
/// A directory above it, or a link on the way, is not trusted.
pub fn check_way(path: &Path) -> Result<(), TrustError> {
    check_way_for(path, &Owners::of_this_process()?)
}

fn check_way_for(path: &Path, owners: &Owners) -> Result<(), TrustError> {
    let absolute =
        std::path::absolute(path).map_err(|error| TrustError::Look(path.to_owned(), error))?;
    let last = absolute.file_name().is_some();
    let mut ahead = names(&absolute);
    if last {
        ahead.remove(0);
    }
    let mut way = Way::new(owners)?;
    while let Some(name) = ahead.pop() {
        match way.step(&name) {
            Ok(more) => ahead.extend(more),
            // The caller makes it, or is told that it is not there. What `..` behind it would lead to is not known.
            Err(TrustError::Look(_, error)) if is_missing(&error) && !ahead.contains(&up()) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn up() -> OsString {
    OsStr::new("..").to_owned()
}

/// The names in a path, the last one first.
fn names(path: &Path) -> Vec<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(up()),
        _ => None,
    };
    path.components().rev().filter_map(name).collect()
}

/// Who may own a directory above one of ours.
struct Owners([Option<u32>; 3]);

impl Owners {
    fn of_this_process() -> Result<Self, TrustError> {
        let sudo = std::env::var("SUDO_UID").ok();
        Self::of(
            rustix::process::geteuid().as_raw(),
            sudo.and_then(|uid| uid.parse().ok()),
        )
    }

    /// Those of the user `own`, who runs this by sudo(8) as the user `sudo` perhaps: that user may act as the superuser, and
    /// has directories of the superuser's in the home directory then.
    fn of(own: u32, sudo: Option<u32>) -> Result<Self, TrustError> {
        // The superuser's, who has another number in a user namespace.
        let root = fs::symlink_metadata("/");
        let root = root.map_err(|error| TrustError::Look("/".into(), error))?;
        let sudo = sudo.filter(|_| own == 0);
        Ok(Self([Some(own), Some(root.uid()), sudo]))
    }

    fn has(&self, uid: u32) -> bool {
        uid == 0 || self.0.contains(&Some(uid))
    }
}

/// How far a path has been followed.
struct Way<'a> {
    owners: &'a Owners,
    /// No link is in it, and nobody else can exchange anything in it.
    at: PathBuf,
    links: usize,
}

impl<'a> Way<'a> {
    fn new(owners: &'a Owners) -> Result<Self, TrustError> {
        let mut way = Self {
            owners,
            at: PathBuf::new(),
            links: 0,
        };
        way.step(OsStr::new("/"))?;
        Ok(way)
    }

    /// Goes on to `name`. If it is a link, the names that it says come next, the last one first.
    fn step(&mut self, name: &OsStr) -> Result<Vec<OsString>, TrustError> {
        if name == ".." {
            self.at.pop();
            return Ok(Vec::new());
        }
        self.at.push(name);
        let at = || self.at.clone();
        let look = |error| TrustError::Look(at(), error);
        let metadata = fs::symlink_metadata(&self.at).map_err(look)?;
        let (uid, mode) = (metadata.uid(), metadata.mode() & 0o7777);
        if !self.owners.has(uid) {
            return Err(TrustError::Above { path: at(), uid });
        }
        if metadata.is_symlink() {
            let to = fs::read_link(&self.at).map_err(look)?;
            self.links += 1;
            if self.links > MAX_LINKS {
                return Err(look(io::Error::from_raw_os_error(libc::ELOOP)));
            }
            self.at.pop();
            if to.is_absolute() {
                self.at = PathBuf::from("/");
            }
            return Ok(names(&to));
        }
        match metadata.is_dir() && others_may_change(mode) {
            true => Err(TrustError::Writable { path: at(), mode }),
            false => Ok(Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

    use super::*;
    use crate::not_looked_at::not_looked_at;
    use crate::own_files::is_trusted_dir;

    const NOBODY: u32 = 65534;

    /// What is above it is looked at, with whose eyes; which directory is to blame.
    fn blamed(path: &Path, sudo: Option<u32>) -> Option<PathBuf> {
        let owners = Owners::of(rustix::process::geteuid().as_raw(), sudo).unwrap();
        match check_way_for(path, &owners) {
            Ok(()) => None,
            Err(TrustError::Above { path, .. } | TrustError::Writable { path, .. }) => Some(path),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_directory_below_one_that_others_may_change_is_not_trusted() {
        let place = tempfile::tempdir().unwrap();
        let place = fs::canonicalize(place.path()).unwrap();
        let above = place.join("m");
        fs::create_dir_all(above.join("between/snap")).unwrap();
        let below = above.join("between/snap");
        for (mode, good) in [
            (0o755, true),
            (0o775, false),
            (0o757, false),
            (0o1777, true),
        ] {
            fs::set_permissions(&above, Permissions::from_mode(mode)).unwrap();
            let expected = (!good).then(|| above.clone());
            for path in [below.clone(), above.join("new/dir"), above.join("./new")] {
                assert_eq!(blamed(&path, None), expected, "{mode:o} {path:?}");
            }
            assert_eq!(blamed(&above, None), None, "it is not above itself");
        }
    }

    #[test]
    fn a_directory_below_another_users_is_not_trusted_but_below_that_of_who_has_run_sudo() {
        let place = tempfile::tempdir().unwrap();
        let place = fs::canonicalize(place.path()).unwrap();
        let (theirs, link) = (place.join("m"), place.join("link"));
        fs::create_dir_all(theirs.join("snap")).unwrap();
        symlink("m/snap", &link).unwrap();
        if chown(&theirs, Some(NOBODY), None).is_err() {
            not_looked_at("only root may give files away");
            return;
        }
        let expected = Some(theirs.clone());
        for path in [
            theirs.join("snap"),
            theirs.join("snap/below"),
            link.join("below"),
            place.join("link/../snap"),
        ] {
            assert_eq!(blamed(&path, None), expected, "{path:?}");
            assert_eq!(blamed(&path, Some(1)), expected, "{path:?}");
            assert_eq!(blamed(&path, Some(NOBODY)), None, "{path:?}");
        }
        // A link of theirs is one that they can change.
        chown(&theirs, Some(0), None).unwrap();
        assert_eq!(blamed(&link.join("below"), None), None);
        lchown(&link, Some(NOBODY), None).unwrap();
        assert_eq!(blamed(&link.join("below"), None), Some(link));
    }

    #[test]
    fn a_directory_for_files_of_ours_is_looked_at_with_those_above_it() {
        let place = tempfile::tempdir().unwrap();
        let above = place.path().join("m");
        let below = above.join("runtime");
        fs::create_dir_all(&below).unwrap();
        for (mode, good) in [(0o755, true), (0o777, false), (0o1777, true)] {
            fs::set_permissions(&above, Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_trusted_dir(&below), good, "{mode:o}");
        }
        fs::set_permissions(&below, Permissions::from_mode(0o777)).unwrap();
        assert!(!is_trusted_dir(&below));
        assert!(!is_trusted_dir(&above.join("none")));
    }

    #[test]
    fn what_is_behind_a_missing_directory_or_links_in_a_circle_is_not_taken_for_good() {
        let place = tempfile::tempdir().unwrap();
        check_way(&place.path().join("none/of/them")).unwrap();
        symlink("round", place.path().join("round")).unwrap();
        for path in ["none/../dir/file", "round/file"] {
            let error = check_way(&place.path().join(path)).unwrap_err();
            assert!(matches!(error, TrustError::Look(..)), "{path}: {error}");
        }
        check_way(Path::new("/")).unwrap();
        check_way(Path::new("a-name-alone")).unwrap();
    }
}
