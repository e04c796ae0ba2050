//! `/generation` and `/generation/wait`.

use std::time::{Duration, UNIX_EPOCH};

use vmgenie_api::wire::{
    DriverInfo, GenerationInfo, GenerationWait, GenerationWaited, MAX_WAIT_MS, Missing, Watchers,
};
use vmgenie_devices::sgen::{DriverReport, Lack};
use vmgenie_machine::request::Generation;

use super::{Checked, Convert, WireError, microseconds};

impl Convert<GenerationInfo> for Generation {
    fn convert(self) -> GenerationInfo {
        let generation = self;
        GenerationInfo {
            id: generation.id.to_guid(),
            raw: generation.id.to_hex(),
            changes: generation.changes,
            since: rfc3339(generation.since),
            since_unix_ms: u64::try_from(generation.since.as_millis()).unwrap_or(u64::MAX),
            ancestors: generation.ancestors.iter().map(|id| id.to_guid()).collect(),
            counter: generation.counter,
            driver: generation.driver.convert(),
        }
    }
}

/// 9999-12-31T23:59:59Z, in seconds since the Unix epoch: RFC 3339 has no later year, and a
/// snapshot file may say anything.
const LAST_SECOND: u64 = 253_402_300_799;

fn rfc3339(since_epoch: Duration) -> String {
    let shown = since_epoch.min(Duration::from_secs(LAST_SECOND));
    humantime::format_rfc3339_millis(UNIX_EPOCH + shown).to_string()
}

impl Convert<DriverInfo> for DriverReport {
    fn convert(self) -> DriverInfo {
        let report = self;
        let us = |after: Option<Duration>| after.map(microseconds);
        DriverInfo {
            present: report.present(),
            version: report.version,
            reached: report.reached,
            reseeded: report.reseeded,
            chain: report.chain,
            outdated_watchers: report.outdated,
            required_watchers: report.required,
            ready_agents: report.ready,
            expected_agents: report.agents,
            adapted: report.adapted(),
            reached_us: us(report.reached_after),
            reseeded_us: us(report.reseeded_after),
            adapted_us: us(report.adapted_after),
        }
    }
}

impl Checked<Duration> for &GenerationWait {
    fn checked(self) -> Result<Duration, WireError> {
        let wire = self;
        match wire.timeout_ms {
            ms @ 0..=MAX_WAIT_MS => Ok(Duration::from_millis(ms)),
            ms => Err(WireError::WaitTooLong(ms)),
        }
    }
}

/// What the guest lacks of what `wait` waits for.
pub fn missing(wait: &GenerationWait, report: &DriverReport) -> Vec<Missing> {
    let outdated = match wait.watchers {
        Watchers::Required => report.required,
        Watchers::All => report.outdated.max(report.required),
    };
    let lacks = report.lacks(wait.agents.unwrap_or(report.agents), outdated);
    lacks.map(Convert::convert).collect()
}

impl Convert<Missing> for Lack {
    fn convert(self) -> Missing {
        let lack = self;
        match lack {
            Lack::Driver => Missing::Driver,
            Lack::Reseeded => Missing::Reseeded,
            Lack::Reached => Missing::Reached,
            Lack::Chain => Missing::Chain,
            Lack::Watchers => Missing::Watchers,
            Lack::Agent => Missing::Agent,
            Lack::Ready => Missing::Ready,
        }
    }
}

/// The answer to `wait` for the report that there is.
pub fn waited(wait: &GenerationWait, report: DriverReport, waited: Duration) -> GenerationWaited {
    let missing = missing(wait, &report);
    GenerationWaited {
        adapted: missing.is_empty(),
        missing,
        waited_us: microseconds(waited),
        driver: report.convert(),
    }
}
