//! What a machine counts. The program tells it with its own numbers, as one object.

mod devices;

use vmgenie_devices::metrics::{Counter, Durations, Group, Histogram};
use vmgenie_devices::metrics_group;

pub(crate) use devices::ByName;
pub use devices::{SERIAL, Single, Visit};

metrics_group! {
    /// vCPUs leaving their guest.
    VcpuMetrics {
        /// Reads of I/O ports.
        exit_io_in: Counter,
        /// Writes of I/O ports.
        exit_io_out: Counter,
        /// Reads of devices' memory.
        exit_mmio_read: Counter,
        /// Writes of devices' memory.
        exit_mmio_write: Counter,
        /// Ends of a vCPU that nobody wanted.
        failures: Counter,
        /// `KVM_KVMCLOCK_CTRL` failed.
        kvmclock_ctrl_fails: Counter,
        /// How long the reads of I/O ports took, from the exit until the vCPU can go on.
        exit_io_in_agg: Durations,
        /// The writes of I/O ports.
        exit_io_out_agg: Durations,
        /// The reads of devices' memory.
        exit_mmio_read_agg: Durations,
        /// The writes of devices' memory.
        exit_mmio_write_agg: Durations,
    }
}

metrics_group! {
    /// Interrupts of the virtio devices.
    InterruptMetrics {
        /// Raised.
        triggers: Counter,
    }
}

metrics_group! {
    /// The machine came out of a snapshot as another one: how long its vCPUs ran until its guest was so far. Ours.
    RestoreMetrics {
        /// Its random number generator was reseeded.
        reseeded_us: Histogram,
        /// It knew who it is.
        identity_us: Histogram,
        /// It had adapted as a whole.
        adapted_us: Histogram,
        /// The same, and its gate, if it has one, was open.
        ready_us: Histogram,
        /// It had not adapted before its gate's time-out.
        gate_timeouts: Counter,
    }
}

metrics_group! {
    /// Snapshots in which the guest was asked to take part. Ours.
    ForkMetrics {
        /// From the request until all CPUs of the guest stood still.
        quiesce_us: Histogram,
        /// How long they stood still.
        stop_us: Histogram,
        /// The guest did not take part.
        refused_count: Counter,
    }
}

/// What the machine counts, but for its devices.
#[derive(Debug)]
pub struct MachineMetrics {
    /// vCPUs leaving their guest.
    pub vcpu: VcpuMetrics,
    /// Interrupts of the virtio devices.
    pub interrupts: InterruptMetrics,
    /// How long its guest took to adapt.
    pub restore: RestoreMetrics,
    /// Snapshots in which its guest was asked to take part.
    pub fork: ForkMetrics,
}

/// The metrics of this process's machine. They are kept when it boots again.
pub static MACHINE: MachineMetrics = MachineMetrics {
    vcpu: VcpuMetrics::new(),
    interrupts: InterruptMetrics::new(),
    restore: RestoreMetrics::new(),
    fork: ForkMetrics::new(),
};

impl MachineMetrics {
    /// Each group with its name.
    pub fn groups(&self) -> [(&'static str, &dyn Group); 4] {
        [
            ("vcpu", &self.vcpu),
            ("interrupts", &self.interrupts),
            ("restore", &self.restore),
            ("fork", &self.fork),
        ]
    }
}
