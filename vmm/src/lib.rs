//! A microVM monitor whose guests always know when they have been cloned.
//!
//! Start reading at [`controller`]: it owns the [`machine`] and carries out the commands that [`api`] sends it. [`generation`] holds
//! the one function that begins a new generation.

pub mod api;
pub mod boot;
pub mod cli;
pub mod config;
pub mod controller;
pub mod fatal;
pub mod generation;
mod line_file;
pub mod logging;
pub mod machine;
pub mod metrics;
pub mod process;
pub mod registry;
pub mod report;
pub mod terminal;
mod unix_socket;
