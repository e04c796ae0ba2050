//! The Debian image: a root file system that boots from a virtio disk, with everything that makes it a good clone.
//!
//! It has systemd, because that is what people's machines have, and what the guest driver's unit and udev rule are
//! for; what a machine of this kind has no use for is masked. Made in two parts: what comes from Debian, which rarely
//! changes and takes a minute, and what is ours, which takes seconds.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::archive::Archive;
use crate::cache::Cache;
use crate::chroot;
use crate::files::{Files, put};
use crate::initramfs;
use crate::modules::{self, Module};
use crate::namespaces::unshare;
use crate::progress::Progress;
use crate::stock::Stock;

/// The Debian release; the kernel is that of its backports.
const SUITE: &str = "trixie";

/// What the image has on top of Debian's essential packages and apt.
const PACKAGES: &[&str] = &[
    "busybox",
    "ca-certificates",
    "iproute2",
    "kmod",
    "openssh-server",
    "procps",
    "systemd-sysv",
    "udev",
    "udhcpc",
];

/// What of the packages is left out.
const EXCLUDED: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
];

/// What of the packages goes again: names of hardware that no microVM has, character sets, and keys, of which each
/// machine makes its own.
const REMOVED: &str = r#"
cd "$1"
rm -rf usr/lib/udev/hwdb.d usr/lib/udev/hwdb.bin usr/lib/x86_64-linux-gnu/gconv
rm -rf etc/motd etc/update-motd.d
rm -f etc/ssh/ssh_host_* etc/resolv.conf etc/hostname var/cache/debconf/*-old
: > etc/machine-id
"#;

/// Units that are not started: they serve devices that are not there, or look after what this image does not have.
const MASKED: &[&str] = &[
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "fstrim.timer",
    "getty-static.service",
    "getty@tty1.service",
    "modprobe@.service",
    "proc-sys-fs-binfmt_misc.automount",
    "remote-fs.target",
    "run-lock.mount",
    "sshd-keygen.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-creds.socket",
    "systemd-firstboot.service",
    "systemd-hostnamed.socket",
    "systemd-networkd.socket",
    "systemd-pcrextend.socket",
    "systemd-pcrlock.socket",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-sysext.socket",
    "systemd-tmpfiles-clean.timer",
    "systemd-tpm2-setup-early.service",
    "systemd-tpm2-setup.service",
    "systemd-udev-load-credentials.service",
    "systemd-update-utmp.service",
    "tmp.mount",
];

/// Programs that make up units at each boot, for what this image does not have: processes that the boot waits for.
const MASKED_GENERATORS: &[&str] = &[
    "systemd-debug-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-rc-local-generator",
    "systemd-run-generator",
    "systemd-ssh-generator",
    "systemd-system-update-generator",
    "systemd-sysv-generator",
    "systemd-tpm2-generator",
];

/// Units of ours, and what wants them.
const WANTED: &[(&str, &str)] = &[
    ("eth0.service", "sys-subsystem-net-devices-eth0.device"),
    ("generation-id.service", "sysinit.target"),
    ("host-key.service", "multi-user.target"),
    ("power-button.path", "multi-user.target"),
    ("web.service", "multi-user.target"),
];

/// The kernel modules in the image; what they need comes along.
const MODULES: &[&str] = &[
    "button",
    "evdev",
    "ptp_vmclock",
    "qemu_fw_cfg",
    "virtio_blk",
    "virtio_mmio",
    "virtio_net",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
];

/// Which of them its initramfs has: what finds a root drive.
const INITRAMFS_MODULES: &[&str] = &["virtio_mmio", "virtio_blk"];

/// Files of the workspace, and where they are in the image. A directory stands for all that is in it.
const FILES: &[(&str, &str)] = &[
    ("resources/image/etc", "etc"),
    ("resources/image/srv", "srv"),
    ("resources/image/usr", "usr"),
];

const INIT: &str = include_str!("../image-init.sh");

/// The size of the image's file system in bytes. What is not used of it is a hole.
const SIZE: u64 = 1 << 30;

/// The image's file name.
const NAME: &str = "debian.ext4";
/// The file beside it with its initramfs, for monitors that do not look into images.
const INITRD: &str = "initrd.img";

/// Puts the two parts together, and installs the guest's package as any user would. Arguments: the base, the overlay, the
/// tree to make, the image, its size in bytes, the package. Directories of the overlay have the modes that the caller's umask gave them. The time stamps tell systemd that nothing in /usr is newer than what it has made of it.
const ASSEMBLE: &str = r#"
PATH=/usr/sbin:/usr/bin:/sbin:/bin
find "$2" -type d -exec chmod 755 {} +
mkdir "$3"
cp -a "$1/." "$3"
if [ "$(stat -c %u:%g "$3/usr/bin/su")" != 0:0 ]; then
    echo "the files of the Debian in $1 are not root's: make the image as root" >&2
    exit 1
fi
cp -a --no-preserve=ownership --remove-destination "$2/." "$3"
cp "$6" "$3/guest.deb"
mount -t proc proc "$3/proc"
mount --rbind /dev "$3/dev"
chroot "$3" /usr/bin/env -i PATH=$PATH LC_ALL=C DEBIAN_FRONTEND=noninteractive dpkg -i /guest.deb
umount -R "$3/dev" "$3/proc"
rm -f "$3/guest.deb" "$3"/var/lib/dpkg/*-old
touch "$3/etc/.updated" "$3/var/.updated"
truncate -s "$5" "$4"
mke2fs -q -F -t ext4 -m 0 -E lazy_itable_init=1 -L vmgenie -d "$3" "$4"
rm -rf "$3"
"#;

/// The image, made if it is not there. Its kernel and its initramfs are in it.
pub(crate) fn debian(
    cache: &Cache,
    stock: &Stock,
    package: &Path,
    progress: &Progress,
) -> Result<PathBuf> {
    let base = base(cache, progress)?;
    let files = Files::of_workspace(FILES)?;
    let busybox = initramfs::busybox()?;
    let recipe = format!(
        "{}; {}; {}; {}; {}; {INIT}; {MASKED:?}; {MASKED_GENERATORS:?}; {WANTED:?}; {MODULES:?}; {INITRAMFS_MODULES:?}; {SIZE}; {ASSEMBLE}; 3",
        base.display(),
        stock.dir().display(),
        package.display(),
        files.digest(),
        busybox.version,
    );
    let dir = cache.place("debian", &recipe);
    if !dir.exists() {
        let make = |inside: &Path| {
            let log = cache.log("debian-image")?;
            let step = progress.step("Debian image");
            let overlay = inside.join("overlay");
            files.write_to(&overlay)?;
            write_units(&overlay)?;
            write_modules(&overlay, stock)?;
            write_kernel(&overlay, stock, &busybox)?;
            let initrd = format!("boot/initrd.img-{}", stock.version());
            fs::copy(overlay.join(initrd), inside.join(INITRD))
                .context("could not copy the image's initramfs")?;
            let mut assemble = unshare();
            assemble
                .args(["sh", "-ec", ASSEMBLE, "sh"])
                .args([&base, &overlay, &inside.join("tree"), &inside.join(NAME)])
                .arg(SIZE.to_string())
                .arg(package);
            step.run(&mut assemble, &log)?;
            fs::remove_dir_all(&overlay).context("could not remove the image's parts")?;
            step.done();
            Ok(())
        };
        cache
            .make(&dir, make)
            .context("could not make the Debian image")?;
    }
    Ok(dir.join(NAME))
}

/// What comes from Debian: a directory with its root.
pub(crate) fn base(cache: &Cache, progress: &Progress) -> Result<PathBuf> {
    let recipe = format!("{SUITE}; {PACKAGES:?}; {EXCLUDED:?}; {REMOVED}; 1");
    let dir = cache.place("debian-base", &recipe);
    if !dir.exists() {
        let make = |inside: &Path| {
            let log = cache.log("debian-base")?;
            let _ = fs::remove_file(&log);
            let step = progress.step("Debian image: packages");
            let mut command = chroot::mmdebstrap();
            command
                .args(["--variant=minbase", "--format=directory"])
                .arg("--aptopt=APT::Install-Recommends \"false\"")
                .arg(format!("--include={}", PACKAGES.join(",")));
            for path in EXCLUDED {
                command.arg(format!("--dpkgopt=path-exclude={path}"));
            }
            command
                .arg(format!("--customize-hook={REMOVED}"))
                .arg(SUITE)
                .arg(inside);
            step.run(&mut command, &log)?;
            step.done();
            Ok(())
        };
        cache
            .make(&dir, make)
            .context("could not get the Debian image's packages")?;
    }
    Ok(dir)
}

/// What is enabled and what is masked, and the rest of what is no file of the workspace.
fn write_units(overlay: &Path) -> Result<()> {
    let units = overlay.join("etc/systemd/system");
    for unit in MASKED {
        link("/dev/null", &units.join(unit))?;
    }
    for generator in MASKED_GENERATORS {
        let path = format!("etc/systemd/system-generators/{generator}");
        link("/dev/null", &overlay.join(path))?;
    }
    for (unit, wanting) in WANTED {
        link(
            &format!("../{unit}"),
            &units.join(format!("{wanting}.wants/{unit}")),
        )?;
    }
    link(
        "/usr/lib/systemd/system/multi-user.target",
        &units.join("default.target"),
    )?;
    // The interface is eth0 to its documentation, on each monitor.
    link(
        "/dev/null",
        &overlay.join("etc/systemd/network/99-default.link"),
    )?;
    let etc = overlay.join("etc");
    put(&etc.join("hostname"), b"vmgenie\n", 0o644)?;
    put(&etc.join("hosts"), b"127.0.0.1 localhost\n", 0o644)
}

/// The stock kernel's modules. The guest driver's come with its package.
fn write_modules(overlay: &Path, stock: &Stock) -> Result<()> {
    let tree = overlay.join("usr/lib/modules").join(stock.version());
    for Module { name, contents } in modules::collect(&stock.modules(), MODULES)? {
        put(&tree.join(format!("kernel/{name}.ko")), &contents, 0o644)?;
    }
    Ok(())
}

/// Kernel and initramfs, where Debian has them. Not the compressed kernel: to unpack itself takes longer than the
/// rest of the boot where a processor is emulated.
fn write_kernel(overlay: &Path, stock: &Stock, busybox: &initramfs::Busybox) -> Result<()> {
    let version = stock.version();
    let boot = overlay.join("boot");
    let kernel = format!("vmlinux-{version}");
    let initrd = format!("initrd.img-{version}");
    let contents = fs::read(stock.vmlinux()).context("could not read the stock kernel")?;
    put(&boot.join(&kernel), &contents, 0o644)?;
    let mut archive = Archive::new(Vec::new());
    archive.character_device("/dev/console", 5, 1)?;
    archive.file("/init", INIT.as_bytes(), 0o755)?;
    for directory in ["/proc", "/sys", "/root"] {
        archive.directory(directory)?;
    }
    busybox.add_to(&mut archive)?;
    let mut order = String::new();
    for Module { name, contents } in modules::collect(&stock.modules(), INITRAMFS_MODULES)? {
        let file = format!("{name}.ko");
        archive.file(&format!("/modules/{file}"), &contents, 0o644)?;
        order += &format!("{file}\n");
    }
    archive.file("/modules/order", order.as_bytes(), 0o644)?;
    put(&boot.join(&initrd), &archive.finish()?, 0o644)?;
    link(&format!("boot/{kernel}"), &overlay.join("vmlinux"))?;
    link(&format!("boot/{initrd}"), &overlay.join("initrd.img"))
}

fn link(target: &str, path: &Path) -> Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))
        .and_then(|()| symlink(target, path))
        .with_context(|| format!("could not make the link {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_has_its_pages_and_the_units_that_are_wanted() {
        let files = Files::of_workspace(FILES).unwrap();
        let mode = |path: &str| {
            let found = files.iter().find(|(place, ..)| *place == Path::new(path));
            found.map(|(_, _, mode)| mode)
        };
        for page in ["index.cgi", "nonce.cgi"] {
            assert_eq!(mode(&format!("srv/www/cgi-bin/{page}")), Some(0o755));
        }
        for (unit, _) in WANTED {
            assert!(
                mode(&format!("etc/systemd/system/{unit}")).is_some(),
                "{unit}"
            );
        }
    }
}
