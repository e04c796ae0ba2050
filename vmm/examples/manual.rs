//! Writes the manual pages of `vmgenie` into a directory: for `cargo xtask man`.

use std::error::Error;
use std::path::Path;

use clap::CommandFactory;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args_os().nth(1).ok_or("say which directory")?;
    manual_pages::write(vmgenie::cli::args::Cli::command(), Path::new(&directory))?;
    Ok(())
}
