//! `/machine-config` and `/boot-source`.

use vmgenie_api::wire::{
    BootSourceBody, HugePages, MachineConfiguration, MachineConfigurationPatch,
};
use vmgenie_machine::config::{self, BootSource, Cmdline, MachineConfig};

use super::{Checked, Convert, WireError, lossy, not_empty};

impl Convert<config::HugePages> for HugePages {
    fn convert(self) -> config::HugePages {
        match self {
            HugePages::None => config::HugePages::None,
            HugePages::Transparent => config::HugePages::Transparent,
            HugePages::TwoMib => config::HugePages::TwoMib,
        }
    }
}

impl Convert<MachineConfiguration> for MachineConfig {
    fn convert(self) -> MachineConfiguration {
        let config = self;
        MachineConfiguration {
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

impl Checked<MachineConfig> for MachineConfiguration {
    fn checked(self) -> Result<MachineConfig, WireError> {
        let wire = self;
        check_unsupported(Some(wire.track_dirty_pages), wire.cpu_template.as_deref())?;
        Ok(MachineConfig::new(wire.vcpu_count, wire.mem_size_mib)?
            .with_smt(wire.smt)?
            .with_huge_pages(wire.huge_pages.convert())?)
    }
}

/// The configuration that `patch` makes of `current`.
///
/// # Errors
/// It changes nothing, or there is no such machine.
pub fn patched(
    patch: MachineConfigurationPatch,
    current: MachineConfig,
) -> Result<MachineConfig, WireError> {
    if patch == MachineConfigurationPatch::default() {
        return Err(WireError::EmptyPatch);
    }
    check_unsupported(patch.track_dirty_pages, patch.cpu_template.as_deref())?;
    Ok(MachineConfig::new(
        patch.vcpu_count.unwrap_or(current.vcpus().into()),
        patch.mem_size_mib.unwrap_or(current.memory_mib()),
    )?
    .with_smt(patch.smt.unwrap_or(current.smt()))?
    .with_huge_pages(match patch.huge_pages {
        Some(pages) => pages.convert(),
        None => current.huge_pages(),
    })?)
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

impl Convert<BootSourceBody> for &BootSource {
    fn convert(self) -> BootSourceBody {
        let source = self;
        BootSourceBody {
            kernel_image_path: lossy(&source.kernel),
            initrd_path: source.initrd.as_deref().map(lossy),
            boot_args: Some(source.cmdline.as_str().to_owned()),
        }
    }
}

impl Checked<BootSource> for BootSourceBody {
    fn checked(self) -> Result<BootSource, WireError> {
        let wire = self;
        Ok(BootSource {
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
