//! Writes the manual pages of `sysgenctl` into a directory: for `cargo xtask man`.

use std::error::Error;
use std::path::Path;

use clap::CommandFactory;

#[path = "../src/args.rs"]
#[allow(dead_code, unreachable_pub, reason = "the program uses all of it")]
mod args;
#[path = "../src/contract_args.rs"]
#[allow(dead_code, unreachable_pub, reason = "as above")]
mod contract_args;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args_os().nth(1).ok_or("say which directory")?;
    manual_pages::write(args::Cli::command(), Path::new(&directory))?;
    Ok(())
}
