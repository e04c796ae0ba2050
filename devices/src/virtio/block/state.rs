//! What a snapshot holds of a disk, and what backend it fits.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{F_ALWAYS, F_RO, F_SOMETIMES};
use crate::DeviceState;

/// What a snapshot holds of a disk: what the driver was told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// The name.
    pub id: String,
    /// The features on offer, without those of the transport.
    pub features: u64,
    /// The size in sectors.
    pub sectors: u64,
}

impl DeviceState for BlockState {
    const VERSION: u16 = 1;
}

impl BlockState {
    /// Whether a disk can have saved this which the guest may not write to, or may.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn check(&self, read_only: bool) -> Result<(), BlockError> {
        let features = self.features;
        if features & F_ALWAYS != F_ALWAYS || features & !(F_ALWAYS | F_SOMETIMES) != 0 {
            return Err(BlockError::Features {
                id: self.id.clone(),
                features,
            });
        }
        check_access(&self.id, features, read_only)
    }
}

/// Why a disk's state or its new backend was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BlockError {
    /// No such features.
    #[error("the disk {id:?} cannot have offered the features {features:#x}")]
    Features {
        /// The disk's name.
        id: String,
        /// The features.
        features: u64,
    },
    /// The driver was told something else.
    #[error(
        "the guest knows the disk {id:?} as {}, and its file was opened {}",
        access(!*.read_only), access(*.read_only)
    )]
    Access {
        /// The disk's name.
        id: String,
        /// The new backend is read-only.
        read_only: bool,
    },
}

fn access(read_only: bool) -> &'static str {
    if read_only { "read-only" } else { "writable" }
}

/// Whether the driver was told of this access.
pub(super) fn check_access(id: &str, features: u64, read_only: bool) -> Result<(), BlockError> {
    if read_only == (features & F_RO != 0) {
        return Ok(());
    }
    Err(BlockError::Access {
        id: id.to_owned(),
        read_only,
    })
}
