//! What is behind the virtio devices on the host: files, taps, sockets.

pub mod copy;
pub mod drive;
pub mod found;
pub mod net;
pub mod tap;
pub mod vsock;
