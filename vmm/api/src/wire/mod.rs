//! The JSON of the API: Firecracker's field names and defaults, with vmgenie's own fields marked as
//! such.
//!
//! They are what goes over the wire, and nothing else: the program checks what they ask for and converts them.

mod generation;
mod kinds;
mod logging;
mod machine;
mod rate_limiter;
mod ready;
mod self_snapshot;
mod snapshot;

use serde::{Deserialize, Serialize};
#[cfg(feature = "schema")]
use utoipa::ToSchema;

pub use generation::{
    DriverInfo, GenerationInfo, GenerationWait, GenerationWaited, MAX_WAIT_MS, Missing,
    NewGeneration, Watchers,
};
pub use kinds::*;
pub use logging::{LineFormat, Logger, Metrics, Serial};
pub use machine::{BootSourceBody, HugePages, MachineConfiguration, MachineConfigurationPatch};
pub use rate_limiter::{RateLimiter, TokenBucket};
pub use ready::{Gate, GateState, OnTimeout, Ready, Stage};
pub use self_snapshot::{MAX_SELF_SNAPSHOTS, SelfSnapshot, SelfSnapshotTaken, SelfSnapshots};
pub use snapshot::{
    ChangedDrives, ClockChoice, CooperativeCreate, CooperativeCreated, DriveOverride,
    GenerationChoice, HostPaths, HugePagesAtLoad, MAX_QUIESCE_MS, MemBackend, MemBackendType,
    NetworkOverride, SnapshotCreate, SnapshotFallback, SnapshotHow, SnapshotLoad, SnapshotType,
    VsockOverride, WaitedFor,
};

/// The body of every 400.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub struct Fault {
    /// What was wrong and what to do.
    pub fault_message: String,
}

/// GET `/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
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
#[cfg_attr(feature = "schema", derive(ToSchema))]
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

/// GET `/version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub struct Version {
    /// The version of Firecracker whose dialect is spoken: clients look at this field to learn
    /// which requests they may make.
    pub firecracker_version: String,
    /// The version of vmgenie. Ours.
    pub vmgenie_version: String,
}

/// GET and PUT `/instance-data`. Ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[cfg_attr(feature = "strict", serde(deny_unknown_fields))]
pub struct InstanceData {
    /// The guest's identity string: at most 4,096 bytes of UTF-8 without a zero; empty when there is none.
    pub data: String,
}

/// PUT `/actions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// What to do.
    pub action_type: ActionType,
}

/// The actions that a client of Firecracker may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub enum ActionType {
    /// Boots the machine.
    InstanceStart,
    /// Writes a line of metrics now.
    FlushMetrics,
    /// Asks the guest to end: its ACPI power button is pressed.
    SendCtrlAltDel,
}

/// PATCH `/vm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VmUpdate {
    /// What the vCPUs shall do.
    pub state: TargetState,
}

/// What a client may ask the vCPUs to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub enum TargetState {
    /// Stand still.
    Paused,
    /// Go on.
    Resumed,
}

#[cfg(test)]
#[path = "wire_test.rs"]
mod tests;
