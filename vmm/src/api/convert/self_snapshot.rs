//! `/self-snapshot`.

use std::time::Duration;

use vmgenie_api::wire::{
    MAX_QUIESCE_MS, MAX_SELF_SNAPSHOTS, SelfSnapshot, SelfSnapshotTaken, SelfSnapshots,
};

use super::{Checked, WireError, lossy, not_empty};
use crate::controller::command::{self as internal, SelfSnapshotConfig};

impl Checked<SelfSnapshotConfig> for SelfSnapshot {
    fn checked(self) -> Result<SelfSnapshotConfig, WireError> {
        let wire = self;
        if !(1..=MAX_SELF_SNAPSHOTS).contains(&wire.count) {
            return Err(WireError::SelfSnapshots(wire.count));
        }
        if !(1..=MAX_QUIESCE_MS).contains(&wire.quiesce_ms) {
            return Err(WireError::Quiesce(wire.quiesce_ms));
        }
        Ok(SelfSnapshotConfig {
            directory: not_empty("directory", wire.directory)?,
            count: wire.count,
            interval: Duration::from_millis(wire.interval_ms),
            quiesce: Duration::from_millis(wire.quiesce_ms),
        })
    }
}

/// What the API tells of it.
pub fn self_snapshots(
    allowed: Option<SelfSnapshotConfig>,
    taken: &[internal::SelfSnapshot],
) -> SelfSnapshots {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    SelfSnapshots {
        allowed: allowed.map(|config| SelfSnapshot {
            directory: lossy(&config.directory),
            count: config.count,
            interval_ms: ms(config.interval),
            quiesce_ms: ms(config.quiesce),
        }),
        taken: taken
            .iter()
            .map(|&internal::SelfSnapshot { number, tag }| SelfSnapshotTaken { number, tag })
            .collect(),
    }
}
