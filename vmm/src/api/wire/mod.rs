//! The JSON of the API: Firecracker's field names and defaults, with vmgenie's own fields marked as
//! such.
//!
//! Wire types live apart from the internal ones (`config`, `controller::command`) and are converted
//! once, here. Whatever a client may get wrong is a [`WireError`], whose message becomes the
//! `fault_message`.

mod generation;
mod snapshot;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use generation::{
    DriverInfo, GenerationInfo, GenerationWait, GenerationWaited, MAX_WAIT_MS, Missing,
    NewGeneration,
};
pub use snapshot::{
    GenerationChoice, MemBackend, MemBackendType, SnapshotCreate, SnapshotLoad, SnapshotType,
};

use crate::config::{BootSource, Cmdline, ConfigError, MachineConfig};
use crate::controller::command::{self as internal, Command, VmConfig};

/// A body that is well-formed JSON of the right shape and still asks for what cannot be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// A number or a command line is out of range.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// `smt` is true.
    #[error("smt is not supported: leave it out or set it to false")]
    Smt,
    /// `track_dirty_pages` or `enable_diff_snapshots` is true.
    #[error("{0} is not supported, every snapshot is a full one: leave it out or set it to false")]
    DirtyPages(&'static str),
    /// `huge_pages` is not `None`.
    #[error("huge pages are not supported: leave huge_pages out or set it to \"None\"")]
    HugePages,
    /// `cpu_template` names a template.
    #[error("CPU templates are not supported: leave cpu_template out or set it to \"None\"")]
    CpuTemplate,
    /// A PATCH that changes nothing.
    #[error("the body changes nothing: give vcpu_count, mem_size_mib or both")]
    EmptyPatch,
    /// A path is the empty string.
    #[error("{0} is an empty path")]
    EmptyPath(&'static str),
    /// The state file and the memory file are one file.
    #[error("snapshot_path and the memory file are the same file: they must be two")]
    SameFile,
    /// A diff snapshot is asked for.
    #[error("Diff snapshots are not supported: use the snapshot_type \"Full\"")]
    DiffSnapshot,
    /// Neither or both of `mem_backend` and `mem_file_path`.
    #[error("exactly one of mem_backend and mem_file_path must be given")]
    MemoryBackend,
    /// Memory from a userfaultfd handler.
    #[error("the memory backend Uffd is not supported: use the backend_type \"File\"")]
    Uffd,
    /// `timeout_ms` is out of range.
    #[error("a wait of {0} ms was asked for: timeout_ms may be {MAX_WAIT_MS} at most")]
    WaitTooLong(u64),
    /// An action that other VMMs have.
    #[error("the action {0} is not supported: {1}")]
    Action(&'static str, &'static str),
}

/// The body of every 400.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What was wrong and what to do.
    pub fault_message: String,
}

/// GET `/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceInfo {
    /// Always `vmgenie`.
    pub app_name: String,
    /// The name that the VMM was started with (`--id`).
    pub id: String,
    /// What the microVM does.
    pub state: State,
    /// The version of vmgenie.
    pub vmm_version: String,
}

/// The states of a microVM, spelled as Firecracker spells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Nothing runs yet.
    #[serde(rename = "Not started")]
    NotStarted,
    /// The vCPUs run.
    Running,
    /// The vCPUs stand still.
    Paused,
}

impl State {
    /// The text that is on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            State::NotStarted => "Not started",
            State::Running => "Running",
            State::Paused => "Paused",
        }
    }
}

impl From<internal::VmState> for State {
    fn from(state: internal::VmState) -> Self {
        match state {
            internal::VmState::NotStarted => State::NotStarted,
            internal::VmState::Running => State::Running,
            internal::VmState::Paused => State::Paused,
        }
    }
}

/// GET `/version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The version of Firecracker whose dialect is spoken: clients look at this field to learn
    /// which requests they may make.
    pub firecracker_version: String,
    /// The version of vmgenie. Ours.
    pub vmgenie_version: String,
}

/// GET and PUT `/machine-config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// The kernel's usual pages.
    #[default]
    None,
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    if huge_pages == Some(HugePages::TwoMib) {
        return Err(WireError::HugePages);
    }
    match cpu_template {
        None | Some("None") => Ok(()),
        Some(_) => Err(WireError::CpuTemplate),
    }
}

/// PUT `/boot-source`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSourceBody {
    /// An ELF `vmlinux` or a bzImage. A relative path is relative to the VMM's working directory,
    /// as all paths here.
    pub kernel_image_path: PathBuf,
    /// An initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// The kernel command line: printable ASCII, at most 2,047 bytes; `console=ttyS0` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}

impl From<&BootSource> for BootSourceBody {
    fn from(source: &BootSource) -> Self {
        // A path that is no UTF-8 can only come from the command line; it is shown, never read
        // back.
        let lossy = |path: &Path| PathBuf::from(path.to_string_lossy().into_owned());
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

fn not_empty(field: &'static str, path: PathBuf) -> Result<PathBuf, WireError> {
    if path.as_os_str().is_empty() {
        Err(WireError::EmptyPath(field))
    } else {
        Ok(path)
    }
}

/// GET `/vm/config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FullConfig {
    /// What is booted; absent before it was set and after a restore.
    #[serde(
        rename = "boot-source",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub boot_source: Option<BootSourceBody>,
    /// vCPUs and memory.
    #[serde(rename = "machine-config")]
    pub machine_config: MachineConfiguration,
    /// Always empty: clients of Firecracker expect the field.
    #[serde(default)]
    pub drives: Vec<serde_json::Value>,
    /// Always empty: clients of Firecracker expect the field.
    #[serde(rename = "network-interfaces", default)]
    pub network_interfaces: Vec<serde_json::Value>,
}

impl From<VmConfig> for FullConfig {
    fn from(config: VmConfig) -> Self {
        Self {
            boot_source: config.boot_source.as_ref().map(BootSourceBody::from),
            machine_config: config.machine.into(),
            drives: Vec::new(),
            network_interfaces: Vec::new(),
        }
    }
}

/// PUT `/actions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// What to do.
    pub action_type: ActionType,
}

/// The actions that a client of Firecracker may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActionType {
    /// Boots the machine.
    InstanceStart,
    /// Refused: there are no metrics.
    FlushMetrics,
    /// Refused: there is no keyboard.
    SendCtrlAltDel,
}

impl TryFrom<Action> for Command {
    type Error = WireError;

    fn try_from(wire: Action) -> Result<Self, WireError> {
        match wire.action_type {
            ActionType::InstanceStart => Ok(Command::Start),
            ActionType::FlushMetrics => Err(WireError::Action(
                "FlushMetrics",
                "vmgenie keeps no metrics; its log goes to standard error (--log-level)",
            )),
            ActionType::SendCtrlAltDel => Err(WireError::Action(
                "SendCtrlAltDel",
                "the guest has no keyboard; run `poweroff` or `reboot` on its console",
            )),
        }
    }
}

/// PATCH `/vm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmUpdate {
    /// What the vCPUs shall do.
    pub state: TargetState,
}

/// What a client may ask the vCPUs to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetState {
    /// Stand still.
    Paused,
    /// Go on.
    Resumed,
}

impl From<VmUpdate> for Command {
    fn from(wire: VmUpdate) -> Self {
        match wire.state {
            TargetState::Paused => Command::Pause,
            TargetState::Resumed => Command::Resume,
        }
    }
}
