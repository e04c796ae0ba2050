//! The API: Firecracker's REST dialect over HTTP/1.1 on a Unix socket, and what is vmgenie's own
//! beside it.
//!
//! One thread named `api` runs a current-thread runtime. It knows routes, wire types and limits;
//! the machine it reaches only by sending a [`Command`](crate::controller::command::Command) to the
//! controller and waiting for the reply.
//!
//! | request | answer |
//! |---|---|
//! | GET `/` | who is there, and in which state |
//! | GET `/version` | versions |
//! | GET `/vm/config` | the whole configuration |
//! | GET, PUT, PATCH `/machine-config` | vCPUs and memory |
//! | PUT `/boot-source` | kernel, initrd, command line |
//! | PUT the path of a [kind of device](crate::kinds) | sets a device |
//! | PATCH `/drives/{drive_id}`, `/network-interfaces/{iface_id}` | changes one of a machine |
//! | PUT `/actions` | `InstanceStart`, `FlushMetrics`, `SendCtrlAltDel` |
//! | PUT `/logger`, `/metrics`, `/serial` | where log, metrics and the serial console go |
//! | GET `/metrics`, `/openapi.json` | ours: the metrics for Prometheus, the document of this API |
//! | PATCH `/vm` | `Paused`, `Resumed` |
//! | PUT `/snapshot/create` | a full snapshot of a paused machine; ours: `resume_vm`, `pause_vm` |
//! | PUT `/snapshot/load` | restores into a VMM with nothing configured; ours: `generation`, more overrides |
//! | GET, PUT `/generation` | ours: the generation; begins a new one |
//! | GET `/console` | ours: the connection becomes the guest's console |
//! | PUT `/generation/wait` | ours: waits until the guest has adapted to it |
//!
//! Success is 204 without a body or 200 with JSON; whatever else is 400 with [`Fault`](vmgenie_api::wire::Fault).

mod console;
pub mod convert;
mod fault;
mod http10;
mod limits;
mod malformed;
mod routes;
mod server;
#[cfg(test)]
pub(crate) mod testing;
mod wait;

pub use routes::router;
pub use server::{ApiError, ApiThread, spawn};
pub use vmgenie_machine::unix_socket::SocketError;

/// What the API tells about the process it runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiInfo {
    /// The name that the VMM was started with.
    pub id: String,
    /// The version of vmgenie.
    pub version: String,
    /// The longest body of a request, in bytes.
    pub body_limit: usize,
}
