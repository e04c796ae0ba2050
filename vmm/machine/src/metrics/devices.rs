//! Where what devices count is kept, so that it can be told. Numbers are kept when the machine boots again, as Firecracker's process does not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use vmgenie_devices::metrics::Group;
use vmgenie_devices::serial::SerialMetrics;

/// What this process's serial port counts.
pub static SERIAL: Single<SerialMetrics> = Single::new();

/// Takes a group: its name, the device's name if there may be several, and the metrics.
pub type Visit<'a> = &'a mut dyn FnMut(&'static str, Option<&str>, &dyn Group);

/// What the devices of a kind count of which there may be several: made when the device is.
#[derive(Debug)]
pub(crate) struct ByName<T>(Mutex<BTreeMap<String, Arc<T>>>);

impl<T: Group + Default> ByName<T> {
    /// There is no device yet.
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// What the device of this name counts.
    pub(crate) fn of(&self, id: &str) -> Arc<T> {
        Arc::clone(self.lock().entry(id.to_owned()).or_default())
    }

    /// The devices have gone, and their names must not be told.
    pub(crate) fn forget_all(&self) {
        self.lock().clear();
    }

    /// Tells all of them.
    pub(crate) fn tell(&self, group: &'static str, visit: Visit<'_>) {
        for (id, metrics) in self.lock().iter() {
            visit(group, Some(id), &**metrics);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<T>>> {
        // A panic cannot leave a map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the one device of a kind counts: there from the beginning.
#[derive(Debug)]
pub struct Single<T>(OnceLock<Arc<T>>);

impl<T: Group + Default> Single<T> {
    /// Nothing was counted yet.
    pub(crate) const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// What it counts.
    pub fn of(&self) -> Arc<T> {
        Arc::clone(self.0.get_or_init(Arc::default))
    }

    /// Tells it.
    pub fn tell(&self, group: &'static str, visit: Visit<'_>) {
        visit(group, None, &*self.of());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmgenie_devices::virtio::block::BlockMetrics;

    #[test]
    fn a_drive_counts_on_when_it_is_made_again() {
        let drives = ByName::<BlockMetrics>::new();
        drives.of("root").read_count.add(2);
        drives.of("root").read_count.inc();
        drives.of("data").read_count.inc();
        assert_eq!(drives.of("root").read_count.get(), 3);
        let mut told = Vec::new();
        let mut visit = |group, device: Option<&str>, _: &dyn Group| {
            told.push((group, device.map(str::to_owned)));
        };
        drives.tell("block", &mut visit);
        SERIAL.tell("uart", &mut visit);
        let named = |name: &str| ("block", Some(name.to_owned()));
        assert_eq!(told, [named("data"), named("root"), ("uart", None)]);
        drives.forget_all();
        assert_eq!(drives.of("root").read_count.get(), 0);
    }
}
