//! Between the JSON of the API and what is used inside: converted once, here, and for devices in [`kinds`](crate::kinds).

mod config;
mod generation;
mod logging;
mod machine;
mod ready;
mod self_snapshot;
mod snapshot;

use std::time::Duration;

use vmgenie_api::wire::{Action, ActionType, InstanceData, State, TargetState, VmUpdate};

pub use crate::checked::{Checked, Convert, WireError};
pub(crate) use crate::checked::{lossy, not_empty};
pub use config::CheckedConfigFile;
pub use generation::{missing, waited};
pub use logging::parse_level;
pub use machine::patched;
pub use ready::ready;
pub use self_snapshot::self_snapshots;
pub use snapshot::created;

use vmgenie_machine::config::ConfigError;

use crate::controller::command::{self as internal, Command};

/// A time as the API tells it.
pub fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Convert<State> for internal::VmState {
    fn convert(self) -> State {
        let state = self;
        match state {
            internal::VmState::NotStarted => State::NotStarted,
            internal::VmState::Running => State::Running,
            internal::VmState::Paused => State::Paused,
        }
    }
}

impl Checked<Command> for InstanceData {
    fn checked(self) -> Result<Command, WireError> {
        let wire = self;
        let data =
            vmgenie_machine::config::InstanceData::new(wire.data).map_err(ConfigError::from)?;
        Ok(Command::SetInstanceData(data))
    }
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

impl From<VmUpdate> for Command {
    fn from(wire: VmUpdate) -> Self {
        match wire.state {
            TargetState::Paused => Command::Pause,
            TargetState::Resumed => Command::Resume,
        }
    }
}
