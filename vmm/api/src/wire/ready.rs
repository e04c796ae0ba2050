//! The wire types of a restored machine's gate and of GET `/ready`. All of it is ours.

use serde::{Deserialize, Serialize};
#[cfg(feature = "schema")]
use utoipa::ToSchema;

use super::Missing;

/// What keeps a restored machine from its peers until its guest knows who it is: `gate` of PUT `/snapshot/load`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Gate {
    /// Network interfaces have no link before the stage `identity`; true when absent.
    pub link: bool,
    /// The guest's connections to the host are refused before the stage `identity`, and the host's to the guest before `service`; true
    /// when absent.
    pub vsock: bool,
    /// How many agents have to have finished. Absent: as many as ever had in one generation of this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agents: Option<u32>,
    /// How long the guest may take until the stage `service`, in milliseconds: 1 to [`MAX_WAIT_MS`](super::MAX_WAIT_MS); 30,000 when
    /// absent. It counts while the machine runs.
    pub timeout_ms: u64,
    /// What happens then; `keep` when absent.
    pub on_timeout: OnTimeout,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            link: true,
            vsock: true,
            agents: None,
            timeout_ms: 30_000,
            on_timeout: OnTimeout::Keep,
        }
    }
}

/// What happens if a guest has not adapted before its gate's time-out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// The gate stays shut until the guest has adapted after all.
    #[default]
    Keep,
    /// The VMM ends, with status 5.
    Kill,
    /// The gate opens.
    Open,
}

/// How far a machine has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Its guest may take itself for another machine.
    #[default]
    None,
    /// Its guest knows who it is.
    Identity,
    /// Its guest has adapted as a whole.
    Service,
}

impl Stage {
    /// The text that is on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Identity => "identity",
            Self::Service => "service",
        }
    }
}

/// GET `/ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub struct Ready {
    /// The machine has come to the stage `service`: it may be sent work.
    pub ready: bool,
    /// How far it has come. With a gate, that is at most how far the gate is open.
    pub stage: Stage,
    /// What the guest lacks of its present generation, by its own word.
    pub missing: Vec<Missing>,
    /// The gate. Absent if the machine has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateState>,
    /// How long the machine had run, in microseconds, when its random number generator was first reseeded. Absent before, and in a machine
    /// that was not restored for a generation that had begun elsewhere. The same holds for all of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reseeded_us: Option<u64>,
    /// The same for the stage `identity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_us: Option<u64>,
    /// The same for the stage `service` of the guest alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapted_us: Option<u64>,
    /// The same for the stage `service`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_us: Option<u64>,
}

/// A gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(ToSchema))]
pub struct GateState {
    /// How far it is open. It is never shut again.
    pub open: Stage,
    /// The guest had not adapted before the time-out.
    pub timed_out: bool,
    /// The time-out has opened it, and not the guest.
    pub forced: bool,
}
