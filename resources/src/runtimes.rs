//! The runtimes disk: a Debian with Python, NumPy and Node, the packages of `guest-driver` for them, and clients of
//! AWS Lambda's runtime API that others wrote. Tests mount it beside the Debian image, whose users need none of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::build;
use crate::cache::Cache;
use crate::chroot;
use crate::files::Files;
use crate::namespaces::unshare;
use crate::progress::Progress;

/// The Debian release; that of the image.
const SUITE: &str = "trixie";

/// What it has on top of Debian's essential packages and apt. The build tools of Python's packages stay: the project's
/// own is installed anew whenever it changes.
const PACKAGES: &[&str] = &[
    "ca-certificates",
    "nodejs",
    "python3",
    "python3-numpy",
    "python3-pip",
    "python3-setuptools",
    "python3-urllib3",
    "python3-wheel",
];

/// What comes from PyPI: Amazon's client of the runtime API, and its hooks around a snapshot.
const WHEELS: &[&str] = &["awslambdaric==4.2.2", "snapshot_restore_py==1.0.0"];

/// What of the packages is left out.
const EXCLUDED: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
];

/// Files of the workspace, and where they are on the disk.
const FILES: &[(&str, &str)] = &[
    ("guest-driver/node", "usr/share/nodejs/sysgenid"),
    ("guest-driver/python", "srv/src/python"),
    ("tests/runtimes", PLACE),
];
/// A program in C for the disk, its name there, and what it includes.
const C_PROGRAM: (&str, &str) = ("guest-driver/c/examples/draws.c", "draws-c");
const C_INCLUDE: &str = "guest-driver/c";
const C_HEADER: &str = "guest-driver/c/sysgenid_watch.h";
/// Where the tests' programs are on the disk.
const PLACE: &str = "srv/runtimes";

/// The disk's file name.
const NAME: &str = "runtimes.ext4";
/// The size of its file system in bytes. What is not used of it is a hole.
const SIZE: u64 = 1 << 30;

/// Installs wheels as this machine's pip would: with its certificates and its settings. Arguments: the root, the wheels.
const WHEELS_OF_PYPI: &str = r#"
PATH=/usr/sbin:/usr/bin:/sbin:/bin
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
if [ -e /etc/resolv.conf ]; then
    touch "$root/etc/resolv.conf"
    mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
fi
[ ! -e /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/pip.conf"
mount --bind /etc/ssl/certs "$root/etc/ssl/certs"
chroot "$root" /usr/bin/env PATH=$PATH HOME=/root LC_ALL=C pip install --break-system-packages \
    --no-cache-dir --root-user-action=ignore --only-binary=:all: "$@"
umount "$root/etc/ssl/certs"
rm -f "$root/etc/pip.conf"
"#;

/// Installs what is the workspace's, and makes the disk. Arguments: the base, the overlay, the tree to make, the disk, its
/// size in bytes.
const ASSEMBLE: &str = r#"
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mkdir "$3"
cp -a "$1/." "$3"
find "$2" -type d -exec chmod 755 {} +
cp -a --no-preserve=ownership "$2/." "$3"
for directory in dev proc run sys tmp; do mkdir -p "$3/$directory"; done
# What the image has is mounted over it.
: > "$3/usr/bin/sysgenctl"
mount -t proc proc "$3/proc"
mount --rbind /dev "$3/dev"
chroot "$3" /usr/bin/env -i PATH=$PATH HOME=/root LC_ALL=C pip install --break-system-packages \
    --no-cache-dir --root-user-action=ignore --no-index --no-deps --no-build-isolation /srv/src/python
umount -R "$3/dev" "$3/proc"
truncate -s "$5" "$4"
mke2fs -q -F -t ext4 -m 0 -E lazy_itable_init=1 -O ^has_journal -L runtimes -d "$3" "$4"
rm -rf "$3"
"#;

/// The disk, made if it is not there.
pub(crate) fn runtimes(cache: &Cache, progress: &Progress) -> Result<PathBuf> {
    let base = base(cache, progress)?;
    let mut files = Files::of_workspace(FILES)?;
    let function = build::function()?;
    files.push(
        format!("{PLACE}/{}", function.name),
        function.contents,
        0o755,
    );
    let (source, name) = C_PROGRAM;
    let sources = Files::of_workspace(&[(source, name), (C_HEADER, "header")])?;
    let recipe = format!(
        "{}; {}; {}; {ASSEMBLE}; {SIZE}; 1",
        base.display(),
        files.digest(),
        sources.digest(),
    );
    let dir = cache.place("runtimes", &recipe);
    if !dir.exists() {
        let make = |inside: &Path| {
            let log = cache.log("runtimes")?;
            let _ = fs::remove_file(&log);
            let step = progress.step("runtimes disk");
            let overlay = inside.join("overlay");
            files.write_to(&overlay)?;
            let mut compile = Command::new("cc");
            compile
                .args([
                    "-static",
                    "-O2",
                    "-std=gnu11",
                    "-Wall",
                    "-Werror",
                    "-pthread",
                    "-o",
                ])
                .arg(overlay.join(PLACE).join(name))
                .arg(build::workspace().join(source))
                .arg("-I")
                .arg(build::workspace().join(C_INCLUDE));
            step.run(&mut compile, &log)?;
            let mut assemble = unshare();
            assemble
                .args(["sh", "-ec", ASSEMBLE, "sh"])
                .args([&base, &overlay, &inside.join("tree"), &inside.join(NAME)])
                .arg(SIZE.to_string());
            step.run(&mut assemble, &log)?;
            fs::remove_dir_all(&overlay).context("could not remove the disk's parts")?;
            step.done();
            Ok(())
        };
        cache
            .make(&dir, make)
            .context("could not make the runtimes disk")?;
    }
    Ok(dir.join(NAME))
}

/// What comes from Debian and PyPI: a directory with a root.
fn base(cache: &Cache, progress: &Progress) -> Result<PathBuf> {
    let recipe = format!("{SUITE}; {PACKAGES:?}; {EXCLUDED:?}; {WHEELS:?}; {WHEELS_OF_PYPI}; 1");
    let dir = cache.place("runtimes-base", &recipe);
    if !dir.exists() {
        let make = |inside: &Path| {
            let log = cache.log("runtimes-base")?;
            let _ = fs::remove_file(&log);
            let step = progress.step("runtimes disk: packages");
            let mut command = chroot::mmdebstrap();
            command
                .args(["--variant=minbase", "--format=directory"])
                .arg("--aptopt=APT::Install-Recommends \"false\"")
                .arg(format!("--include={}", PACKAGES.join(",")));
            for path in EXCLUDED {
                command.arg(format!("--dpkgopt=path-exclude={path}"));
            }
            step.run(command.arg(SUITE).arg(inside), &log)?;
            step.say("wheels");
            let mut pip: Command = unshare();
            pip.args(["sh", "-ec", WHEELS_OF_PYPI, "sh"]).arg(inside);
            step.run(pip.args(WHEELS), &log)?;
            step.done();
            Ok(())
        };
        cache
            .make(&dir, make)
            .context("could not get the packages of the runtimes disk")?;
    }
    Ok(dir)
}
