//! The wire types of `/machine-config` and `/boot-source`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
#[cfg(feature = "schema")]
use utoipa::ToSchema;

/// GET and PUT `/machine-config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[cfg_attr(feature = "strict", serde(deny_unknown_fields))]
pub struct MachineConfiguration {
    /// The number of vCPUs, 1 to 32.
    pub vcpu_count: u64,
    /// The size of the guest's memory in MiB, at least 32.
    pub mem_size_mib: u64,
    /// Whether two vCPUs share a core; their number is 1 or even then.
    #[serde(default)]
    pub smt: bool,
    /// Whether dirty pages are tracked for diff snapshots: false only.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// The size of the pages behind guest memory: `None` (the default), the host's usual ones, `Transparent` or `2M`.
    #[serde(default)]
    pub huge_pages: HugePages,
    /// A CPU template: absent, null or `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<String>,
}

/// The pages behind guest memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub enum HugePages {
    /// The kernel's usual pages.
    #[default]
    None,
    /// The usual ones, which the host's kernel joins where it can.
    Transparent,
    /// Huge pages of 2 MiB, which the host's administrator has set aside (`vm.nr_hugepages`). A machine that is restored
    /// has the usual ones.
    #[serde(rename = "2M")]
    TwoMib,
}

/// PATCH `/machine-config`: what is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MachineConfigurationPatch {
    /// The number of vCPUs, 1 to 32.
    pub vcpu_count: Option<u64>,
    /// The size of the guest's memory in MiB, at least 32.
    pub mem_size_mib: Option<u64>,
    /// Whether two vCPUs share a core.
    pub smt: Option<bool>,
    /// False only.
    pub track_dirty_pages: Option<bool>,
    /// `None`, `Transparent` or `2M`.
    pub huge_pages: Option<HugePages>,
    /// `None` only.
    pub cpu_template: Option<String>,
}

/// PUT `/boot-source`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[cfg_attr(feature = "strict", serde(deny_unknown_fields))]
pub struct BootSourceBody {
    /// An ELF `vmlinux` or a bzImage; or the image of an ext4 root file system (**ours**), which has its kernel and its initial RAM disk
    /// in it. A relative path is relative to the VMM's working directory,
    /// as all paths here.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub kernel_image_path: PathBuf,
    /// An initial RAM disk.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub initrd_path: Option<PathBuf>,
    /// The kernel command line: printable ASCII, at most 2,047 bytes; `console=ttyS0` when absent.
    #[serde(default)]
    pub boot_args: Option<String>,
}
