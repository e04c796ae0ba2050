//! The stock kernel: Debian's own cloud kernel, unmodified, from its packages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::bzimage;
use crate::cache::Cache;
use crate::chroot::Root;
use crate::modules;
use crate::progress::Progress;

/// The package whose newest version is taken; `VERSION` stands for the kernel's version.
const SERIES: &str = "7";

/// What the emulated host and the guests load of its modules.
const MODULES: &[&str] = &[
    "bridge",
    "button",
    "dm-mod",
    "evdev",
    "kvm-amd",
    "kvm-intel",
    "ptp_vmclock",
    "qemu_fw_cfg",
    "tun",
    "virtio_blk",
    "virtio_mmio",
    "virtio_net",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
];

/// The stock kernel's files.
#[derive(Debug, Clone)]
pub(crate) struct Stock {
    dir: PathBuf,
    version: String,
}

impl Stock {
    /// Where the files are; its name is part of every recipe that uses them.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The kernel as the package has it, a bzImage.
    pub(crate) fn vmlinuz(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The ELF kernel out of the bzImage.
    pub(crate) fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// Its version, as `uname -r` says it.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// The configuration that modules for it are built with.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("config")
    }

    /// The list of the symbols that it exports, `Module.symvers`.
    pub(crate) fn symvers(&self) -> PathBuf {
        self.dir.join("Module.symvers")
    }

    /// The uncompressed modules.
    pub(crate) fn modules(&self) -> PathBuf {
        self.dir.join("modules")
    }
}

/// The stock kernel, fetched if it is not there.
pub(crate) fn stock(cache: &Cache, root: &Root, progress: &Progress) -> Result<Stock> {
    let recipe = format!(
        "{}; linux {SERIES} cloud; {MODULES:?}; 2",
        root.dir().display()
    );
    let dir = cache.place("stock", &recipe);
    if !dir.exists() {
        cache
            .make(&dir, |inside| fetch(inside, cache, root, progress))
            .context("could not get the stock Debian kernel")?;
    }
    let version = fs::read_to_string(dir.join("version"))
        .context("could not read the stock kernel's version")?
        .trim()
        .to_owned();
    Ok(Stock { dir, version })
}

fn fetch(inside: &Path, cache: &Cache, root: &Root, progress: &Progress) -> Result<()> {
    let log = cache.log("stock")?;
    let _ = fs::remove_file(&log);
    let step = progress.step("stock Debian kernel");
    let version = newest(&root.output(&[
        "apt-cache",
        "search",
        "--names-only",
        &format!("^linux-image-{SERIES}.*-cloud-amd64$"),
    ])?)
    .context("the toolchain root knows no stock cloud kernel")?;
    fs::write(inside.join("version"), format!("{version}\n")).context("could not write a file")?;
    let script = DOWNLOAD.replace("VERSION", &version);
    step.run(
        &mut root.command(&[(inside, "/mnt/out")], &["sh", "-ec", &script]),
        &log,
    )?;
    step.say("unpacking");
    let tree = inside.join("tree/usr/lib/modules").join(&version);
    unpack(&tree, inside)?;
    // From the same download, because an older kernel's packages are gone one day.
    let headers = inside.join(format!("tree/usr/src/linux-headers-{version}"));
    for (name, to) in [(".config", "config"), ("Module.symvers", "Module.symvers")] {
        fs::copy(headers.join(name), inside.join(to))
            .with_context(|| format!("the package linux-headers-{version} has no {name}"))?;
    }
    fs::remove_dir_all(inside.join("tree")).context("could not remove the unpacked packages")?;
    step.done();
    Ok(())
}

/// Older lists may name packages that are gone, so a failure is tried again with new ones.
const DOWNLOAD: &str = r#"
mkdir /mnt/out/tree
cd /mnt/out/tree
packages="linux-binary-VERSION linux-modules-VERSION linux-headers-VERSION"
apt-get download $packages || { apt-get update; apt-get download $packages; }
for package in *.deb; do
    dpkg-deb --extract "$package" .
done
"#;

/// Takes what we need out of the unpacked packages.
fn unpack(tree: &Path, inside: &Path) -> Result<()> {
    let vmlinuz = tree.join("vmlinuz");
    let image =
        fs::read(&vmlinuz).with_context(|| format!("could not read {}", vmlinuz.display()))?;
    fs::write(inside.join("vmlinux"), bzimage::extract_elf(&image)?)
        .and_then(|()| fs::write(inside.join("vmlinuz"), image))
        .context("could not write the kernel")?;
    let modules = modules::collect(tree, MODULES)?;
    write_modules(&inside.join("modules"), &modules)
}

/// Writes modules and the `order` in which they can be loaded.
pub(crate) fn write_modules(dir: &Path, modules: &[modules::Module]) -> Result<()> {
    ensure!(!modules.is_empty(), "there are no modules");
    fs::create_dir_all(dir)?;
    for module in modules {
        fs::write(dir.join(format!("{}.ko", module.name)), &module.contents)
            .with_context(|| format!("could not write the module {}", module.name))?;
    }
    Ok(())
}

/// The newest kernel version among lines of `apt-cache search`, which begin with the package.
fn newest(listing: &str) -> Option<String> {
    listing
        .lines()
        .filter_map(|line| line.split(' ').next()?.strip_prefix("linux-image-"))
        .max_by_key(|version| numbers(version))
        .map(str::to_owned)
}

/// The leading numbers of a version, which compare as numbers and not as text.
fn numbers(version: &str) -> Vec<u32> {
    let end = version
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(version.len());
    version[..end].split('.').flat_map(str::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_newest_by_number() {
        let listing = "linux-image-7.0.9+deb13-cloud-amd64 - Linux\n\
                       linux-image-7.0.13+deb13-cloud-amd64 - Linux\n\
                       linux-image-7.0.4+deb13-cloud-amd64 - Linux\n";
        assert_eq!(newest(listing).as_deref(), Some("7.0.13+deb13-cloud-amd64"));
        assert_eq!(newest(""), None);
    }
}
