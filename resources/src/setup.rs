//! `cargo xtask setup`: everything that a VM needs, made once.

use std::path::PathBuf;

use anyhow::Result;

use crate::cache::Cache;
use crate::chroot::Root;
use crate::driver::{Sources, driver};
use crate::emulator::{self, Emulator};
use crate::image::{self, Image};
use crate::initramfs::Ours;
use crate::progress::Progress;
use crate::small::{Flavor, Small};
use crate::stock::Stock;
use crate::{build, chroot, initramfs, prepared, small, stock, tools};

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
    setup_with(Flavor::Plain)
}

/// The same with another small kernel.
pub(crate) fn setup_with(flavor: Flavor) -> Result<Resources> {
    let cache = Cache::open()?;
    let progress = Progress::default();
    let _lock = cache.lock()?;
    cache.sweep()?;
    tools::install(&cache, &progress)?;
    let emulator = emulator::emulator(&cache, &progress)?;
    let root = chroot::root(&cache, &progress)?;
    let stock = stock::stock(&cache, &root, &progress)?;
    let small = small::small(&cache, &root, flavor, &progress)?;
    let ours = ours(&cache, &root, &stock, &small, &progress)?;
    let guests = initramfs::guests(&cache, &root, &stock, &small, &ours)?;
    let host = image::image(&cache, &stock, &guests)?;
    Ok(Resources {
        cache,
        guests,
        host,
        emulator,
    })
}

/// Makes what the guests have of this workspace, for both kernels.
fn ours(
    cache: &Cache,
    root: &Root,
    stock: &Stock,
    small: &Small,
    progress: &Progress,
) -> Result<Ours> {
    let programs = build::guest_programs()?;
    let sources = Sources::of_workspace()?;
    let small_driver = driver(cache, root, &sources, &small.target(), progress)?;
    let prepared = prepared::prepared(cache, root, stock, small.source(), progress)?;
    let stock_driver = driver(cache, root, &sources, &prepared, progress)?;
    Ok(Ours {
        stock_driver,
        small_driver,
        programs,
    })
}
