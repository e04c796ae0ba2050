//! The guests' initramfs: busybox, our `/init`, `lscpu`, our programs, and one kernel's modules.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::archive::Archive;
use crate::build::GuestProgram;
use crate::cache::{self, Cache};
use crate::chroot::Root;
use crate::driver;
use crate::extras::Extras;
use crate::libraries::libraries;
use crate::small::Small;
use crate::stock::Stock;

const INIT: &str = include_str!("../guest-init.sh");

/// The stock kernel's modules that lie in its guests, in an order in which they can be loaded: the small kernel
/// has the drivers of virtio devices, of `fw_cfg` and of the power button built in.
const STOCK_MODULES: &[&str] = &[
    "ptp_vmclock",
    "virtio_mmio",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_rng",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
    "qemu_fw_cfg",
    "evdev",
    "button",
];

/// Where the Debian package puts the static busybox.
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];

/// A kernel's place in the guest directory, its files, and the modules that a guest loads itself.
struct Kernel<'a> {
    name: &'a str,
    files: [(&'a str, PathBuf); 2],
    modules: PathBuf,
    /// Which modules lie in the guest.
    contained: &'a [&'a str],
    /// Which of them its init loads.
    loaded: &'a [&'a str],
    /// The directory with the guest driver's modules, which lie in the guest and which only who
    /// wants them loads.
    driver: &'a Path,
}

/// What the guests have of this workspace.
pub(crate) struct Ours {
    /// The guest driver for the stock kernel.
    pub(crate) stock_driver: PathBuf,
    /// The guest driver for the small kernel, if there are guests with that.
    pub(crate) small_driver: Option<PathBuf>,
    /// The programs, in the guest's `/bin`.
    pub(crate) programs: Vec<GuestProgram>,
    /// What only the guests of some tests have, if it is wanted.
    pub(crate) extras: Option<Extras>,
}

impl Ours {
    /// One of the programs.
    pub(crate) fn program(&self, name: &str) -> Option<&[u8]> {
        let program = self.programs.iter().find(|program| program.name == name)?;
        Some(&program.contents)
    }

    /// Names all of it: other contents are another text.
    fn recipe(&self) -> String {
        let mut text = format!(
            "{:?}; {:?}; {:?}",
            self.stock_driver,
            self.small_driver,
            self.extras.as_ref().map(|extras| &extras.digest)
        );
        for program in &self.programs {
            let digest = Sha256::digest(&program.contents);
            text += &format!("; {} {}", program.name, cache::hex(&digest));
        }
        text
    }
}

/// The directory with the kernels and their initramfs, made if it is not there:
/// `debian/{vmlinux,vmlinuz,initramfs.cpio}` and, if there is a small kernel,
/// `small/{vmlinux,bzImage,initramfs.cpio}`; and `extras.cpio`, if there are extras.
pub(crate) fn guests(
    cache: &Cache,
    root: &Root,
    stock: &Stock,
    small: Option<&Small>,
    ours: &Ours,
) -> Result<PathBuf> {
    let mut kernels = vec![Kernel {
        name: "debian",
        files: [("vmlinux", stock.vmlinux()), ("vmlinuz", stock.vmlinuz())],
        modules: stock.modules(),
        contained: STOCK_MODULES,
        loaded: &[],
        driver: &ours.stock_driver,
    }];
    if let (Some(small), Some(driver)) = (small, &ours.small_driver) {
        kernels.push(Kernel {
            name: "small",
            files: [("vmlinux", small.vmlinux()), ("bzImage", small.bzimage())],
            modules: small.modules(),
            contained: &["vmgenid", "ptp_vmclock"],
            loaded: &["vmgenid"],
            driver,
        });
    }
    let busybox = busybox()?;
    let recipe = format!(
        "{}; {:?}; {INIT}; {STOCK_MODULES:?}; {:?}; {}; 3",
        stock.dir().display(),
        small.map(Small::dir),
        busybox.version,
        ours.recipe()
    );
    let dir = cache.place("guests", &recipe);
    if !dir.exists() {
        let lscpu = lscpu(root)?;
        cache
            .make(&dir, |inside| {
                if let Some(extras) = &ours.extras {
                    extras.write_to(inside)?;
                }
                kernels
                    .iter()
                    .try_for_each(|kernel| write_kernel(inside, kernel, &busybox, &lscpu, ours))
            })
            .context("could not make the guests' files")?;
    }
    Ok(dir)
}

fn write_kernel(
    inside: &Path,
    kernel: &Kernel,
    busybox: &Busybox,
    lscpu: &[(String, PathBuf)],
    ours: &Ours,
) -> Result<()> {
    let dir = inside.join(kernel.name);
    fs::create_dir(&dir).with_context(|| format!("could not make {}", dir.display()))?;
    for (name, from) in &kernel.files {
        copy_or_link(from, &dir.join(name))?;
    }
    let mut archive = Archive::new(Vec::new());
    archive.character_device("/dev/console", 5, 1)?;
    archive.file("/init", INIT.as_bytes(), 0o755)?;
    for directory in ["/proc", "/sys", "/tmp"] {
        archive.directory(directory)?;
    }
    busybox.add_to(&mut archive)?;
    for (path, from) in lscpu {
        archive.copy(path, from)?;
    }
    for program in &ours.programs {
        archive.file(&format!("/bin/{}", program.name), &program.contents, 0o755)?;
    }
    let mut order = String::new();
    for module in kernel.contained {
        let file = format!("{module}.ko");
        archive.copy(&format!("/modules/{file}"), &kernel.modules.join(&file))?;
        if kernel.loaded.contains(module) {
            order += &format!("{file}\n");
        }
    }
    for module in driver::MODULES {
        let file = format!("{module}.ko");
        archive.copy(&format!("/modules/{file}"), &kernel.driver.join(&file))?;
    }
    archive.file("/modules/order", order.as_bytes(), 0o644)?;
    let path = dir.join("initramfs.cpio");
    fs::write(&path, archive.finish()?)
        .with_context(|| format!("could not write {}", path.display()))
}

/// A hard link saves the space of a second copy.
pub(crate) fn copy_or_link(from: &Path, to: &Path) -> Result<()> {
    let real =
        fs::canonicalize(from).with_context(|| format!("could not find {}", from.display()))?;
    fs::hard_link(&real, to)
        .or_else(|_| fs::copy(&real, to).map(|_| ()))
        .with_context(|| format!("could not copy {} to {}", real.display(), to.display()))
}

/// The static busybox of this machine.
pub(crate) struct Busybox {
    path: PathBuf,
    /// The first line that it says, which names its version.
    pub(crate) version: String,
    applets: Vec<String>,
}

/// Finds busybox and asks what it can do.
pub(crate) fn busybox() -> Result<Busybox> {
    let path = BUSYBOX
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .context("there is no busybox (package busybox-static)")?;
    let ask = |args: &[&str]| -> Result<String> {
        let output = Command::new(&path)
            .args(args)
            .output()
            .with_context(|| format!("could not run {}", path.display()))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let version = ask(&[])?.lines().next().unwrap_or_default().to_owned();
    let applets: Vec<String> = ask(&["--list"])?.lines().map(str::to_owned).collect();
    ensure!(
        applets.iter().any(|applet| applet == "sh"),
        "{} has no shell",
        path.display()
    );
    Ok(Busybox {
        path,
        version,
        applets,
    })
}

impl Busybox {
    /// Adds busybox and a link for each of its applets.
    pub(crate) fn add_to<W: Write>(&self, archive: &mut Archive<W>) -> Result<()> {
        archive.copy("/bin/busybox", &self.path)?;
        for applet in self.applets.iter().filter(|applet| *applet != "busybox") {
            archive.symlink(&format!("/bin/{applet}"), "busybox")?;
        }
        archive.symlink("/sbin", "bin")
    }
}

/// `lscpu` and the libraries that it needs: the path in the guest and the file in the root.
fn lscpu(root: &Root) -> Result<Vec<(String, PathBuf)>> {
    const PROGRAM: &str = "/usr/bin/lscpu";
    let mut paths = vec![PROGRAM.to_owned()];
    paths.extend(libraries(&root.output(&["ldd", PROGRAM])?));
    paths
        .into_iter()
        .map(|path| {
            let inside = root.dir().join(path.trim_start_matches('/'));
            let real = fs::canonicalize(&inside)
                .with_context(|| format!("could not find {}", inside.display()))?;
            Ok((path, real))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(contents: &str) -> Ours {
        Ours {
            stock_driver: PathBuf::from("/d"),
            small_driver: Some(PathBuf::from("/s")),
            programs: vec![GuestProgram {
                name: "sysgenctl",
                contents: contents.into(),
            }],
            extras: None,
        }
    }

    #[test]
    fn another_program_or_driver_is_another_recipe() {
        let recipe = ours("a").recipe();
        assert_eq!(recipe, ours("a").recipe());
        assert_ne!(recipe, ours("b").recipe());
        let mut other = ours("a");
        other.small_driver = Some(PathBuf::from("/t"));
        assert_ne!(recipe, other.recipe());
    }
}
