//! The string by which this machine knows who it is among the clones of a snapshot: vmgenie's instance data.

use std::fs::File;
use std::io::{self, Read};

use serde_json::json;

use crate::Failure;
use crate::args::Cli;
use crate::output::line;

/// Where the kernel's driver `qemu_fw_cfg` shows it.
pub(crate) const FILE: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/org.vmgenie.instance/raw";
/// Its length in bytes; what the string leaves is zero.
const LEN: u64 = 4096;

/// How often the file is read at most.
const READS: usize = 16;

pub(crate) fn data(cli: &Cli) -> Result<(), Failure> {
    let text = instance().map_err(Failure::Data)?;
    Ok(line(cli.json, &json!({ "data": text }), &text)?)
}

/// The string now.
pub(crate) fn instance() -> io::Result<String> {
    settled(|| File::open(FILE).and_then(read))
}

/// What two reads in a row agree on. A read in the midst of which the machine was snapshotted has the beginning of one string and the
/// end of another.
fn settled(mut read: impl FnMut() -> io::Result<String>) -> io::Result<String> {
    let mut last = read();
    for _ in 1..READS {
        let next = read();
        match (last, next) {
            (Ok(one), Ok(other)) if one == other => return Ok(one),
            // Two strings spliced within a character are no text.
            (Err(error), Err(_)) => return Err(error),
            (_, next) => last = next,
        }
    }
    Err(io::Error::other("it changes all the time"))
}

/// Not to the end: the driver would ask for each of the bytes once more, only to find that there is none behind them.
fn read(file: impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(LEN).read_to_end(&mut bytes)?;
    let end = bytes.iter().position(|byte| *byte == 0);
    bytes.truncate(end.unwrap_or(bytes.len()));
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_that_changes_while_it_is_read_is_read_again() {
        let spliced = || Err(io::ErrorKind::InvalidData.into());
        let is = |text: &str| Ok(text.to_owned());
        let mut reads = [is("web-2"), spliced(), is("app-2"), is("app-2")].into_iter();
        assert_eq!(settled(|| reads.next().unwrap()).unwrap(), "app-2");
        assert_eq!(settled(|| is("web-1")).unwrap(), "web-1");
        assert!(settled(spliced).is_err());
        let mut turn = 0;
        let changing = || {
            turn += 1;
            is(&turn.to_string())
        };
        assert!(settled(changing).is_err());
    }

    #[test]
    fn the_string_ends_at_the_first_zero_or_with_the_file() {
        let mut file = b"web-1".to_vec();
        file.resize(4096, 0);
        assert_eq!(read(&file[..]).unwrap(), "web-1");
        assert_eq!(read(&[0; 4096][..]).unwrap(), "");
        assert_eq!(read(&[b'x'; 5000][..]).unwrap(), "x".repeat(4096));
        assert!(read(&[0xff, 0][..]).is_err());
    }
}
