//! The JSON of the API: Firecracker's field names and defaults, with vmgenie's own fields marked as
//! such.
//!
//! Wire types live apart from the internal ones (`config`, `controller::command`) and are converted
//! once, here. Whatever a client may get wrong is a [`WireError`], whose message becomes the
//! `fault_message`.

mod config;
mod devices;
mod generation;
mod logging;
mod machine;
mod snapshot;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

pub use config::{CheckedConfigFile, ConfigFile, FullConfig};
pub use devices::{
    CacheType, Drive, EntropyDevice, IoEngine, NetworkInterface, PartialDrive,
    PartialNetworkInterface, RateLimiter, TokenBucket, Vsock, VsockPeers,
};

pub use generation::{
    DriverInfo, GenerationInfo, GenerationWait, GenerationWaited, MAX_WAIT_MS, Missing,
    NewGeneration, Watchers,
};
pub use logging::{LineFormat, Logger, Metrics, parse_level};
pub use machine::{BootSourceBody, HugePages, MachineConfiguration, MachineConfigurationPatch};
pub use snapshot::{
    ChangedDrives, ClockChoice, DriveOverride, GenerationChoice, HostPaths, HugePagesAtLoad,
    MemBackend, MemBackendType, NetworkOverride, SnapshotCreate, SnapshotLoad, SnapshotType,
    VsockOverride,
};

use crate::config::ConfigError;
use crate::controller::command::{self as internal, Command};

/// A body that is well-formed JSON of the right shape and still asks for what cannot be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// A number or a command line is out of range.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// `track_dirty_pages` or `enable_diff_snapshots` is true.
    #[error("{0} is not supported, every snapshot is a full one: leave it out or set it to false")]
    DirtyPages(&'static str),
    /// `huge_pages` of a load asks for some.
    #[error(
        "huge pages are not supported for a snapshot, whose memory is mapped from its file: leave huge_pages out or set it to \"None\""
    )]
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
    /// A field that must be there.
    #[error("missing field `{0}`")]
    Missing(&'static str),
    /// A drive that is to be two things.
    #[error("copy and overlay exclude each other: a drive override has one of them at most")]
    CopyAndOverlay,
    /// No name of a snapshot.
    #[error("a snapshot_id has 32 lower-case hexadecimal digits")]
    SnapshotId,
    /// A rate limiter that limits something.
    #[error("rate limiters are not supported: leave {0} out")]
    RateLimiter(&'static str),
    /// A drive behind a vhost-user socket.
    #[error("vhost-user drives are not supported: give path_on_host in place of socket")]
    VhostUser,
    /// The name in the path is another one than the name in the body.
    #[error("The id from the path [{0}] does not match the id from the body [{1}]!")]
    OtherId(String, String),
    /// No level of the log.
    #[error("{0:?} is no log level: Error, Warning, Info, Debug, Trace or Off")]
    Level(String),
    /// The configuration file asks for what is not there.
    #[error("{0} is not supported: take it out of the configuration file")]
    NotInConfigFile(&'static str),
}

/// The body of every 400.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fault {
    /// What was wrong and what to do.
    pub fault_message: String,
}

/// GET `/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// The version of Firecracker whose dialect is spoken: clients look at this field to learn
    /// which requests they may make.
    pub firecracker_version: String,
    /// The version of vmgenie. Ours.
    pub vmgenie_version: String,
}

/// GET and PUT `/instance-data`. Ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceData {
    /// The guest's identity string: at most 4,096 bytes of UTF-8 without a zero; empty when there is none.
    pub data: String,
}

impl TryFrom<InstanceData> for Command {
    type Error = WireError;

    fn try_from(wire: InstanceData) -> Result<Self, WireError> {
        let data = crate::config::InstanceData::new(wire.data).map_err(ConfigError::from)?;
        Ok(Command::SetInstanceData(data))
    }
}

fn not_empty(field: &'static str, path: PathBuf) -> Result<PathBuf, WireError> {
    if path.as_os_str().is_empty() {
        Err(WireError::EmptyPath(field))
    } else {
        Ok(path)
    }
}

/// PUT `/actions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// What to do.
    pub action_type: ActionType,
}

/// The actions that a client of Firecracker may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ActionType {
    /// Boots the machine.
    InstanceStart,
    /// Writes a line of metrics now.
    FlushMetrics,
    /// Asks the guest to end: its ACPI power button is pressed.
    SendCtrlAltDel,
}

impl From<Action> for Command {
    fn from(wire: Action) -> Self {
        match wire.action_type {
            ActionType::InstanceStart => Command::Start,
            ActionType::FlushMetrics => Command::FlushMetrics,
            ActionType::SendCtrlAltDel => Command::PressPowerButton,
        }
    }
}

/// PATCH `/vm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmUpdate {
    /// What the vCPUs shall do.
    pub state: TargetState,
}

/// What a client may ask the vCPUs to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
