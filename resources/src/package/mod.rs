//! `cargo xtask package`: the host's side and the guest's side as Debian packages.

mod check;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use crate::build::{self, Profile, Wanted};
use crate::deb::host;
use crate::progress::Progress;
use crate::setup::{self, Guests};
use crate::small::Flavor;

pub(crate) use check::{Installed, check};

/// What the command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Write the packages there. Earlier ones of the same version are replaced.
    #[arg(long, value_name = "DIR", default_value = "target/package")]
    output: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Write nothing: install both in a fresh Debian, use them, and remove them, as the tests do.
    #[arg(long, conflicts_with_all = ["output", "json"])]
    check: bool,
}

/// Makes both packages.
pub(crate) fn run(options: &Options) -> Result<i32> {
    if options.check {
        return check(Flavor::Plain, Wanted::Vmgenie).map(|()| 0);
    }
    let resources = setup::setup(Guests::Stock, false, &Progress::default())?;
    let built = build::build(Profile::Release, Wanted::Vmgenie)?;
    let program = built.vmgenie.context("cargo built no vmgenie")?;
    let output = &options.output;
    fs::create_dir_all(output).with_context(|| format!("could not make {}", output.display()))?;
    let host = host::package(&program)?.write(output)?;
    let guest = copy_into(&resources.package, output)?;
    match options.json {
        true => println!("{}", json!({ "host": host, "guest": guest })),
        false => println!(
            "host: {}\nguest: {}\n\nInstall one: sudo dpkg -i {}",
            host.display(),
            guest.display(),
            host.display()
        ),
    }
    Ok(0)
}

fn copy_into(file: &Path, dir: &Path) -> Result<PathBuf> {
    let name = file.file_name().context("a package has no name")?;
    let to = dir.join(name);
    fs::copy(file, &to).with_context(|| format!("could not write {}", to.display()))?;
    Ok(to)
}
