//! Both packages, in a fresh Debian: installed, used and removed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::build::{self, Profile, Wanted};
use crate::cache::{Cache, Scratch};
use crate::deb::host;
use crate::debian;
use crate::namespaces::unshare;
use crate::progress::Progress;
use crate::setup::{self, Guests};
use crate::small::Flavor;

/// Copies the Debian and becomes the script in it. Arguments: the Debian, its copy, and a directory
/// with the script and the packages.
const ENTER: &str = r#"
PATH=/usr/sbin:/usr/bin:/sbin:/bin
cp -a "$1/." "$2"
mount -t proc proc "$2/proc"
mount --rbind /dev "$2/dev"
mkdir "$2/pkg"
mount --bind "$3" "$2/pkg"
exec chroot "$2" /usr/bin/env -i PATH=$PATH HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive \
    sh -c 'exec sh /pkg/script /pkg/*.deb'
"#;

const CHECK: &str = include_str!("../../package/check.sh");

/// Keeps what the host's package has installed. The Debian goes when the script ends.
const INSTALL: &str = r#"
set -ex
dpkg -i "$@"
cp "$(command -v vmgenie)" /pkg/installed
"#;

/// Installs both, and fails if one does not do what it is for, or leaves something behind.
/// `wanted` has the program: what else is built with it is the caller's to know.
pub(crate) fn check(kernel: Flavor, wanted: Wanted) -> Result<()> {
    let progress = Progress::default();
    let resources = setup::setup(Guests::All(kernel), true, &progress)?;
    // This is about the package, not about the program's speed.
    let built = build::build(Profile::VmTest, wanted)?;
    let program = built.vmgenie.context("cargo built no vmgenie")?;
    let scratch = Cache::open()?.run_dir()?;
    let text = CHECK.replace("@KERNEL@", &resources.kernel);
    let guest = Some(&*resources.package);
    in_debian(scratch.path(), &program, guest, &text, &progress)
}

/// The program as `dpkg -i` puts it into a fresh Debian. It is there as long as the directory.
pub(crate) struct Installed {
    dir: Scratch,
}

impl Installed {
    /// Installs the host's package with that program.
    pub(crate) fn new(program: &Path) -> Result<Self> {
        let dir = Cache::open()?.run_dir()?;
        in_debian(dir.path(), program, None, INSTALL, &Progress::default())?;
        Ok(Self { dir })
    }

    /// The program that was installed.
    pub(crate) fn program(&self) -> PathBuf {
        self.dir.path().join("packages/installed")
    }
}

/// Runs the script in a fresh Debian, with the packages as arguments.
fn in_debian(
    scratch: &Path,
    program: &Path,
    guest: Option<&Path>,
    script: &str,
    progress: &Progress,
) -> Result<()> {
    let cache = Cache::open()?;
    let step = progress.step("packages in a fresh Debian");
    let base = debian::base(&cache, progress)?;
    let packages = scratch.join("packages");
    let copy = scratch.join("debian");
    for dir in [&packages, &copy] {
        fs::create_dir(dir).with_context(|| format!("could not make {}", dir.display()))?;
    }
    host::package(program)?.write(&packages)?;
    if let Some(guest) = guest {
        super::copy_into(guest, &packages)?;
    }
    fs::write(packages.join("script"), script).context("could not write the script")?;
    let log = cache.log("packages")?;
    let _ = fs::remove_file(&log);
    let mut command = unshare();
    command
        .args(["sh", "-ec", ENTER, "sh"])
        .args([&base, &copy, &packages]);
    step.run(&mut command, &log)?;
    step.done();
    Ok(())
}
