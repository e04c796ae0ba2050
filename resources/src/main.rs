//! `cargo xtask`: makes what a VM needs, and runs programs, tests, the demo and the benchmarks on
//! a KVM that can boot Linux, this machine's own or an emulated one.

mod archive;
mod build;
mod bzimage;
mod cache;
mod chroot;
mod commands;
mod counted;
mod deb;
mod debian;
mod detect;
mod driver;
mod driver_patch;
mod emulator;
mod extras;
mod files;
mod fuzz;
mod host;
mod image;
mod initramfs;
mod kernel_tree;
mod lanes;
mod languages;
mod libraries;
mod lifetime;
mod man;
mod modules;
mod namespaces;
mod package;
mod patches;
mod peer;
mod prepared;
mod programs;
mod progress;
mod runtimes;
mod setup;
mod small;
mod stock;
mod summary;
mod testing;
mod tools;
mod trees;
mod unified;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    lifetime::begin();
    match commands::run(commands::Arguments::parse()) {
        Ok(status) => ExitCode::from(status.clamp(0, 255) as u8),
        Err(error) => {
            eprintln!("error: {error:#}");
            // Not 1, so that a failed command in the host and a failed host can be told apart.
            ExitCode::from(125)
        }
    }
}
