//! What a disk counts.

use std::time::Instant;

use super::backend::Operation;
use super::request::What;
use crate::metrics::{Counter, Durations};
use crate::metrics_group;

metrics_group! {
    /// A disk's metrics. Those that begin with `rate_limiter` and `cfg_fails`, `activate_fails`, `event_fails` are Firecracker's for what cannot happen here:
    /// always 0.
    BlockMetrics {
        /// Activations that failed.
        activate_fails: Counter,
        /// Accesses to the configuration space that failed.
        cfg_fails: Counter,
        /// Looks at the queue that found nothing new.
        no_avail_buffer: Counter,
        /// Events that could not be handled.
        event_fails: Counter,
        /// Requests that the file has failed.
        execute_fails: Counter,
        /// Requests that break the rules, or that the disk does not know.
        invalid_reqs_count: Counter,
        /// Flushes that succeeded.
        flush_count: Counter,
        /// Doorbells.
        queue_event_count: Counter,
        /// No rate limiters.
        rate_limiter_event_count: Counter,
        /// Another file was put behind the disk.
        update_count: Counter,
        /// Another file could not be put behind the disk.
        update_fails: Counter,
        /// Bytes that were read.
        read_bytes: Counter,
        /// Bytes that were written.
        write_bytes: Counter,
        /// Reads that succeeded.
        read_count: Counter,
        /// Writes that succeeded.
        write_count: Counter,
        /// Of reads that succeeded, from the look at the request to its end.
        read_agg: Durations,
        /// Of writes that succeeded.
        write_agg: Durations,
        /// No rate limiters.
        rate_limiter_throttled_events: Counter,
        /// Requests that had to wait because as many as can be were under way.
        io_engine_throttled_events: Counter,
        /// Turns that have left requests for the next turn.
        remaining_reqs_count: Counter,
        /// Ranges that were given back. Ours.
        discard_count: Counter,
        /// Ranges that were zeroed. Ours.
        write_zeroes_count: Counter,
    }
}

/// What a request counts as when it has ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counted {
    Read { bytes: u64, begun: Instant },
    Write { bytes: u64, begun: Instant },
    Flush,
    Discard,
    WriteZeroes,
    Nothing,
}

impl Counted {
    /// A request that is begun now.
    pub(super) fn of(what: &Result<What, u8>) -> Self {
        let Ok(What::Operation(operation)) = what else {
            return Self::Nothing;
        };
        match operation {
            Operation::Read { buffers, .. } => Self::Read {
                bytes: buffers.len(),
                begun: Instant::now(),
            },
            Operation::Write { buffers, .. } => Self::Write {
                bytes: buffers.len(),
                begun: Instant::now(),
            },
            Operation::Flush => Self::Flush,
            Operation::Discard { .. } => Self::Discard,
            Operation::WriteZeroes { .. } => Self::WriteZeroes,
        }
    }

    /// It has ended.
    pub(super) fn count(self, metrics: &BlockMetrics, succeeded: bool) {
        if !succeeded {
            return metrics.execute_fails.inc();
        }
        match self {
            Self::Read { bytes, begun } => {
                metrics.read_count.inc();
                metrics.read_bytes.add(bytes);
                metrics.read_agg.record(begun.elapsed());
            }
            Self::Write { bytes, begun } => {
                metrics.write_count.inc();
                metrics.write_bytes.add(bytes);
                metrics.write_agg.record(begun.elapsed());
            }
            Self::Flush => metrics.flush_count.inc(),
            Self::Discard => metrics.discard_count.inc(),
            Self::WriteZeroes => metrics.write_zeroes_count.inc(),
            Self::Nothing => {}
        }
    }
}
