//! Files of lines to which several processes may write.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use vmgenie_snapshot::own_files;

/// Whole lines into a file or named pipe, one write each: other processes may write to it, too.
///
/// A named pipe takes a line of up to `PIPE_BUF` (4,096) bytes whole or not at all, a longer one also in part, and so does a full disk
/// with any. The line after such a torn one then begins with a line break, so that no more than one is lost to its reader.
#[derive(Debug)]
pub(crate) struct LineFile {
    file: File,
    torn: AtomicBool,
}

impl LineFile {
    /// Opens a file to append to, or a named pipe without waiting for its reader.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: own_files::open_append(path)?,
            torn: AtomicBool::new(false),
        })
    }

    /// Writes `line`, which ends with a line break.
    ///
    /// # Errors
    /// It was not written, or not all of it.
    pub(crate) fn write_line(&self, line: &[u8]) -> io::Result<()> {
        let mended;
        let torn = self.torn.load(Ordering::Relaxed);
        let line = if torn {
            mended = [b"\n", line].concat();
            &mended
        } else {
            line
        };
        let written = loop {
            match (&self.file).write(line) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => break written?,
            }
        };
        // Not one byte is no tear, and mends none.
        if written > 0 {
            self.torn.store(written < line.len(), Ordering::Relaxed);
        }
        match written == line.len() {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "only {written} of {} bytes of a line could be written",
                line.len()
            ))),
        }
    }
}

impl AsFd for LineFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_a_pipe_took_in_part_does_not_spoil_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let made = rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        );
        made.unwrap();
        let file = LineFile::open(&path).unwrap();
        let mut reader = File::open(&path).unwrap();
        let (short, long) = (
            [&[b's'; 4095][..], b"\n"].concat(),
            [&[b'l'; 9999][..], b"\n"].concat(),
        );
        // Short ones are taken whole or not at all.
        let mut taken = 0;
        while file.write_line(&short).is_ok() {
            taken += 1;
        }
        let mut buffer = vec![0; 4096];
        std::io::Read::read_exact(&mut reader, &mut buffer).unwrap();
        // There is room for a part of a long one.
        let told = file.write_line(&long).unwrap_err().to_string();
        assert_eq!(told, "only 4096 of 10000 bytes of a line could be written");
        assert!(file.write_line(&short).is_err());
        let mut text = Vec::new();
        while text.len() < taken * 4096 {
            let len = std::io::Read::read(&mut reader, &mut buffer).unwrap();
            text.extend_from_slice(&buffer[..len]);
        }
        file.write_line(b"whole\n").unwrap();
        let len = std::io::Read::read(&mut reader, &mut buffer).unwrap();
        text.extend_from_slice(&buffer[..len]);
        let lines: Vec<_> = text.split(|byte| *byte == b'\n').collect();
        assert_eq!(lines.len(), taken + 2);
        assert!(
            lines[..taken - 1]
                .iter()
                .all(|line| **line == short[..4095])
        );
        assert_eq!(lines[taken - 1], &long[..4096], "the torn one");
        assert_eq!(lines[taken..], [&b"whole"[..], b""]);
    }
}
