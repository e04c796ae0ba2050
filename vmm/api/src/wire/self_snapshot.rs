//! The wire types of `/self-snapshot`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
#[cfg(feature = "schema")]
use utoipa::ToSchema;

/// PUT `/self-snapshot`: the guest may ask for snapshots of itself. Ours; without this request it may not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[cfg_attr(feature = "strict", serde(deny_unknown_fields))]
pub struct SelfSnapshot {
    /// Where they go, each into a directory of its own that is named by its number, from 1 on. It is made when it is not there.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub directory: PathBuf,
    /// How many there may be, over all reboots of this process's machine: 1 to [`MAX_SELF_SNAPSHOTS`].
    #[serde(default = "SelfSnapshot::default_count")]
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 10_000, default = 1))]
    pub count: u32,
    /// How long it takes at least from one that is begun to the next, in milliseconds.
    #[serde(default = "SelfSnapshot::default_interval_ms")]
    #[cfg_attr(feature = "schema", schema(default = 10_000))]
    pub interval_ms: u64,
    /// How long the guest may take until all its CPUs stand still, in milliseconds: 1 to [`MAX_QUIESCE_MS`].
    ///
    /// [`MAX_QUIESCE_MS`]: super::MAX_QUIESCE_MS
    #[serde(default = "SelfSnapshot::default_quiesce_ms")]
    #[cfg_attr(
        feature = "schema",
        schema(minimum = 1, maximum = 600_000, default = 10_000)
    )]
    pub quiesce_ms: u64,
}

/// The most snapshots that a guest may be let ask for.
pub const MAX_SELF_SNAPSHOTS: u32 = 10_000;

impl SelfSnapshot {
    fn default_count() -> u32 {
        1
    }

    fn default_interval_ms() -> u64 {
        10_000
    }

    fn default_quiesce_ms() -> u64 {
        10_000
    }

    /// As it is for a request that says no more than the directory.
    pub fn into(directory: PathBuf) -> Self {
        Self {
            directory,
            count: Self::default_count(),
            interval_ms: Self::default_interval_ms(),
            quiesce_ms: Self::default_quiesce_ms(),
        }
    }
}

/// GET `/self-snapshot`. Ours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub struct SelfSnapshots {
    /// What the guest may have; absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<SelfSnapshot>,
    /// Those that were taken, in their order.
    pub taken: Vec<SelfSnapshotTaken>,
}

/// A snapshot that the guest asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub struct SelfSnapshotTaken {
    /// The name of its directory.
    pub number: u32,
    /// What the guest called it: a number that any privileged program of the guest may have chosen.
    pub tag: u32,
}
