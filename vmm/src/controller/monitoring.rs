//! The log, the metrics, and what is measured of commands.

use std::time::Instant;

use super::command::{Command, CommandError, CommandResult, Reply};
use super::{Controller, NOT_BEFORE_START, refused};
use crate::logging::{self, LogConfig};
use crate::metrics::{Gauge, METRICS, MetricsConfig, MetricsFile};
use vmgenie_devices::metrics::Counter;

impl Controller {
    pub(super) fn set_log(&mut self, config: &LogConfig) -> CommandResult {
        self.before_start("the log")?;
        logging::update(config).map_err(refused)?;
        Ok(Reply::Done)
    }

    pub(super) fn set_metrics(&mut self, config: MetricsConfig) -> CommandResult {
        self.before_start("the metrics")?;
        if self.metrics.is_some() {
            return Err(refused(crate::metrics::MetricsError::Already));
        }
        self.metrics = Some(MetricsFile::open(config, &self.id).map_err(refused)?);
        Ok(Reply::Done)
    }

    pub(super) fn flush_metrics(&mut self) -> CommandResult {
        if self.machine.is_none() {
            return Err(CommandError(format!(
                "{NOT_BEFORE_START} The metrics can be flushed only when there is a microVM: start one (PUT /actions \
                 InstanceStart)"
            )));
        }
        if let Some(metrics) = &mut self.metrics {
            metrics.write().map_err(refused)?;
        }
        Ok(Reply::Done)
    }

    /// Shall machines that boot have a boot timer?
    pub(crate) fn set_boot_timer(&mut self, there: bool) {
        self.boot_timer = there;
    }

    /// Shall lines of metrics be written?
    pub(super) fn has_metrics(&self) -> bool {
        self.metrics.is_some()
    }

    /// Writes a line of metrics, if there is a file for it.
    pub(crate) fn write_metrics(&mut self) {
        if let Some(metrics) = &mut self.metrics
            && let Err(error) = metrics.write()
        {
            tracing::warn!(%error, "metrics");
        }
    }
}

/// What is measured of a command.
#[derive(Debug)]
pub(super) struct Measured {
    begun: Instant,
    latency: Option<&'static Gauge>,
    /// One of these counts it.
    generation: Option<(&'static Counter, &'static Counter)>,
}

impl Measured {
    /// Before the command.
    pub(super) fn begin(command: &Command) -> Self {
        let latencies = &METRICS.latencies_us;
        let latency = match command {
            Command::Pause => Some(&latencies.vmm_pause_vm),
            Command::Resume => Some(&latencies.vmm_resume_vm),
            Command::CreateSnapshot(_) => Some(&latencies.vmm_full_create_snapshot),
            Command::LoadSnapshot(_) => Some(&latencies.vmm_load_snapshot),
            _ => None,
        };
        let begins = match command {
            Command::NewGeneration => true,
            Command::LoadSnapshot(request) => {
                request.generation == vmgenie_machine::request::RestoreAs::New
            }
            _ => false,
        };
        let generation = &METRICS.generation;
        Self {
            begun: Instant::now(),
            latency,
            generation: begins.then_some((&generation.begun_count, &generation.begun_fails)),
        }
    }

    /// Before a snapshot that waits for its guest.
    pub(super) fn of_snapshot() -> Self {
        Self {
            begun: Instant::now(),
            latency: Some(&METRICS.latencies_us.vmm_full_create_snapshot),
            generation: None,
        }
    }

    /// After the command.
    pub(super) fn end(self, result: &CommandResult) {
        if let (Some(latency), Ok(_)) = (self.latency, result) {
            latency.set_since(self.begun);
        }
        match (self.generation, result) {
            (Some((begun, _)), Ok(_)) => begun.inc(),
            (Some((_, fails)), Err(_)) => fails.inc(),
            (None, _) => {}
        }
    }
}
