//! `cargo xtask setup`: everything that a VM needs, made once.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cache::Cache;
use crate::chroot::Root;
use crate::driver::{DRIVER, FAULTS, Sources, driver};
use crate::emulator::{self, Emulator};
use crate::image::{self, Image};
use crate::initramfs::Ours;
use crate::peer::{self, Peer};
use crate::progress::Progress;
use crate::small::{self, Flavor, Small};
use crate::stock::{self, Stock};
use crate::{build, chroot, deb, debian, extras, initramfs, patches, prepared, runtimes, tools};

/// Which guests are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guests {
    /// Those of both kernels, the small one of this flavor. It takes minutes to compile.
    All(Flavor),
    /// Those of the stock kernel alone, of which only a build tree for modules is made.
    Stock,
}

/// What the other commands use.
pub(crate) struct Resources {
    /// The cache that all of it is in.
    pub(crate) cache: Cache,
    /// The directory with the guests' kernels and initramfs.
    pub(crate) guests: PathBuf,
    /// The stock kernel's version.
    pub(crate) kernel: String,
    /// The guest's Debian package, for the stock kernel.
    pub(crate) package: PathBuf,
    /// The Debian image, if it was asked for.
    pub(crate) image: Option<PathBuf>,
    /// The runtimes disk, if it was asked for.
    pub(crate) runtimes: Option<PathBuf>,
    /// The parts of the emulated host.
    pub(crate) host: Image,
    /// What emulates it.
    pub(crate) emulator: Emulator,
    /// The other monitor that guests run on.
    pub(crate) peer: Peer,
}

/// Makes what is missing for these guests, and with `image` the Debian image. Nearly free when nothing is.
pub(crate) fn setup(wanted: Guests, image: bool, progress: &Progress) -> Result<Resources> {
    let cache = Cache::open()?;
    let _lock = cache.lock()?;
    cache.sweep()?;
    tools::install(&cache, progress)?;
    let emulator = emulator::emulator(&cache, progress)?;
    let peer = peer::peer(&cache, &emulator)?;
    let root = chroot::root(&cache, progress)?;
    let stock = stock::stock(&cache, &root, progress)?;
    let source = small::source(&cache, &root, progress)?;
    let small = match wanted {
        Guests::All(flavor) => {
            let patched = patches::patched(&cache, &source, progress)?;
            Some(small::small(&cache, &root, &patched, flavor, progress)?)
        }
        Guests::Stock => None,
    };
    let ours = ours(&cache, &root, &source, &stock, small.as_ref(), progress)?;
    let guests = initramfs::guests(&cache, &root, &stock, small.as_ref(), &ours)?;
    let package = deb::guest(&cache, &stock, &ours, progress)?;
    let debian = match image {
        true => Some(debian::debian(&cache, &stock, &package, progress)?),
        false => None,
    };
    let host = image::image(&cache, &stock, &guests)?;
    Ok(Resources {
        cache,
        guests,
        kernel: stock.version().to_owned(),
        package,
        image: debian,
        runtimes: None,
        host,
        emulator,
        peer,
    })
}

impl Resources {
    /// With the runtimes disk, which tests alone need; made if it is not there.
    pub(crate) fn with_runtimes(self, progress: &Progress) -> Result<Self> {
        let _lock = self.cache.lock()?;
        let runtimes = runtimes::runtimes(&self.cache, progress)?;
        Ok(Self {
            runtimes: Some(runtimes),
            ..self
        })
    }
}

/// Makes what the guests have of this workspace.
fn ours(
    cache: &Cache,
    root: &Root,
    source: &Path,
    stock: &Stock,
    small: Option<&Small>,
    progress: &Progress,
) -> Result<Ours> {
    let programs = build::guest_programs()?;
    let sources = Sources::of_workspace(DRIVER)?;
    let small_driver = small
        .map(|small| driver(cache, root, &sources, &small.target(), progress))
        .transpose()?;
    let prepared = prepared::prepared(cache, root, stock, source, progress)?;
    let stock_driver = driver(cache, root, &sources, &prepared, progress)?;
    let extras = match small {
        Some(small) => {
            let faults = Sources::of_workspace(FAULTS)?;
            // By the names of the guests: the small one has one name, with whichever kernel.
            let targets = [("debian", prepared), ("small", small.target())];
            let modules = targets.map(|(guest, target)| {
                let modules = driver(cache, root, &faults, &target, progress)?;
                Ok((guest, modules))
            });
            let modules: Result<Vec<_>> = modules.into_iter().collect();
            Some(extras::extras(cache, root, &modules?, progress)?)
        }
        None => None,
    };
    Ok(Ours {
        stock_driver,
        small_driver,
        programs,
        extras,
    })
}
