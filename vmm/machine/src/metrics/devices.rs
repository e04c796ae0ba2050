//! What the devices of this process's machine count. Numbers are kept when the machine boots again, as Firecracker's process does not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use vmgenie_devices::metrics::Group;
use vmgenie_devices::serial::SerialMetrics;
use vmgenie_devices::virtio::block::BlockMetrics;
use vmgenie_devices::virtio::entropy::EntropyMetrics;
use vmgenie_devices::virtio::net::NetMetrics;
use vmgenie_devices::virtio::vsock::VsockMetrics;

/// The metrics of this process's devices.
pub static DEVICES: DeviceMetrics = DeviceMetrics {
    drives: Mutex::new(BTreeMap::new()),
    nets: Mutex::new(BTreeMap::new()),
    vsock: OnceLock::new(),
    entropy: OnceLock::new(),
    serial: OnceLock::new(),
};

/// Takes a group: its name, the device's name if there may be several, and the metrics.
pub type Visit<'a> = &'a mut dyn FnMut(&'static str, Option<&str>, &dyn Group);

/// By name: what each device of one kind counts.
type ByName<T> = Mutex<BTreeMap<String, Arc<T>>>;

/// The devices' metrics. Those of which there may be several are made when their device is; the others are there from the beginning.
#[derive(Debug)]
pub struct DeviceMetrics {
    drives: ByName<BlockMetrics>,
    nets: ByName<NetMetrics>,
    vsock: OnceLock<Arc<VsockMetrics>>,
    entropy: OnceLock<Arc<EntropyMetrics>>,
    serial: OnceLock<Arc<SerialMetrics>>,
}

impl DeviceMetrics {
    /// Those of a drive.
    pub fn drive(&self, id: &str) -> Arc<BlockMetrics> {
        of(&self.drives, id)
    }

    /// Those of a network interface.
    pub fn net(&self, id: &str) -> Arc<NetMetrics> {
        of(&self.nets, id)
    }

    /// Those of the vsock device.
    pub fn vsock(&self) -> Arc<VsockMetrics> {
        Arc::clone(self.vsock.get_or_init(Arc::default))
    }

    /// Those of the entropy device.
    pub fn entropy(&self) -> Arc<EntropyMetrics> {
        Arc::clone(self.entropy.get_or_init(Arc::default))
    }

    /// Those of the serial port.
    pub fn serial(&self) -> Arc<SerialMetrics> {
        Arc::clone(self.serial.get_or_init(Arc::default))
    }

    /// The devices of an attempt that has failed have gone: what they were called must not be told.
    pub fn forget_all(&self) {
        lock(&self.drives).clear();
        lock(&self.nets).clear();
    }

    /// Tells all of them.
    pub fn tell(&self, visit: Visit<'_>) {
        for (id, metrics) in lock(&self.drives).iter() {
            visit("block", Some(id), &**metrics);
        }
        for (id, metrics) in lock(&self.nets).iter() {
            visit("net", Some(id), &**metrics);
        }
        visit("vsock", None, &*self.vsock());
        visit("entropy", None, &*self.entropy());
        visit("uart", None, &*self.serial());
    }
}

fn of<T: Default>(all: &ByName<T>, id: &str) -> Arc<T> {
    Arc::clone(lock(all).entry(id.to_owned()).or_default())
}

fn lock<T>(all: &ByName<T>) -> MutexGuard<'_, BTreeMap<String, Arc<T>>> {
    // A panic cannot leave a map half changed.
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_counts_on_when_it_is_made_again() {
        let devices = DeviceMetrics {
            drives: Mutex::default(),
            nets: Mutex::default(),
            vsock: OnceLock::new(),
            entropy: OnceLock::new(),
            serial: OnceLock::new(),
        };
        devices.drive("root").read_count.add(2);
        devices.drive("root").read_count.inc();
        devices.drive("data").read_count.inc();
        assert_eq!(devices.drive("root").read_count.get(), 3);
        let mut told = Vec::new();
        devices.tell(&mut |group, device, _| told.push((group, device.map(str::to_owned))));
        assert_eq!(told[0], ("block", Some("data".to_owned())));
        assert_eq!(told.len(), 5);
        devices.forget_all();
        assert_eq!(devices.drive("root").read_count.get(), 0);
    }
}
