//! What every kind of device is here, whichever it is.

use thiserror::Error;
use vmgenie_api::wire::{ConfigFile, FullConfig};
use vmgenie_devices::metrics::{Counter, Group, Metric, Number};
use vmgenie_machine::virtio::kinds::{DeviceConfig, DevicesConfig};

use crate::checked::WireError;

/// A kind of device, between what users say of it and its configuration.
pub trait Kind: Sync {
    /// The path of its requests. Of a kind of which there may be several, it ends with the device's name: `/drives/{drive_id}`.
    fn path(&self) -> &'static str;

    /// What is counted of PUT requests.
    fn counters(&self) -> &'static PutCounters;

    /// What a PUT asks for. `id` is the name in the path, empty if the path has none.
    ///
    /// # Errors
    /// It asks for what cannot be.
    fn put(&self, id: &str, body: &[u8]) -> Result<Put, BodyError>;

    /// Shows the devices in GET `/vm/config`.
    fn show(&self, devices: &DevicesConfig, shown: &mut FullConfig);

    /// Takes the devices out of a configuration file.
    ///
    /// # Errors
    /// It asks for what cannot be.
    fn read(&self, file: &mut ConfigFile, devices: &mut DevicesConfig) -> Result<(), WireError>;
}

impl dyn Kind {
    /// What the path begins with, and whether the name of a device follows.
    pub(crate) fn place(&self) -> (&'static str, bool) {
        match self.path()[1..].split_once('/') {
            Some((first, _)) => (first, true),
            None => (&self.path()[1..], false),
        }
    }
}

/// What a PUT asks for.
#[derive(Debug)]
pub struct Put {
    /// The device to be set.
    pub(crate) device: DeviceConfig,
    /// The body had a deprecated field.
    pub(crate) deprecated: bool,
}

impl Put {
    pub(super) fn of(device: impl Into<DeviceConfig>) -> Self {
        Self {
            device: device.into(),
            deprecated: false,
        }
    }
}

/// Why a body is refused.
#[derive(Debug, Error)]
pub enum BodyError {
    /// It is not the JSON that the path takes.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// It asks for what cannot be.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// How many PUT requests there were for one kind, and how many failed.
#[derive(Debug)]
pub struct PutCounters {
    names: [&'static str; 2],
    pub(crate) count: Counter,
    pub(crate) fails: Counter,
}

impl PutCounters {
    pub(super) const fn new(count: &'static str, fails: &'static str) -> Self {
        Self {
            names: [count, fails],
            count: Counter::new(),
            fails: Counter::new(),
        }
    }
}

impl Group for PutCounters {
    fn tell(&self, visit: &mut dyn FnMut(Number)) {
        let [count, fails] = self.names;
        self.count.tell(count, visit);
        self.fails.tell(fails, visit);
    }
}
