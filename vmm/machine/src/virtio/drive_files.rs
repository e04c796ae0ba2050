//! What a snapshot says of the files behind its drives.

use serde::{Deserialize, Serialize};
use vmgenie_snapshot::{Part, SnapshotId};

use crate::backends::found::FileStamp;

/// What the name of the copy that snapshot `id` has of a drive ends with.
pub(super) fn copy_suffix(drive: &str, id: SnapshotId) -> String {
    format!(".{drive}.{id}.drive")
}

/// What is behind one drive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveFileState {
    /// The name of the snapshot's own copy, in the directory of the state file: of the overlay if the drive has one, else of the drive's file.
    pub copy: Option<String>,
    /// The drive's file, or its copy.
    pub file: Option<FileStamp>,
    /// The overlay, or its copy.
    pub overlay: Option<FileStamp>,
}

/// One part for each drive, in the order of their slots.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DriveFilePart(pub DriveFileState);

impl Part for DriveFilePart {
    const TAG: &'static str = "virtio-drive-file";
    const VERSION: u16 = 1;
}
