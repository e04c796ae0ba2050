//! GET `/vm/config` and the configuration file.

use vmgenie_api::wire::{ConfigFile, FullConfig};
use vmgenie_machine::config::{BootSource, MachineConfig};
use vmgenie_machine::virtio::kinds::DevicesConfig;

use super::{Checked, Convert, WireError};
use crate::controller::command::{Command, VmConfig};
use crate::kinds::KINDS;

impl Convert<FullConfig> for VmConfig {
    fn convert(self) -> FullConfig {
        let mut shown = FullConfig::without_devices(self.machine.convert());
        if let Some(source) = &self.boot_source {
            shown.boot_source = source.convert();
        }
        for kind in KINDS {
            kind.show(&self.devices, &mut shown);
        }
        shown
    }
}

/// What a configuration file asks for: what is to be set first, and the machine.
pub type CheckedConfigFile = (Vec<Command>, (MachineConfig, BootSource, DevicesConfig));

impl Checked<CheckedConfigFile> for ConfigFile {
    fn checked(mut self) -> Result<CheckedConfigFile, WireError> {
        for (name, there) in [
            ("balloon", self.balloon.is_some()),
            ("cpu-config", self.cpu_config.is_some()),
            ("mmds-config", self.mmds_config.is_some()),
            (
                "pmem",
                self.pmem.as_ref().is_some_and(|list| !list.is_empty()),
            ),
            ("memory-hotplug", self.memory_hotplug.is_some()),
        ] {
            if there {
                return Err(WireError::NotInConfigFile(name));
            }
        }
        let mut first = Vec::new();
        if let Some(logger) = self.logger.take() {
            first.push(Command::SetLog(logger.checked()?));
        }
        if let Some(metrics) = self.metrics.take() {
            first.push(Command::SetMetrics(metrics.checked()?));
        }
        let machine = self.machine_config.take().map(Checked::checked);
        let mut devices = DevicesConfig::default();
        for kind in KINDS {
            kind.read(&mut self, &mut devices)?;
        }
        let machine = machine.transpose()?.unwrap_or_default();
        Ok((first, (machine, self.boot_source.checked()?, devices)))
    }
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
