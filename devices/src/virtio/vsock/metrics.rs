//! What the socket device counts.

use crate::metrics::Counter;
use crate::metrics_group;

metrics_group! {
    /// The socket device's metrics: "rx" is to the guest, "tx" from it. Firecracker's for what cannot happen here (`activate_fails`, `cfg_fails`,
    /// `killq_resync`) are always 0.
    VsockMetrics {
        /// Activations that failed.
        activate_fails: Counter,
        /// Accesses to the configuration space that failed.
        cfg_fails: Counter,
        /// The driver has broken the queue to the guest.
        rx_queue_event_fails: Counter,
        /// The driver has broken the queue from the guest, or put something into it that is no packet.
        tx_queue_event_fails: Counter,
        /// The driver has broken the queue of events.
        ev_queue_event_fails: Counter,
        /// A program of the host's could not be accepted.
        muxer_event_fails: Counter,
        /// A connection could not be watched.
        conn_event_fails: Counter,
        /// Doorbells of the queue to the guest.
        rx_queue_event_count: Counter,
        /// Doorbells of the queue from the guest.
        tx_queue_event_count: Counter,
        /// Bytes for the guest's programs.
        rx_bytes_count: Counter,
        /// Bytes of the guest's programs.
        tx_bytes_count: Counter,
        /// Packets to the guest.
        rx_packets_count: Counter,
        /// Packets from the guest.
        tx_packets_count: Counter,
        /// Connections that were made.
        conns_added: Counter,
        /// Connections that were cut off.
        conns_killed: Counter,
        /// Connections that have ended, those included that were cut off.
        conns_removed: Counter,
        /// There is no queue of connections to be killed.
        killq_resync: Counter,
        /// Bytes that were held back could not be written: the host's program has gone.
        tx_flush_fails: Counter,
        /// Bytes could not be written: the host's program has gone.
        tx_write_fails: Counter,
        /// Bytes could not be read.
        rx_read_fails: Counter,
    }
}
