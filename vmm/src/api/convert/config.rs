//! GET `/vm/config` and the configuration file.

use vmgenie_api::wire::{ConfigFile, EntropyDevice, FullConfig};
use vmgenie_machine::config::{BootSource, MachineConfig};
use vmgenie_machine::virtio::kinds::DevicesConfig;

use super::{Checked, Convert, WireError};
use crate::controller::command::{Command, VmConfig};

impl Convert<FullConfig> for VmConfig {
    fn convert(self) -> FullConfig {
        let config = self;
        let devices = &config.devices;
        FullConfig {
            boot_source: config.boot_source.as_ref().map(Convert::convert),
            machine_config: config.machine.convert(),
            drives: devices.drives().iter().map(Convert::convert).collect(),
            network_interfaces: devices.nets().iter().map(Convert::convert).collect(),
            vsock: devices.vsock().map(Convert::convert),
            entropy: devices.entropy().map(|_| EntropyDevice::default()),
        }
    }
}

/// What a configuration file asks for: what is to be set first, and the machine.
pub type CheckedConfigFile = (Vec<Command>, (MachineConfig, BootSource, DevicesConfig));

impl Checked<CheckedConfigFile> for ConfigFile {
    fn checked(self) -> Result<CheckedConfigFile, WireError> {
        for (name, there) in [
            ("balloon", self.balloon.is_some()),
            ("cpu-config", self.cpu_config.is_some()),
            ("mmds-config", self.mmds_config.is_some()),
            ("pmem", self.pmem.is_some_and(|list| !list.is_empty())),
            ("memory-hotplug", self.memory_hotplug.is_some()),
        ] {
            if there {
                return Err(WireError::NotInConfigFile(name));
            }
        }
        let mut first = Vec::new();
        if let Some(logger) = self.logger {
            first.push(Command::SetLog(logger.checked()?));
        }
        if let Some(metrics) = self.metrics {
            first.push(Command::SetMetrics(metrics.checked()?));
        }
        let machine = self.machine_config.map(Checked::checked);
        let mut devices = DevicesConfig::default();
        for drive in self.drives {
            devices.put_drive(drive.checked()?)?;
        }
        for net in self.network_interfaces {
            devices.put_net(net.checked()?)?;
        }
        if let Some(vsock) = self.vsock {
            devices.set_vsock(vsock.checked()?);
        }
        if let Some(entropy) = self.entropy {
            devices.set_entropy(entropy.checked()?);
        }
        let machine = machine.transpose()?.unwrap_or_default();
        Ok((first, (machine, self.boot_source.checked()?, devices)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ConfigFile {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_firecracker_configuration_file_is_taken_whole() {
        let file = parse(
            r#"{
            "boot-source": {"kernel_image_path": "vmlinux", "boot_args": "console=ttyS0", "initrd_path": null},
            "drives": [{"drive_id": "rootfs", "partuuid": null, "is_root_device": true, "cache_type": "Unsafe",
                "is_read_only": false, "path_on_host": "root.ext4", "io_engine": "Sync", "rate_limiter": null, "socket": null}],
            "machine-config": {"vcpu_count": 2, "mem_size_mib": 1024, "smt": false, "track_dirty_pages": false, "huge_pages": "None"},
            "cpu-config": null, "balloon": null,
            "network-interfaces": [{"iface_id": "eth0", "guest_mac": "06:00:ac:10:00:02", "host_dev_name": "tap0"}],
            "vsock": {"guest_cid": 3, "uds_path": "v.sock"},
            "logger": {"log_path": "log.fifo", "level": "Debug"}, "metrics": {"metrics_path": "m.fifo"},
            "mmds-config": null, "entropy": null, "pmem": [], "memory-hotplug": null}"#,
        );
        let (first, (machine, source, devices)) = file.checked().unwrap();
        assert!(matches!(
            first[..],
            [Command::SetLog(_), Command::SetMetrics(_)]
        ));
        assert_eq!((machine.vcpus(), machine.memory_mib()), (2, 1024));
        assert_eq!(source.cmdline.as_str(), "console=ttyS0");
        assert_eq!(devices.len(), 3);
        assert!(devices.root_drive().is_some());
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        let file =
            parse(r#"{"boot-source": {"kernel_image_path": "k"}, "balloon": {"amount_mib": 1}}"#);
        assert_eq!(file.checked(), Err(WireError::NotInConfigFile("balloon")));
        let unknown = r#"{"boot-source": {"kernel_image_path": "k"}, "baloon": null}"#;
        assert!(serde_json::from_str::<ConfigFile>(unknown).is_err());
        assert!(serde_json::from_str::<ConfigFile>("{}").is_err());
    }
}
