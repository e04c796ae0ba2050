//! Where there is room that is not memory.

use std::path::{Path, PathBuf};

/// Where the emulated host has a disk to write to: beside the image.
pub fn on_a_disk() -> Option<PathBuf> {
    let emulated = std::env::var_os("VMGENIE_KVM").is_some_and(|kvm| kvm == "emulated");
    let image = std::env::var_os("VMGENIE_IMAGE").filter(|_| emulated)?;
    Some(Path::new(&image).parent()?.to_owned())
}
