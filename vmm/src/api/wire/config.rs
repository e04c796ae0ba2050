//! The wire types of GET `/vm/config` and of the configuration file (`--config-file`).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    BootSourceBody, Drive, EntropyDevice, Logger, MachineConfiguration, Metrics, NetworkInterface,
    Vsock, WireError,
};
use crate::config::{BootSource, DevicesConfig, MachineConfig};
use crate::controller::command::{Command, VmConfig};

/// GET `/vm/config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct FullConfig {
    /// What is booted; absent before it was set and after a restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_source: Option<BootSourceBody>,
    /// vCPUs and memory.
    pub machine_config: MachineConfiguration,
    /// The drives, the root drive first.
    #[serde(default)]
    pub drives: Vec<Drive>,
    /// The network interfaces.
    #[serde(default)]
    pub network_interfaces: Vec<NetworkInterface>,
    /// The vsock device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Vsock>,
    /// The entropy device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<EntropyDevice>,
}

impl From<VmConfig> for FullConfig {
    fn from(config: VmConfig) -> Self {
        let devices = &config.devices;
        Self {
            boot_source: config.boot_source.as_ref().map(BootSourceBody::from),
            machine_config: config.machine.into(),
            drives: devices.drives().iter().map(Drive::from).collect(),
            network_interfaces: devices.nets().iter().map(NetworkInterface::from).collect(),
            vsock: devices.vsock().map(Vsock::from),
            entropy: devices.entropy().map(|_| EntropyDevice::default()),
        }
    }
}

/// A configuration file: the bodies of the requests that it stands for, under the names of GET `/vm/config`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ConfigFile {
    /// PUT `/boot-source`.
    pub boot_source: BootSourceBody,
    /// PUT `/machine-config`.
    #[serde(default)]
    pub machine_config: Option<MachineConfiguration>,
    /// PUT `/drives`.
    #[serde(default)]
    pub drives: Vec<Drive>,
    /// PUT `/network-interfaces`.
    #[serde(default)]
    pub network_interfaces: Vec<NetworkInterface>,
    /// PUT `/vsock`.
    #[serde(default)]
    pub vsock: Option<Vsock>,
    /// PUT `/entropy`.
    #[serde(default)]
    pub entropy: Option<EntropyDevice>,
    /// PUT `/logger`.
    #[serde(default)]
    pub logger: Option<Logger>,
    /// PUT `/metrics`.
    #[serde(default)]
    pub metrics: Option<Metrics>,
    /// Null only, as the ones below.
    #[serde(default)]
    pub balloon: Option<serde_json::Value>,
    /// Null only.
    #[serde(default)]
    pub cpu_config: Option<serde_json::Value>,
    /// Null only.
    #[serde(default)]
    pub mmds_config: Option<serde_json::Value>,
    /// Null or empty only.
    #[serde(default)]
    pub pmem: Option<Vec<serde_json::Value>>,
    /// Null only.
    #[serde(default)]
    pub memory_hotplug: Option<serde_json::Value>,
}

/// What a configuration file asks for: what is to be set first, and the machine.
pub type CheckedConfigFile = (Vec<Command>, (MachineConfig, BootSource, DevicesConfig));

impl ConfigFile {
    /// Checks all of it.
    pub fn checked(self) -> Result<CheckedConfigFile, WireError> {
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
            first.push(Command::SetLog(logger.try_into()?));
        }
        if let Some(metrics) = self.metrics {
            first.push(Command::SetMetrics(metrics.try_into()?));
        }
        let machine = self.machine_config.map(MachineConfig::try_from);
        let mut devices = DevicesConfig::default();
        for drive in self.drives {
            devices.put_drive(drive.try_into()?)?;
        }
        for net in self.network_interfaces {
            devices.put_net(net.try_into()?)?;
        }
        if let Some(vsock) = self.vsock {
            devices.set_vsock(vsock.try_into()?);
        }
        if let Some(entropy) = self.entropy {
            devices.set_entropy(entropy.try_into()?);
        }
        let machine = machine.transpose()?.unwrap_or_default();
        Ok((first, (machine, self.boot_source.try_into()?, devices)))
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
