//! A microVM monitor whose guests always know when they have been cloned.
//!
//! Start reading at [`controller`]: it owns the [machine](vmgenie_machine) and carries out the commands that [`api`] sends it.

pub mod api;
mod checked;
pub mod cli;
pub mod controller;
pub mod fatal;
pub mod kinds;
mod line_file;
pub mod lineage;
pub mod logging;
pub mod metrics;
pub mod process;
pub mod registry;
pub mod temporary;
pub mod terminal;
mod words;
