//! What a network interface counts.

use crate::metrics::{Counter, Durations};
use crate::metrics_group;

metrics_group! {
    /// A network interface's metrics: "rx" is to the guest, "tx" from it. Rate limiters and `cfg_fails` are Firecracker's: always 0 here. Its
    /// `tx_spoofed_mac_count` is not here: nobody looks into frames.
    NetMetrics {
        /// Activations that failed: the network cannot do what the driver has chosen.
        activate_fails: Counter,
        /// Accesses to the configuration space that failed.
        cfg_fails: Counter,
        /// The driver has offered too few buffers for what may come.
        no_rx_avail_buffer: Counter,
        /// Looks at the queue that found nothing new.
        no_tx_avail_buffer: Counter,
        /// The driver has broken a queue.
        event_fails: Counter,
        /// Doorbells of the queue to the guest.
        rx_queue_event_count: Counter,
        /// No rate limiters.
        rx_event_rate_limiter_count: Counter,
        /// No rate limiters.
        rx_rate_limiter_throttled: Counter,
        /// The network had something, or room for something.
        rx_tap_event_count: Counter,
        /// Bytes that the guest got, without the virtio headers.
        rx_bytes_count: Counter,
        /// Frames that the guest got.
        rx_packets_count: Counter,
        /// Frames for the guest that were lost: too long for its buffers, or not to be read. And chains of which nothing could be used.
        rx_fails: Counter,
        /// Reads that succeeded: as many as frames.
        rx_count: Counter,
        /// Reads that failed.
        tap_read_fails: Counter,
        /// Writes that failed.
        tap_write_fails: Counter,
        /// Of all writes.
        tap_write_agg: Durations,
        /// Bytes that the guest has sent, without the virtio headers.
        tx_bytes_count: Counter,
        /// Chains of descriptors that are no frame.
        tx_malformed_frames: Counter,
        /// Frames of the guest's that the network did not take.
        tx_fails: Counter,
        /// Writes that succeeded: as many as frames.
        tx_count: Counter,
        /// Frames that the guest has sent.
        tx_packets_count: Counter,
        /// Doorbells of the queue from the guest.
        tx_queue_event_count: Counter,
        /// No rate limiters.
        tx_rate_limiter_event_count: Counter,
        /// No rate limiters.
        tx_rate_limiter_throttled: Counter,
        /// Turns that have left frames for the next turn.
        tx_remaining_reqs_count: Counter,
    }
}

impl NetMetrics {
    /// A frame of the guest's is on the network.
    pub(super) fn sent(&self, bytes: usize) {
        self.tx_count.inc();
        self.tx_packets_count.inc();
        self.tx_bytes_count.add(bytes as u64);
    }

    /// A frame is in the guest's memory.
    pub(super) fn received(&self, bytes: usize) {
        self.rx_count.inc();
        self.rx_packets_count.inc();
        self.rx_bytes_count.add(bytes as u64);
    }
}
