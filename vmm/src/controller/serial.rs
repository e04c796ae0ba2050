//! Where the guest's serial console goes: standard output, or what PUT `/serial` has named.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use thiserror::Error;
use vmgenie_machine::console::ConsoleOutput;
use vmgenie_snapshot::own_files;

use super::Controller;
use super::command::{CommandResult, Reply};

#[derive(Debug, Error)]
#[error("could not open {0:?} for the guest's serial console")]
struct SerialError(PathBuf, #[source] io::Error);

/// Standard output by default.
#[derive(Debug, Default)]
pub(super) struct SerialOutput {
    path: Option<PathBuf>,
    /// Open since a machine was made. One that boots again goes on where the last one was.
    file: Option<File>,
}

impl SerialOutput {
    /// The output of a machine.
    pub(super) fn open(&mut self) -> io::Result<ConsoleOutput> {
        let Some(path) = &self.path else {
            return ConsoleOutput::stdout();
        };
        let file = match self.file.take() {
            Some(file) => file,
            None => own_files::open_at_front(path)
                .map_err(|error| io::Error::other(SerialError(path.clone(), error)))?,
        };
        let output = ConsoleOutput::to_file(file.try_clone()?.into());
        self.file = Some(file);
        Ok(output)
    }
}

impl Controller {
    pub(super) fn set_serial(&mut self, path: Option<PathBuf>) -> CommandResult {
        self.before_start("where the serial console goes")?;
        self.serial = SerialOutput { path, file: None };
        Ok(Reply::Done)
    }

    /// Is standard input the guest's? It is not if its output goes to a file.
    pub(crate) fn reads_input(&self) -> bool {
        self.serial.path.is_none()
    }
}
