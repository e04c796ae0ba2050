//! The guests that tests boot.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A guest: a kernel and what it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// The stock Debian cloud kernel, as ELF `vmlinux`.
    Debian,
    /// The stock Debian cloud kernel as it comes in its package, a bzImage.
    DebianBzImage,
    /// The small kernel, as ELF `vmlinux`.
    Small,
    /// The small kernel, as bzImage.
    SmallBzImage,
    /// The tiny ELF guest of `tests/guests/tiny.S`: no Linux at all.
    Tiny,
}

impl Guest {
    /// The kernel's file.
    pub fn kernel(self) -> PathBuf {
        match self {
            Self::Debian => guest_dir().join("debian/vmlinux"),
            Self::DebianBzImage => guest_dir().join("debian/vmlinuz"),
            Self::Small => guest_dir().join("small/vmlinux"),
            Self::SmallBzImage => guest_dir().join("small/bzImage"),
            Self::Tiny => tiny_elf().to_owned(),
        }
    }

    /// The initramfs, with the shell of the guest contract.
    pub fn initrd(self) -> Option<PathBuf> {
        match self {
            Self::Debian | Self::DebianBzImage => Some(guest_dir().join("debian/initramfs.cpio")),
            Self::Small | Self::SmallBzImage => Some(guest_dir().join("small/initramfs.cpio")),
            Self::Tiny => None,
        }
    }

    /// The kernel command line.
    pub fn cmdline(self) -> &'static str {
        match self {
            Self::Tiny => "",
            _ => "console=ttyS0 quiet panic=-1",
        }
    }

    /// The body of PUT `/boot-source`.
    pub fn boot_source(self) -> Value {
        json!({
            "kernel_image_path": self.kernel(),
            "initrd_path": self.initrd(),
            "boot_args": self.cmdline(),
        })
    }

    /// The memory it needs, as the command line takes it.
    pub fn memory(self) -> &'static str {
        match self {
            Self::Debian | Self::DebianBzImage => "256M",
            Self::Small | Self::SmallBzImage if is_debug_kernel() => "768M",
            Self::Small | Self::SmallBzImage => "128M",
            Self::Tiny => "32M",
        }
    }
}

/// Whether the small kernel is the one that looks for mistakes (`cargo xtask test --debug-kernel`). It is
/// twice as large as the other, and needs room for its marks.
pub fn is_debug_kernel() -> bool {
    const LARGEST: u64 = 32 << 20;
    std::fs::metadata(Guest::Small.kernel()).is_ok_and(|file| file.len() > LARGEST)
}

/// Where the guests' kernels are.
pub fn guest_dir() -> PathBuf {
    env::var_os("VMGENIE_GUEST_DIR")
        .map(PathBuf::from)
        .expect("VMGENIE_GUEST_DIR is not set: run this through `cargo xtask test`")
}

/// The archive with what only some tests' guests have.
pub fn extras() -> PathBuf {
    guest_dir().join("extras.cpio")
}

/// The vmgenie program.
pub fn vmgenie() -> PathBuf {
    env::var_os("VMGENIE_BIN")
        .map(PathBuf::from)
        .expect("VMGENIE_BIN is not set: run this through `cargo xtask test`")
}

/// The tiny guest as a file.
fn tiny_elf() -> &'static Path {
    static FILE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = FILE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("tiny.elf");
        fs::write(&path, include_bytes!(env!("TINY_ELF"))).expect("the tiny guest's file");
        (dir, path)
    });
    path
}
/// The SHA-256 of `bytes`, as `sha256sum` in a guest prints it.
pub fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
