//! Where there is room that is not memory.

use std::path::{Path, PathBuf};

/// Whether this is the emulated host, whose processor loses a guest now and then.
pub fn is_emulated() -> bool {
    std::env::var_os("VMGENIE_KVM").is_some_and(|kvm| kvm == "emulated")
}

/// Where the emulated host has a disk to write to: beside the image.
pub fn on_a_disk() -> Option<PathBuf> {
    let image = std::env::var_os("VMGENIE_IMAGE").filter(|_| is_emulated())?;
    Some(Path::new(&image).parent()?.to_owned())
}
