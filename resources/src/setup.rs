//! `cargo xtask setup`: everything that a VM needs, made once.

use std::path::PathBuf;

use anyhow::Result;

use crate::cache::Cache;
use crate::emulator::{self, Emulator};
use crate::image::{self, Image};
use crate::progress::Progress;
use crate::{chroot, initramfs, small, stock, tools};

/// What the other commands use.
pub(crate) struct Resources {
    /// The cache that all of it is in.
    pub(crate) cache: Cache,
    /// The directory with the guests' kernels and initramfs.
    pub(crate) guests: PathBuf,
    /// The parts of the emulated host.
    pub(crate) host: Image,
    /// What emulates it.
    pub(crate) emulator: Emulator,
}

/// Makes what is missing. Nearly free when nothing is.
pub(crate) fn setup() -> Result<Resources> {
    let cache = Cache::open()?;
    let progress = Progress::default();
    let _lock = cache.lock()?;
    cache.sweep()?;
    tools::install(&cache, &progress)?;
    let emulator = emulator::emulator(&cache, &progress)?;
    let root = chroot::root(&cache, &progress)?;
    let stock = stock::stock(&cache, &root, &progress)?;
    let small = small::small(&cache, &root, &progress)?;
    let guests = initramfs::guests(&cache, &root, &stock, &small)?;
    let host = image::image(&cache, &stock, &guests)?;
    Ok(Resources {
        cache,
        guests,
        host,
        emulator,
    })
}
