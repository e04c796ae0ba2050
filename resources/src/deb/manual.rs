//! Manual pages as packages have them.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;

/// The pages that `write` writes into a directory, compressed: their places and contents.
pub(crate) fn pages(write: impl FnOnce(&Path) -> Result<()>) -> Result<Vec<(String, Vec<u8>)>> {
    let dir = tempfile::tempdir().context("could not make a directory for the manual")?;
    write(dir.path())?;
    let read = || -> std::io::Result<Vec<(String, Vec<u8>)>> {
        let mut pages = Vec::new();
        for entry in fs::read_dir(dir.path())? {
            let entry = entry?;
            let name = entry.file_name();
            let place = format!("usr/share/man/man1/{}.gz", name.to_string_lossy());
            // No time and no name in it: the same page is the same file.
            let mut packed = GzEncoder::new(Vec::new(), Compression::best());
            packed.write_all(&fs::read(entry.path())?)?;
            pages.push((place, packed.finish()?));
        }
        pages.sort();
        Ok(pages)
    };
    read().context("could not read the manual pages")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_packed_in_order_and_the_same_each_time() {
        let write = |dir: &Path| {
            fs::write(dir.join("b.1"), "b").unwrap();
            fs::write(dir.join("a.1"), "a").unwrap();
            Ok(())
        };
        let once = pages(write).unwrap();
        let places: Vec<&str> = once.iter().map(|(place, _)| place.as_str()).collect();
        assert_eq!(
            places,
            ["usr/share/man/man1/a.1.gz", "usr/share/man/man1/b.1.gz"]
        );
        assert_eq!(once, pages(write).unwrap());
    }
}
