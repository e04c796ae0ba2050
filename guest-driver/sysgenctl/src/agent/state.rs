//! What an agent leaves for the next one: the counter that it acknowledged last, and a mark while services are
//! quiesced.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::AgentError;

/// The counter in the state file; nothing if there is no file yet.
pub(super) fn load(path: &Path) -> Result<Option<u32>, AgentError> {
    match fs::read_to_string(path) {
        Ok(text) => match text.trim().parse() {
            Ok(generation) => Ok(Some(generation)),
            Err(_) => Err(AgentError::BadState(path.into())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AgentError::ReadState(path.into(), error)),
    }
}

/// Replaces the state file in one step.
pub(super) fn save(path: &Path, generation: u32) -> Result<(), AgentError> {
    let mut beside = path.to_path_buf().into_os_string();
    beside.push(".new");
    fs::write(&beside, format!("{generation}\n"))
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|error| AgentError::WriteState(path.into(), error))
}

/// A file that is there from before the first hook of `quiesce.d` until those of `resume.d` have succeeded.
#[derive(Debug)]
pub(super) struct Mark(PathBuf);

impl Mark {
    pub(super) fn below(run: &Path) -> Self {
        Self(run.join("quiesced"))
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.exists()
    }

    pub(super) fn set(&self) -> io::Result<()> {
        if let Some(directory) = self.0.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&self.0, "")
    }

    /// One that cannot be removed makes the next agent run `resume.d` once more.
    pub(super) fn clear(&self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_file_keeps_the_counter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        assert_eq!(load(&path).unwrap(), None);
        for generation in [0, 7, u32::MAX] {
            save(&path, generation).unwrap();
            assert_eq!(load(&path).unwrap(), Some(generation));
        }
    }

    #[test]
    fn a_damaged_state_file_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        fs::write(&path, "minus one").unwrap();
        assert!(matches!(load(&path), Err(AgentError::BadState(_))));
    }

    #[test]
    fn a_mark_makes_its_directory_and_is_there_until_it_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let mark = Mark::below(&dir.path().join("run"));
        assert!(!mark.is_set());
        mark.set().unwrap();
        assert!(mark.is_set());
        mark.clear();
        assert!(!mark.is_set());
    }
}
