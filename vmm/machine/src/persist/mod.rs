//! A machine becomes a state file, and a state file a machine: saving, what a file says, whether it fits the host, restoring.

mod host_fit;
mod restore;
mod save;
mod saved;

pub use restore::RestoreError;
pub use save::SaveError;
pub use saved::{SavedError, SavedMachine};
