//! The API of vmgenie, for programs that use it: its JSON, its headers and limits, and a client.
//!
//! A vmgenie process serves Firecracker's REST dialect, with additions of its own, on a Unix socket. [`client::Client`] has one call
//! for each request; [`attach::attach`] makes a connection the guest's console. Nothing in here needs KVM.
//!
//! ```no_run
//! use std::path::Path;
//! use std::time::Duration;
//!
//! use vmgenie_api::client::{Client, ClientError};
//!
//! fn wait_until_adapted(socket: &Path) -> Result<bool, ClientError> {
//!     let waited = Client::new(socket)?.wait_for_generation(Duration::from_secs(10))?;
//!     Ok(waited.adapted)
//! }
//! ```

pub mod attach;
pub mod client;
pub mod headers;
pub mod limits;
pub mod wire;
