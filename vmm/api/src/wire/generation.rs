//! The wire types of `/generation` and `/generation/wait`. All of it is ours.

use serde::{Deserialize, Serialize};
#[cfg(feature = "schema")]
use utoipa::ToSchema;

/// The longest wait that may be asked for, in milliseconds: ten minutes.
pub const MAX_WAIT_MS: u64 = 600_000;

/// PUT `/generation`: no fields.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewGeneration {}

/// GET and PUT `/generation`. Ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub struct GenerationInfo {
    /// The generation ID as GUID text, as the guest's operating system shows it.
    pub id: String,
    /// The same 16 bytes in the order in which they lie in guest memory, as 32 hexadecimal digits.
    pub raw: String,
    /// How many times the ID has changed since the machine was first booted, through snapshots and
    /// clones.
    pub changes: u64,
    /// When the ID last changed: RFC 3339, UTC, milliseconds.
    pub since: String,
    /// The same in milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
    /// The IDs that came before, as GUID text, the oldest first: of this machine, and of those whose clone it is. The last
    /// 32 of them; `changes` tells how many there were. What a snapshot says of them is not checked.
    #[serde(default)]
    pub ancestors: Vec<String>,
    /// The generation counter as it stands in guest memory: the host and the guest's driver move it.
    pub counter: u32,
    /// What the guest's driver has told of this generation.
    pub driver: DriverInfo,
}

/// How far the guest has come with its generation, by the word of its driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub struct DriverInfo {
    /// There is a driver in the guest. Without one all else is false, 0 or absent.
    pub present: bool,
    /// The version of the driver's interface; 0 without a driver.
    pub version: u32,
    /// The driver has told its watchers.
    pub reached: bool,
    /// The kernel's random number generator has been reseeded.
    pub reseeded: bool,
    /// Those of the kernel who want to hear of a fork, as WireGuard does, have heard of it. Absent if the driver does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<bool>,
    /// How many tracked watchers have not acknowledged yet, whoever they are.
    pub outdated_watchers: u32,
    /// How many privileged ones have not, or went without: those that are waited for.
    #[serde(default)]
    pub required_watchers: u32,
    /// How many agents have finished their work for this generation.
    #[serde(default)]
    pub ready_agents: u32,
    /// How many are expected if a wait does not say: the most that ever were ready in one generation of this machine.
    #[serde(default)]
    pub expected_agents: u32,
    /// All of it, with as many agents as are expected: the guest has adapted. If none is expected, its kernel and its privileged
    /// watchers have; nobody speaks for the rest of it.
    pub adapted: bool,
    /// Microseconds from the beginning of the generation to the first report that it was reached. Absent if there was none, or
    /// not in this VMM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached_us: Option<u64>,
    /// The same for `reseeded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reseeded_us: Option<u64>,
    /// The same for `adapted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapted_us: Option<u64>,
}

/// PUT `/generation/wait`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(deny_unknown_fields)]
pub struct GenerationWait {
    /// How long to wait at most, in milliseconds: 0 (look once) to [`MAX_WAIT_MS`].
    pub timeout_ms: u64,
    /// How many agents have to have finished. Absent: as many as ever had in one generation of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<u32>,
    /// Which watchers have to have acknowledged.
    #[serde(default, skip_serializing_if = "Watchers::is_default")]
    pub watchers: Watchers,
}

/// Watchers that a wait waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Watchers {
    /// The privileged ones: any program may open the device and never acknowledge.
    #[default]
    Required,
    /// All that are tracked.
    All,
}

impl Watchers {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a guest that has not adapted lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// There is no driver in the guest. What else is missing nobody can tell.
    Driver,
    /// The kernel's random number generator has not been reseeded.
    Reseeded,
    /// The driver has not told its watchers.
    Reached,
    /// Those of the kernel who want to hear of a fork, as WireGuard does, have not heard of it.
    Chain,
    /// Watchers have not acknowledged; `required_watchers` says how many, or `outdated_watchers` if all are waited for.
    Watchers,
    /// Fewer agents have finished their work for the generation than are expected; `ready_agents` says how many have. None has told of
    /// the first of its two stages.
    Agent,
    /// As `agent`, but an agent has done the first of its two stages: the guest knows who it is.
    Ready,
    /// Of GET `/ready` alone, beside `agent`: the guest does not know who it is.
    Identity,
}

/// The answer to PUT `/generation/wait`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub struct GenerationWaited {
    /// The guest has adapted to its generation: nothing that was waited for is missing.
    pub adapted: bool,
    /// If not: what is missing.
    pub missing: Vec<Missing>,
    /// How long the answer took, in microseconds.
    pub waited_us: u64,
    /// What the guest's driver has told.
    pub driver: DriverInfo,
}
