//! Both packages, in a fresh Debian: installed, used and removed.

use std::fs;

use anyhow::{Context, Result};

use crate::build::{self, Profile, Wanted};
use crate::cache::Cache;
use crate::deb::host;
use crate::debian;
use crate::namespaces::unshare;
use crate::progress::Progress;
use crate::setup::{self, Guests};
use crate::small::Flavor;

/// Copies the Debian and becomes the check in it. Arguments: the Debian, its copy, and a directory
/// with the check and the packages.
const ENTER: &str = r#"
PATH=/usr/sbin:/usr/bin:/sbin:/bin
cp -a "$1/." "$2"
mount -t proc proc "$2/proc"
mount --rbind /dev "$2/dev"
mkdir "$2/pkg"
mount --bind "$3" "$2/pkg"
exec chroot "$2" /usr/bin/env -i PATH=$PATH HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive \
    sh -c 'exec sh /pkg/check.sh /pkg/*.deb'
"#;

const CHECK: &str = include_str!("../../package/check.sh");

/// Installs both, and fails if one does not do what it is for, or leaves something behind.
/// `wanted` has the program: what else is built with it is the caller's to know.
pub(crate) fn check(kernel: Flavor, wanted: Wanted) -> Result<()> {
    let progress = Progress::default();
    let resources = setup::setup(Guests::All(kernel), true, &progress)?;
    // This is about the package, not about the program's speed.
    let built = build::build(Profile::VmTest, wanted)?;
    let program = built.vmgenie.context("cargo built no vmgenie")?;
    let cache = Cache::open()?;
    let step = progress.step("packages in a fresh Debian");
    let base = debian::base(&cache, &progress)?;
    let scratch = cache.run_dir()?;
    let packages = scratch.path().join("packages");
    let copy = scratch.path().join("debian");
    for dir in [&packages, &copy] {
        fs::create_dir(dir).with_context(|| format!("could not make {}", dir.display()))?;
    }
    host::package(&program)?.write(&packages)?;
    super::copy_into(&resources.package, &packages)?;
    let text = CHECK.replace("@KERNEL@", &resources.kernel);
    fs::write(packages.join("check.sh"), text).context("could not write the check")?;
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
