//! The wire types of `/machine-config` and `/boot-source`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::devices::lossy;
use super::{WireError, not_empty};
use crate::config::{BootSource, Cmdline, MachineConfig};

/// GET and PUT `/machine-config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineConfiguration {
    /// The number of vCPUs, 1 to 32.
    pub vcpu_count: u64,
    /// The size of the guest's memory in MiB, at least 32.
    pub mem_size_mib: u64,
    /// Whether two vCPUs share a core: false only.
    #[serde(default)]
    pub smt: bool,
    /// Whether dirty pages are tracked for diff snapshots: false only.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// The size of the pages behind guest memory: `None` (the default), the kernel's usual ones.
    #[serde(default)]
    pub huge_pages: HugePages,
    /// A CPU template: absent, null or `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<String>,
}

/// The pages behind guest memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum HugePages {
    /// The kernel's usual pages.
    #[default]
    None,
    /// Transparent huge pages: refused.
    Transparent,
    /// hugetlbfs pages of 2 MiB: refused.
    #[serde(rename = "2M")]
    TwoMib,
}

impl From<MachineConfig> for MachineConfiguration {
    fn from(config: MachineConfig) -> Self {
        Self {
            vcpu_count: config.vcpus().into(),
            mem_size_mib: config.memory_mib(),
            smt: false,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
            cpu_template: None,
        }
    }
}

impl TryFrom<MachineConfiguration> for MachineConfig {
    type Error = WireError;

    fn try_from(wire: MachineConfiguration) -> Result<Self, WireError> {
        check_unsupported(
            Some(wire.smt),
            Some(wire.track_dirty_pages),
            Some(wire.huge_pages),
            wire.cpu_template.as_deref(),
        )?;
        Ok(MachineConfig::new(wire.vcpu_count, wire.mem_size_mib)?)
    }
}

/// PATCH `/machine-config`: what is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineConfigurationPatch {
    /// The number of vCPUs, 1 to 32.
    pub vcpu_count: Option<u64>,
    /// The size of the guest's memory in MiB, at least 32.
    pub mem_size_mib: Option<u64>,
    /// False only.
    pub smt: Option<bool>,
    /// False only.
    pub track_dirty_pages: Option<bool>,
    /// `None` only.
    pub huge_pages: Option<HugePages>,
    /// `None` only.
    pub cpu_template: Option<String>,
}

impl MachineConfigurationPatch {
    /// The configuration that this patch makes of `current`.
    pub fn apply(self, current: MachineConfig) -> Result<MachineConfig, WireError> {
        if self == Self::default() {
            return Err(WireError::EmptyPatch);
        }
        check_unsupported(
            self.smt,
            self.track_dirty_pages,
            self.huge_pages,
            self.cpu_template.as_deref(),
        )?;
        Ok(MachineConfig::new(
            self.vcpu_count.unwrap_or(current.vcpus().into()),
            self.mem_size_mib.unwrap_or(current.memory_mib()),
        )?)
    }
}

fn check_unsupported(
    smt: Option<bool>,
    track_dirty_pages: Option<bool>,
    huge_pages: Option<HugePages>,
    cpu_template: Option<&str>,
) -> Result<(), WireError> {
    if smt == Some(true) {
        return Err(WireError::Smt);
    }
    if track_dirty_pages == Some(true) {
        return Err(WireError::DirtyPages("track_dirty_pages"));
    }
    if huge_pages.is_some_and(|pages| pages != HugePages::None) {
        return Err(WireError::HugePages);
    }
    match cpu_template {
        None | Some("None") => Ok(()),
        Some(_) => Err(WireError::CpuTemplate),
    }
}

/// PUT `/boot-source`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BootSourceBody {
    /// An ELF `vmlinux` or a bzImage; or the image of an ext4 root file system (**ours**), which has its kernel and its initial RAM disk
    /// in it. A relative path is relative to the VMM's working directory,
    /// as all paths here.
    #[schema(value_type = String)]
    pub kernel_image_path: PathBuf,
    /// An initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub initrd_path: Option<PathBuf>,
    /// The kernel command line: printable ASCII, at most 2,047 bytes; `console=ttyS0` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}

impl From<&BootSource> for BootSourceBody {
    fn from(source: &BootSource) -> Self {
        Self {
            kernel_image_path: lossy(&source.kernel),
            initrd_path: source.initrd.as_deref().map(lossy),
            boot_args: Some(source.cmdline.as_str().to_owned()),
        }
    }
}

impl TryFrom<BootSourceBody> for BootSource {
    type Error = WireError;

    fn try_from(wire: BootSourceBody) -> Result<Self, WireError> {
        Ok(Self {
            kernel: not_empty("kernel_image_path", wire.kernel_image_path)?,
            initrd: wire
                .initrd_path
                .map(|path| not_empty("initrd_path", path))
                .transpose()?,
            cmdline: match wire.boot_args {
                Some(text) => Cmdline::new(&text)?,
                None => Cmdline::default(),
            },
        })
    }
}
