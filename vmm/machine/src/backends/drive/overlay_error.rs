//! What overlays are measured in, and why one cannot be used.

use std::io;

use thiserror::Error;

/// The unit in which the overlay holds data, in bytes: the page of the host's cache, and the block of the file systems below.
pub(super) const GRANULE: u64 = 4096;
/// The largest disk, in bytes: its bits take 128 MiB of memory.
pub(super) const MAX_LEN: u64 = 2 << 40;

/// Why an overlay cannot be used.
#[derive(Debug, Error)]
pub enum OverlayError {
    /// The base is too large.
    #[error("a drive of {0} bytes is too large for an overlay: {MAX_LEN} at most")]
    TooLarge(u64),
    /// The file system.
    #[error(
        "its file system does not tell exactly which parts of a file were written: put overlays on ext4, XFS, Btrfs or tmpfs with blocks of {GRANULE} bytes, tmpfs without huge pages"
    )]
    FileSystem,
    /// The file is something else.
    #[error("it is no overlay of this vmgenie's")]
    NoOverlay,
    /// It belongs to another base.
    #[error("it is an overlay of a drive of {overlay} bytes, and this one has {base}")]
    OtherBase {
        /// Bytes, by the overlay.
        overlay: u64,
        /// Bytes of the base.
        base: u64,
    },
    /// A part of it is missing.
    #[error("its end is missing: what was written there would be the base's again")]
    Short,
    /// The file.
    #[error(transparent)]
    Io(#[from] io::Error),
}
