//! The wire types of `/machine-config` and `/boot-source`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::devices::lossy;
use super::{WireError, not_empty};
use crate::config::{self, BootSource, Cmdline, MachineConfig};

/// GET and PUT `/machine-config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

impl From<HugePages> for config::HugePages {
    fn from(pages: HugePages) -> Self {
        match pages {
            HugePages::None => Self::None,
            HugePages::Transparent => Self::Transparent,
            HugePages::TwoMib => Self::TwoMib,
        }
    }
}

impl From<MachineConfig> for MachineConfiguration {
    fn from(config: MachineConfig) -> Self {
        Self {
            vcpu_count: config.vcpus().into(),
            mem_size_mib: config.memory_mib(),
            smt: config.smt(),
            track_dirty_pages: false,
            huge_pages: match config.huge_pages() {
                config::HugePages::None => HugePages::None,
                config::HugePages::Transparent => HugePages::Transparent,
                config::HugePages::TwoMib => HugePages::TwoMib,
            },
            cpu_template: None,
        }
    }
}

impl TryFrom<MachineConfiguration> for MachineConfig {
    type Error = WireError;

    fn try_from(wire: MachineConfiguration) -> Result<Self, WireError> {
        check_unsupported(Some(wire.track_dirty_pages), wire.cpu_template.as_deref())?;
        Ok(MachineConfig::new(wire.vcpu_count, wire.mem_size_mib)?
            .with_smt(wire.smt)?
            .with_huge_pages(wire.huge_pages.into())?)
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
    /// Whether two vCPUs share a core.
    pub smt: Option<bool>,
    /// False only.
    pub track_dirty_pages: Option<bool>,
    /// `None`, `Transparent` or `2M`.
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
        check_unsupported(self.track_dirty_pages, self.cpu_template.as_deref())?;
        Ok(MachineConfig::new(
            self.vcpu_count.unwrap_or(current.vcpus().into()),
            self.mem_size_mib.unwrap_or(current.memory_mib()),
        )?
        .with_smt(self.smt.unwrap_or(current.smt()))?
        .with_huge_pages(match self.huge_pages {
            Some(pages) => pages.into(),
            None => current.huge_pages(),
        })?)
    }
}

fn check_unsupported(
    track_dirty_pages: Option<bool>,
    cpu_template: Option<&str>,
) -> Result<(), WireError> {
    if track_dirty_pages == Some(true) {
        return Err(WireError::DirtyPages("track_dirty_pages"));
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
