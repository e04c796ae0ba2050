//! Debian packages: what is in each, and how one is written.

mod file;
mod guest;
pub(crate) mod host;
mod manual;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::initramfs::Ours;
use crate::progress::Progress;
use crate::stock::Stock;

/// The terms of both packages.
const COPYRIGHT: &str = include_str!("../../package/copyright");

/// The guest's package, made if it is not there.
pub(crate) fn guest(
    cache: &Cache,
    stock: &Stock,
    ours: &Ours,
    progress: &Progress,
) -> Result<PathBuf> {
    let package = guest::package(stock, ours)?;
    let dir = cache.place("package", &package.digest());
    if !dir.exists() {
        let step = progress.step("guest's package");
        cache
            .make(&dir, |inside| package.write(inside).map(drop))
            .context("could not make the guest's package")?;
        step.done();
    }
    Ok(dir.join(package.file_name()))
}
