//! The guest's package: the driver for the stock kernel, the agent, its unit, rule and hooks.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::file::Package;
use super::{COPYRIGHT, manual};
use crate::files::Files;
use crate::initramfs::Ours;
use crate::stock::Stock;
use crate::{build, driver, lifetime};

/// Files of the workspace, and their places. A directory stands for all that is in it.
const FILES: &[(&str, &str)] = &[
    ("guest-driver/hooks", "etc/sysgenid/adapt.d"),
    (
        "guest-driver/systemd/sysgenctl-agent.service",
        "usr/lib/systemd/system/sysgenctl-agent.service",
    ),
    (
        "guest-driver/systemd/sysgenid.modules-load.conf",
        "usr/lib/modules-load.d/sysgenid.conf",
    ),
    (
        "guest-driver/udev/60-sysgenid.rules",
        "usr/lib/udev/rules.d/60-sysgenid.rules",
    ),
];

/// The modules' own terms.
const MODULES_COPYRIGHT: &str = include_str!("../../package/copyright.modules");

const POSTINST: &str = include_str!("../../package/guest.postinst");
const PRERM: &str = include_str!("../../package/guest.prerm");
const POSTRM: &str = include_str!("../../package/guest.postrm");

/// What the package is made of.
pub(crate) fn package(stock: &Stock, ours: &Ours) -> Result<Package> {
    let kernel = stock.version();
    let mut files = Files::of_workspace(FILES)?;
    let sysgenctl = ours
        .program("sysgenctl")
        .context("there is no sysgenctl for guests")?;
    files.push("usr/bin/sysgenctl", sysgenctl.to_vec(), 0o755);
    for name in driver::MODULES {
        let from = ours.stock_driver.join(format!("{name}.ko"));
        let contents =
            fs::read(&from).with_context(|| format!("could not read {}", from.display()))?;
        let place = format!("usr/lib/modules/{kernel}/extra/{name}.ko");
        files.push(place, contents, 0o644);
    }
    for (place, page) in pages()? {
        files.push(place, page, 0o644);
    }
    let copyright = "usr/share/doc/vmgenie-guest/copyright";
    let terms = [COPYRIGHT, MODULES_COPYRIGHT].concat();
    files.push(copyright, terms.into_bytes(), 0o644);
    let script = |text: &str| text.replace("@KERNEL@", kernel);
    Ok(Package {
        name: "vmgenie-guest",
        summary: "tells a machine's programs that it is a clone",
        description: format!(
            "The driver of /dev/sysgenid and of VMGENID for Linux {kernel},\n\
             the agent sysgenctl, and hooks that give a clone of a virtual machine\n\
             its own machine ID, boot ID, SSH host keys and address.\n\
             \n\
             The hooks in /etc/sysgenid/adapt.d are run in each new generation, and at the\n\
             installation in a machine that is a clone already. Remove those that are not\n\
             wanted. Those of /etc/sysgenid/quiesce.d and resume.d, of which there are none\n\
             yet, are run before and after a snapshot that the host asks for."
        ),
        relations: vec![
            "Depends: kmod".to_owned(),
            format!("Recommends: linux-image-{kernel}, udev, systemd"),
        ],
        files,
        scripts: vec![
            ("postinst", script(POSTINST)),
            ("prerm", script(PRERM)),
            ("postrm", script(POSTRM)),
        ],
    })
}

/// The manual pages of sysgenctl.
fn pages() -> Result<Vec<(String, Vec<u8>)>> {
    let program = build::manual("sysgenctl")?;
    manual::pages(|dir| {
        let mut command = Command::new(&program);
        let status = lifetime::bind(command.arg(dir)).status();
        let status = status.context("could not run the program that writes the manual")?;
        ensure!(
            status.success(),
            "could not write the manual pages of sysgenctl"
        );
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_package_has_the_hooks_the_unit_and_the_rule() {
        let files = Files::of_workspace(FILES).unwrap();
        let mode = |wanted: &str| {
            let found = files.iter().find(|(place, ..)| *place == Path::new(wanted));
            found.map(|(_, _, mode)| mode)
        };
        for hook in ["identity/10-machine-id", "service/30-dhcp"] {
            let place = format!("etc/sysgenid/adapt.d/{hook}");
            assert_eq!(mode(&place), Some(0o755), "{hook}");
        }
        assert_eq!(mode("usr/lib/udev/rules.d/60-sysgenid.rules"), Some(0o644));
        assert_eq!(
            mode("usr/lib/systemd/system/sysgenctl-agent.service"),
            Some(0o644)
        );
    }
}
