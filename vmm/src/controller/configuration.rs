//! What is set before the start, and shown at any time.

use vmgenie_machine::Machine;
use vmgenie_machine::boot;
use vmgenie_machine::config::{BootSource, MachineConfig};
use vmgenie_machine::report::report;
use vmgenie_machine::virtio::check_number;
use vmgenie_machine::virtio::kinds::DeviceConfig;

use super::command::{CommandError, CommandResult, Reply, VmConfig};
use super::{Controller, NOT_AFTER_START, refused};

impl Controller {
    pub(super) fn vm_config(&self) -> VmConfig {
        let machine = self.machine.as_ref().map_or(self.config, Machine::config);
        let devices = self
            .machine
            .as_ref()
            .map_or(&self.devices, Machine::devices_config);
        VmConfig {
            machine,
            boot_source: self.boot_source.clone(),
            devices: devices.clone(),
        }
    }

    pub(super) fn before_start(&self, what: &str) -> Result<(), CommandError> {
        if self.machine.is_none() && self.starting.is_none() {
            return Ok(());
        }
        Err(CommandError(format!(
            "{NOT_AFTER_START} It is possible before the start only to set {what}"
        )))
    }

    pub(super) fn set_machine_config(&mut self, config: MachineConfig) -> CommandResult {
        self.before_start("vCPUs and memory")?;
        self.config = config;
        self.configured = true;
        Ok(Reply::Done)
    }

    pub(super) fn set_boot_source(&mut self, source: BootSource) -> CommandResult {
        self.before_start("the boot source")?;
        boot::check(&source).map_err(refused)?;
        self.boot_source = Some(source);
        self.configured = true;
        Ok(Reply::Done)
    }

    /// A device that can never be used is refused when it is set, not when the machine starts: no later request could take one away again.
    pub(super) fn set_device(&mut self, device: DeviceConfig) -> CommandResult {
        self.before_start(device.what())?;
        device
            .check_host()
            .map_err(|refusal| CommandError(report(&*refusal)))?;
        let mut devices = self.devices.clone();
        devices.put(device).map_err(refused)?;
        check_number(&devices).map_err(refused)?;
        self.devices = devices;
        self.configured = true;
        Ok(Reply::Done)
    }
}
