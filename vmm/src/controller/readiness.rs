//! The gate of a restored machine, as the event loop tends it.

use std::sync::Arc;
use std::time::Duration;

use vmgenie_devices::sgen::DriverReport;
use vmgenie_machine::readiness::{Readiness, Todo, Told};
use vmgenie_machine::request::OnTimeout;

use super::Controller;
use super::ending::RunError;

impl Controller {
    /// How far the machine's guest has come, for as long as there is this controller.
    pub(crate) fn readiness(&self) -> Arc<Readiness> {
        Arc::clone(&self.readiness)
    }

    /// How long the event loop may sleep for the gate's sake.
    pub(crate) fn gate_patience(&self) -> Option<Duration> {
        match self.readiness.is_pending() {
            true => self.readiness.patience(),
            false => None,
        }
    }

    /// Does what the machine has to do by now, though nobody calls.
    pub(crate) fn tend_machine(&mut self) {
        if let Some(machine) = &mut self.machine {
            machine.tend();
        }
    }

    /// Opens of the gate what is to be opened. An error if the machine is to end because its guest has not adapted in time.
    pub(crate) fn tend_gate(&mut self) -> Result<(), RunError> {
        if !self.readiness.is_pending() {
            return Ok(());
        }
        let Some(machine) = &mut self.machine else {
            return Ok(());
        };
        while let Some(todo) = self.readiness.todo() {
            let told = self.readiness.now();
            match todo {
                Todo::OpenNetworks => {
                    machine.open_networks();
                    tracing::info!(forced = told.forced, after = ?told.identity_after, "the gate's networks are open");
                }
                Todo::OpenToHost => {
                    machine.open_to_host();
                    tracing::info!(forced = told.forced, after = ?told.service_after, "the gate is open");
                }
                Todo::TimedOut(on_timeout) => {
                    let missing = missing(&told, &self.reports.borrow());
                    let limit = told.gate.map_or(Duration::ZERO, |gate| gate.timeout);
                    match on_timeout {
                        OnTimeout::Keep => tracing::warn!(
                            ?limit,
                            missing,
                            "the guest has not adapted in time; its gate stays shut until it has"
                        ),
                        OnTimeout::Open => tracing::warn!(
                            ?limit,
                            missing,
                            "the guest has not adapted in time; its gate opens all the same"
                        ),
                        OnTimeout::Kill => return Err(RunError::NotAdapted { limit, missing }),
                    }
                }
            }
        }
        Ok(())
    }
}

/// What the guest lacks, by its own word.
fn missing(told: &Told, report: &DriverReport) -> String {
    let lacks = report.lacks(told.agents(report), report.required);
    let lacks: Vec<_> = lacks
        .map(|lack| format!("{lack:?}").to_ascii_lowercase())
        .collect();
    lacks.join(", ")
}
