//! The kinds of devices, a module each, and the two lists that have them all: GET `/vm/config`, and the configuration file
//! (`--config-file`).

mod drive;
mod entropy;
mod net;
mod vsock;

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
#[cfg(feature = "schema")]
use utoipa::ToSchema;

use super::{BootSourceBody, Logger, MachineConfiguration, Metrics};

pub use drive::{CacheType, Drive, IoEngine, PartialDrive};
pub use entropy::EntropyDevice;
pub use net::{NetworkInterface, PartialNetworkInterface};
pub use vsock::{Vsock, VsockPeers};

/// GET `/vm/config`. What is not set is null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(rename_all = "kebab-case")]
pub struct FullConfig {
    /// Null, as there is none.
    #[serde(default)]
    pub balloon: Option<serde_json::Value>,
    /// The drives, the root drive first.
    #[serde(default)]
    pub drives: Vec<Drive>,
    /// What is booted; its path is empty before it was set and after a restore.
    #[serde(default)]
    pub boot_source: BootSourceBody,
    /// Null.
    #[serde(default)]
    pub cpu_config: Option<serde_json::Value>,
    /// Null.
    #[serde(default)]
    pub logger: Option<serde_json::Value>,
    /// vCPUs and memory.
    pub machine_config: MachineConfiguration,
    /// Null.
    #[serde(default)]
    pub metrics: Option<serde_json::Value>,
    /// Null, as there is none.
    #[serde(default)]
    pub mmds_config: Option<serde_json::Value>,
    /// The network interfaces.
    #[serde(default)]
    pub network_interfaces: Vec<NetworkInterface>,
    /// The vsock device.
    #[serde(default)]
    pub vsock: Option<Vsock>,
    /// The entropy device.
    #[serde(default)]
    pub entropy: Option<EntropyDevice>,
    /// Empty, as there are none.
    #[serde(default)]
    pub pmem: Vec<serde_json::Value>,
    /// Null, as there is none.
    #[serde(default)]
    pub memory_hotplug: Option<serde_json::Value>,
}

impl FullConfig {
    /// A machine without any device, of which it is not known what is booted.
    pub fn without_devices(machine_config: MachineConfiguration) -> Self {
        Self {
            balloon: None,
            drives: Vec::new(),
            boot_source: BootSourceBody::default(),
            cpu_config: None,
            logger: None,
            machine_config,
            metrics: None,
            mmds_config: None,
            network_interfaces: Vec::new(),
            vsock: None,
            entropy: None,
            pmem: Vec::new(),
            memory_hotplug: None,
        }
    }
}

/// A configuration file: the bodies of the requests that it stands for, under the names of GET `/vm/config`. Other
/// names are passed over, as Firecracker does: [`ConfigFile::unknown_names`] tells of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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

impl ConfigFile {
    /// The names that a configuration file may have.
    const NAMES: [&str; 13] = [
        "balloon",
        "drives",
        "boot-source",
        "cpu-config",
        "logger",
        "machine-config",
        "metrics",
        "mmds-config",
        "network-interfaces",
        "vsock",
        "entropy",
        "pmem",
        "memory-hotplug",
    ];

    /// The names in this text of a configuration file that are none, sorted.
    ///
    /// # Errors
    /// The text is no JSON object.
    pub fn unknown_names(text: &[u8]) -> Result<Vec<String>, serde_json::Error> {
        let all: BTreeMap<String, IgnoredAny> = serde_json::from_slice(text)?;
        let unknown = |name: &String| !Self::NAMES.contains(&name.as_str());
        Ok(all.into_keys().filter(unknown).collect())
    }
}
