//! What is behind the virtio devices on the host.

pub mod net;
pub mod tap;
