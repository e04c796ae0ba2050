//! `cargo xtask man`: the manual pages of the programs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::build;
use crate::lifetime;

/// The packages whose example `manual` writes pages.
const PACKAGES: [&str; 2] = ["vmgenie", "sysgenctl"];

/// Where the pages go.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The directory; target/man/man1 of this workspace when none is given.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Writes the pages, and says where.
pub(crate) fn run(options: &Options) -> Result<i32> {
    let directory = match &options.output {
        Some(output) => std::path::absolute(output)
            .with_context(|| format!("no such directory can be: {}", output.display()))?,
        None => build::workspace().join("target/man/man1"),
    };
    write(&directory, &PACKAGES)?;
    println!("{}", directory.display());
    Ok(0)
}

/// Writes the pages of the packages into the directory, which is made if it is not there.
pub(crate) fn write(directory: &Path, packages: &[&str]) -> Result<()> {
    for package in packages {
        let mut command = build::cargo(&["run", "--quiet", "--package", package]);
        command.args(["--example", "manual", "--"]).arg(directory);
        let status = lifetime::bind(&mut command)
            .status()
            .context("could not run cargo")?;
        if !status.success() {
            bail!("could not write the manual pages of {package}");
        }
    }
    Ok(())
}
