//! Initramfs archives: newc cpio, as the kernel unpacks it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use cpio::newc::{Builder, ModeFileType, trailer};

/// An archive in the making. Parent directories are added as they are needed.
pub(crate) struct Archive<W: Write> {
    out: W,
    written: u64,
    directories: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            written: 0,
            directories: BTreeSet::new(),
        }
    }

    /// Adds a file with these contents and these permission bits. `path` is absolute in the guest.
    pub(crate) fn file(&mut self, path: &str, contents: &[u8], mode: u32) -> Result<()> {
        let builder = Builder::new(self.name(path)?)
            .mode(mode)
            .set_mode_file_type(ModeFileType::Regular);
        self.entry(builder, contents)
            .with_context(|| format!("could not archive {path}"))
    }

    /// Adds a copy of a file of this machine, which stays executable if it is.
    pub(crate) fn copy(&mut self, path: &str, from: &Path) -> Result<()> {
        let read = || -> io::Result<_> { Ok((fs::read(from)?, fs::metadata(from)?)) };
        let (contents, metadata) =
            read().with_context(|| format!("could not read {}", from.display()))?;
        self.file(path, &contents, metadata.permissions().mode() & 0o777)
    }

    /// Adds a symbolic link.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        let builder = Builder::new(self.name(path)?)
            .mode(0o777)
            .set_mode_file_type(ModeFileType::Symlink);
        self.entry(builder, target.as_bytes())
            .with_context(|| format!("could not archive {path}"))
    }

    /// Adds a directory.
    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        let name = self.name(path)?.to_owned();
        self.make_directory(&name)
            .with_context(|| format!("could not archive {path}"))
    }

    /// Adds a character device.
    pub(crate) fn character_device(&mut self, path: &str, major: u32, minor: u32) -> Result<()> {
        let builder = Builder::new(self.name(path)?)
            .mode(0o600)
            .rdev_major(major)
            .rdev_minor(minor)
            .set_mode_file_type(ModeFileType::Char);
        self.entry(builder, &[])
            .with_context(|| format!("could not archive {path}"))
    }

    /// Ends the archive. Its length is a multiple of 512, so that another may follow it.
    pub(crate) fn finish(mut self) -> Result<W> {
        let write = |archive: &mut Self| -> io::Result<()> {
            let mut end = Vec::new();
            trailer(&mut end)?;
            archive.put(&end)?;
            let rest = archive.written.next_multiple_of(512) - archive.written;
            archive.put(&vec![0; rest as usize])?;
            archive.out.flush()
        };
        write(&mut self).context("could not end the archive")?;
        Ok(self.out)
    }

    /// The name in the archive of an absolute path, whose parents are added first.
    fn name<'a>(&mut self, path: &'a str) -> Result<&'a str> {
        let name = path.trim_matches('/');
        ensure!(
            path.starts_with('/') && !name.is_empty() && name.split('/').all(|part| part != ".."),
            "{path:?} is no absolute path of a file in an archive"
        );
        for (at, _) in name.match_indices('/') {
            self.make_directory(&name[..at])
                .with_context(|| format!("could not archive the parents of {path}"))?;
        }
        Ok(name)
    }

    fn make_directory(&mut self, name: &str) -> io::Result<()> {
        if !self.directories.insert(name.to_owned()) {
            return Ok(());
        }
        let builder = Builder::new(name)
            .mode(0o755)
            .nlink(2)
            .set_mode_file_type(ModeFileType::Directory);
        self.entry(builder, &[])
    }

    fn entry(&mut self, builder: Builder, contents: &[u8]) -> io::Result<()> {
        let size = u32::try_from(contents.len())
            .map_err(|_| io::Error::other("a file in an archive is smaller than 4 GiB"))?;
        let mut entry = Vec::new();
        let mut writer = builder.write(&mut entry, size);
        writer.write_all(contents)?;
        writer.finish()?;
        self.put(&entry)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;
    use std::io::Read;

    /// Name, mode and contents of each entry.
    fn entries(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            let mut reader = Reader::new(archive).unwrap();
            if reader.entry().is_trailer() {
                return found;
            }
            let mut contents = Vec::new();
            reader.read_to_end(&mut contents).unwrap();
            let entry = reader.entry();
            found.push((entry.name().to_owned(), entry.mode(), contents));
            archive = reader.finish().unwrap();
        }
    }

    #[test]
    fn parents_come_once_and_before_their_children() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/a/b/c", b"odd", 0o755).unwrap();
        archive.file("/a/b/d", b"", 0o644).unwrap();
        archive.symlink("/a/e", "b/c").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(
            entries(&bytes),
            [
                ("a".into(), 0o040755, vec![]),
                ("a/b".into(), 0o040755, vec![]),
                ("a/b/c".into(), 0o100755, b"odd".to_vec()),
                ("a/b/d".into(), 0o100644, vec![]),
                ("a/e".into(), 0o120777, b"b/c".to_vec()),
            ]
        );
    }

    #[test]
    fn an_archive_is_a_whole_number_of_blocks() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/x", &[1; 777], 0o600).unwrap();
        assert_eq!(archive.finish().unwrap().len() % 512, 0);
    }

    #[test]
    fn a_device_keeps_its_numbers() {
        let mut archive = Archive::new(Vec::new());
        archive.character_device("/dev/console", 5, 1).unwrap();
        let bytes = archive.finish().unwrap();
        let dev = Reader::new(&bytes[..]).unwrap().finish().unwrap();
        let console = Reader::new(dev).unwrap();
        let entry = console.entry();
        assert_eq!(
            (entry.mode(), entry.rdev_major(), entry.rdev_minor()),
            (0o020600, 5, 1)
        );
    }

    #[test]
    fn a_path_that_leaves_the_archive_is_refused() {
        let mut archive = Archive::new(Vec::new());
        for path in ["relative", "/", "/a/../../b"] {
            assert!(archive.file(path, b"", 0o644).is_err(), "{path}");
        }
    }
}
