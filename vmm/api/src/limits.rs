//! How much the API takes at a time.

use std::time::Duration;

/// The longest body in bytes, when nothing else was said; Firecracker's default, too.
pub const BODY_LIMIT: usize = 51_200;
/// How long a body may take to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest head of a request in bytes, and the size to which a connection's buffers may grow.
pub const HEAD_LIMIT: usize = 16 << 10;
/// How many clients may be connected at the same time.
pub const MAX_CONNECTIONS: usize = 64;
/// How many waits there may be at the same time: they hold connections, of which others need some.
pub const MAX_WAITS: usize = 16;
/// How many clients may be attached at the same time: they hold connections, of which others need some.
pub const MAX_ATTACHED: usize = 8;
/// The longest path of a socket in bytes: `sun_path`, less the zero at its end.
pub const MAX_PATH: usize = 107;
