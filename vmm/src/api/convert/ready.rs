//! `gate` of `/snapshot/load`, and `/ready`.

use std::time::Duration;

use vmgenie_api::wire::{self, GenerationWait, MAX_WAIT_MS, Missing};
use vmgenie_devices::sgen::DriverReport;
use vmgenie_machine::readiness::{Stage, Told};
use vmgenie_machine::request::{Gate, OnTimeout};

use super::{Checked, Convert, WireError, missing};

impl Checked<Gate> for wire::Gate {
    fn checked(self) -> Result<Gate, WireError> {
        let wire = self;
        let timeout = match wire.timeout_ms {
            ms @ 1..=MAX_WAIT_MS => Duration::from_millis(ms),
            ms => return Err(WireError::GateTimeout(ms)),
        };
        Ok(Gate {
            link: wire.link,
            vsock: wire.vsock,
            agents: wire.agents,
            timeout,
            on_timeout: match wire.on_timeout {
                wire::OnTimeout::Keep => OnTimeout::Keep,
                wire::OnTimeout::Kill => OnTimeout::Kill,
                wire::OnTimeout::Open => OnTimeout::Open,
            },
        })
    }
}

impl Convert<wire::Stage> for Stage {
    fn convert(self) -> wire::Stage {
        let stage = self;
        match stage {
            Stage::None => wire::Stage::None,
            Stage::Identity => wire::Stage::Identity,
            Stage::Service => wire::Stage::Service,
        }
    }
}

/// The answer to GET `/ready`.
pub fn ready(told: &Told, report: &DriverReport) -> wire::Ready {
    let us = |after: Option<Duration>| {
        after.map(|after| u64::try_from(after.as_micros()).unwrap_or(u64::MAX))
    };
    let wait = GenerationWait {
        agents: Some(told.agents(report)),
        ..GenerationWait::default()
    };
    let mut missing = missing(&wait, report);
    // No agent has told of its first stage.
    if let Some(agent) = missing.iter().position(|lack| *lack == Missing::Agent) {
        missing.insert(agent, Missing::Identity);
    }
    wire::Ready {
        ready: told.is_ready(),
        stage: told.stage().convert(),
        missing,
        gate: told.gate.map(|_| wire::GateState {
            open: told.opened.convert(),
            timed_out: told.timed_out,
            forced: told.forced,
        }),
        reseeded_us: us(told.reseeded_after),
        identity_us: us(told.identity_after),
        adapted_us: us(told.adapted_after),
        service_us: us(told.service_after),
    }
}
