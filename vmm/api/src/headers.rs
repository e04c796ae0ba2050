//! Names that requests and answers have beside their paths and bodies.

use hyper::header::HeaderName;

/// The version of Firecracker whose requests and fields the API follows.
pub const FIRECRACKER_DIALECT: &str = "1.12.0";

/// In the answer to PUT `/snapshot/create`: how long the vCPUs stood still, in microseconds.
pub const STANDSTILL_HEADER: HeaderName = HeaderName::from_static("x-vmgenie-standstill-us");
/// In the answer to PUT `/snapshot/create`: how long everything took, in microseconds.
pub const TOTAL_HEADER: HeaderName = HeaderName::from_static("x-vmgenie-total-us");
/// In the answer to PUT `/snapshot/create`: how many bytes of guest memory were written.
pub const MEMORY_HEADER: HeaderName = HeaderName::from_static("x-vmgenie-memory-bytes");
/// In the answer to a request with a deprecated field.
pub const DEPRECATION_HEADER: HeaderName = HeaderName::from_static("deprecation");
/// The protocol that a client of GET `/console` asks for.
pub const CONSOLE_PROTOCOL: &str = "vmgenie-console";
