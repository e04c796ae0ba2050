//! `--data`: the string by which a guest knows who it is.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use thiserror::Error;

use vmgenie_machine::config::{InstanceData, InstanceDataError, MAX_INSTANCE_DATA_LEN};

/// Why there is no such string.
#[derive(Debug, Error)]
pub(super) enum DataError {
    #[error("could not read {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error("{0} is no UTF-8 text")]
    NoText(PathBuf),
    #[error("the guest cannot be given this string")]
    Refused(#[from] InstanceDataError),
}

/// What `text` says: itself, or behind an `@` the file whose content it is.
pub(super) fn instance_data(text: &str) -> Result<InstanceData, DataError> {
    let Some(path) = text.strip_prefix('@').map(PathBuf::from) else {
        return Ok(InstanceData::new(text)?);
    };
    let mut content = Vec::new();
    // One byte more than there may be, so that too much is told as such.
    let limit = MAX_INSTANCE_DATA_LEN as u64 + 1;
    File::open(&path)
        .and_then(|file| file.take(limit).read_to_end(&mut content))
        .map_err(|error| DataError::Read(path.clone(), error))?;
    if content.len() > MAX_INSTANCE_DATA_LEN {
        return Err(InstanceDataError::TooLong(content.len()).into());
    }
    let content = String::from_utf8(content).map_err(|_| DataError::NoText(path))?;
    Ok(InstanceData::new(content)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_is_itself_or_a_files_content() {
        assert_eq!(instance_data("web-1").unwrap().as_str(), "web-1");
        assert_eq!(instance_data("").unwrap().as_str(), "");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("data");
        let of_file = || instance_data(&format!("@{}", file.display()));
        assert!(matches!(of_file(), Err(DataError::Read(..))));
        std::fs::write(&file, "{\"name\": \"web\"}\n").unwrap();
        assert_eq!(of_file().unwrap().as_str(), "{\"name\": \"web\"}\n");
        std::fs::write(&file, "x".repeat(MAX_INSTANCE_DATA_LEN)).unwrap();
        assert!(of_file().is_ok());
        std::fs::write(&file, "x".repeat(MAX_INSTANCE_DATA_LEN + 1)).unwrap();
        assert!(matches!(of_file(), Err(DataError::Refused(_))));
        std::fs::write(&file, [0xff]).unwrap();
        assert!(matches!(of_file(), Err(DataError::NoText(_))));
        assert!(matches!(
            instance_data("a\0"),
            Err(DataError::Refused(InstanceDataError::Zero(1)))
        ));
    }
}
