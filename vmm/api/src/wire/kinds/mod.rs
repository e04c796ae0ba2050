//! The kinds of devices, a module each, and the two lists that have them all: GET `/vm/config`, and the configuration file
//! (`--config-file`).

mod drive;
mod entropy;
mod net;
mod vsock;

use serde::{Deserialize, Serialize};
#[cfg(feature = "schema")]
use utoipa::ToSchema;

use super::{BootSourceBody, Logger, MachineConfiguration, Metrics};

pub use drive::{CacheType, Drive, IoEngine, PartialDrive};
pub use entropy::EntropyDevice;
pub use net::{NetworkInterface, PartialNetworkInterface};
pub use vsock::{Vsock, VsockPeers};

/// GET `/vm/config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
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

impl FullConfig {
    /// A machine without any device, of which it is not known what is booted.
    pub fn without_devices(machine_config: MachineConfiguration) -> Self {
        Self {
            boot_source: None,
            machine_config,
            drives: Vec::new(),
            network_interfaces: Vec::new(),
            vsock: None,
            entropy: None,
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
