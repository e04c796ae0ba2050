//! The cache: one directory per artefact, named by a hash of its recipe.
//!
//! An artefact is made in a directory beside its final place and renamed when it is complete, so
//! a name that exists is an artefact that is whole.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::lifetime::{self, OnSignal};
use crate::trees;

/// The prefix of directories in the making.
const PARTIAL: &str = ".partial-";
/// The prefix of directories of one run of a host.
const RUN: &str = ".run-";

/// The directory that holds all artefacts.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The user's cache: `$XDG_CACHE_HOME/vmgenie`, by default `~/.cache/vmgenie`.
    pub(crate) fn open() -> Result<Self> {
        let base = match std::env::var_os("XDG_CACHE_HOME") {
            Some(dir) if Path::new(&dir).is_absolute() => PathBuf::from(dir),
            _ => std::env::home_dir()
                .context("there is neither XDG_CACHE_HOME nor a home directory")?
                .join(".cache"),
        };
        Self::at(base.join("vmgenie"))
    }

    fn at(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).with_context(|| format!("could not make {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// Where the artefact `name` made by `recipe` is or will be. `recipe` is everything that the
    /// result depends on, as text.
    pub(crate) fn place(&self, name: &str, recipe: &str) -> PathBuf {
        let digest = Sha256::digest(recipe.as_bytes());
        self.dir.join(format!("{name}-{}", hex(&digest[..6])))
    }

    /// The place of a log file that outlives a failure.
    pub(crate) fn log(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join("logs");
        fs::create_dir_all(&dir).with_context(|| format!("could not make {}", dir.display()))?;
        Ok(dir.join(format!("{name}.log")))
    }

    /// Makes an artefact with `make`, which fills the directory given to it.
    pub(crate) fn make(&self, place: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let work = Scratch::new(&self.dir, PARTIAL)?;
        let inside = work.path().join("artefact");
        fs::create_dir(&inside).with_context(|| format!("could not make {}", inside.display()))?;
        make(&inside)?;
        trees::move_tree(&inside, place)
    }

    /// A directory for one run of a host, gone with the value.
    pub(crate) fn run_dir(&self) -> Result<Scratch> {
        Scratch::new(&self.dir, RUN)
    }

    /// Waits until no other setup works on this cache; the lock goes with the value.
    pub(crate) fn lock(&self) -> Result<File> {
        let path = self.dir.join("lock");
        let file =
            File::create(&path).with_context(|| format!("could not make {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => eprintln!("waiting for another setup to end"),
            Err(TryLockError::Error(e)) => return Err(e).context("could not lock the cache"),
        }
        file.lock().context("could not lock the cache")?;
        Ok(file)
    }

    /// Removes what runs that were killed have left: directories whose lock nobody holds.
    pub(crate) fn sweep(&self) -> Result<()> {
        let entries = fs::read_dir(&self.dir).context("could not list the cache")?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if (name.starts_with(PARTIAL) || name.starts_with(RUN)) && is_abandoned(&entry.path()) {
                trees::remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Bytes as text that a file's name may have.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the process that made a scratch directory is gone.
fn is_abandoned(dir: &Path) -> bool {
    match File::open(dir.join("lock")) {
        Ok(file) => file.try_lock().is_ok(),
        // Its maker may be between making the directory and making the lock.
        Err(_) => dir
            .metadata()
            .and_then(|m| m.modified())
            .is_ok_and(|made| made.elapsed().is_ok_and(|age| age.as_secs() > 60)),
    }
}

/// A directory that is removed when the value is dropped, when a signal ends the program, or by
/// the next run's [`Cache::sweep`].
pub(crate) struct Scratch {
    dir: PathBuf,
    _lock: File,
    _on_signal: OnSignal,
}

impl Scratch {
    fn new(parent: &Path, prefix: &str) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir_in(parent)
            .with_context(|| format!("could not make a directory in {}", parent.display()))?
            .keep();
        let lock = File::create(dir.join("lock")).context("could not make a lock file")?;
        lock.lock().context("could not lock a new directory")?;
        let doomed = dir.clone();
        let on_signal = lifetime::on_signal(move || {
            let _ = trees::remove_tree(&doomed);
        });
        Ok(Self {
            dir,
            _lock: lock,
            _on_signal: on_signal,
        })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = trees::remove_tree(&self.dir) {
            eprintln!("{error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("vmgenie")).unwrap();
        (dir, cache)
    }

    fn entries(cache: &Cache) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&cache.dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn another_recipe_is_another_place() {
        let (_dir, cache) = cache();
        assert_eq!(cache.place("a", "x"), cache.place("a", "x"));
        assert_ne!(cache.place("a", "x"), cache.place("a", "y"));
    }

    #[test]
    fn a_complete_artefact_is_all_that_remains() {
        let (_dir, cache) = cache();
        let place = cache.place("a", "x");
        cache
            .make(&place, |dir| Ok(fs::write(dir.join("f"), "1")?))
            .unwrap();
        assert_eq!(fs::read(place.join("f")).unwrap(), b"1");
        assert_eq!(entries(&cache).len(), 1);
    }

    #[test]
    fn a_failed_artefact_leaves_nothing() {
        let (_dir, cache) = cache();
        let place = cache.place("a", "x");
        let made = cache.make(&place, |dir| {
            fs::write(dir.join("f"), "1")?;
            anyhow::bail!("no")
        });
        assert!(made.is_err());
        assert_eq!(entries(&cache), Vec::<String>::new());
    }

    #[test]
    fn a_sweep_takes_what_the_dead_left_and_spares_the_living() {
        let (_dir, cache) = cache();
        let alive = cache.run_dir().unwrap();
        let dead = cache.dir.join(".run-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("lock"), "").unwrap();
        cache.sweep().unwrap();
        assert!(alive.path().exists());
        assert!(!dead.exists());
    }
}
