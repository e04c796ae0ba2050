//! The benchmarks: `cargo xtask bench restore|create|boot|net|vsock|block|image|notify|fork|unaware`. What each measures is told in `docs/benchmarks.md`.

mod block;
mod boot;
mod create;
mod devices;
mod file_system;
mod floor;
mod fork;
mod http;
mod image;
mod monitor;
mod net;
mod notify;
mod patience;
mod report;
mod resident;
mod restore;
mod stats;
mod streams;
mod unaware;
mod vsock;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use monitor::Program;
use report::Report;

/// Measures vmgenie, and a Firecracker beside it if there is one.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    /// From the request to load a snapshot to the answer, beside the bare ioctls; and the memory of the process.
    Restore(Options),
    /// How long a guest of 1 GiB stands still for a full snapshot.
    Create(Options),
    /// From InstanceStart to the guest's init: the small kernel.
    Boot(Options),
    /// Throughput and round trip of a guest's network interface.
    Net(Options),
    /// Throughput and round trip between a guest's program and the host's, over vsock.
    Vsock(Options),
    /// A guest's disk: 4 KiB anywhere, 1 MiB in a row, read and written.
    Block(Options),
    /// The Debian image: from InstanceStart, and from the request to load a snapshot, to the first byte of its page.
    Image(Options),
    /// From the resume of a clone to its programs' and the host's knowledge of it, beside QEMU.
    Notify(GuestOptions),
    /// A guest with the driver: its standstill, and when its clones are reseeded, adapted and ready; beside a plain snapshot.
    Fork(ForkOptions),
    /// What programs of a clone do before its kernel has reseeded: after a fork, a plain snapshot, and on QEMU.
    Unaware(GuestOptions),
}

#[derive(Debug, Args)]
struct GuestOptions {
    /// Print JSON.
    #[arg(long)]
    json: bool,

    /// How many clones of each monitor or guest are measured.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,
}

#[derive(Debug, Args)]
struct ForkOptions {
    #[command(flatten)]
    guests: GuestOptions,

    /// The tiny guest alone, which plays the driver's part: on any KVM.
    #[arg(long)]
    tiny: bool,
}

#[derive(Debug, Args)]
struct Options {
    /// Print JSON.
    #[arg(long)]
    json: bool,

    /// How often each thing is done; by default 100 restores, 20 creates, 5 boots and images, 10 rounds of net, vsock and block.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: Option<u32>,

    /// Measure this Firecracker too, in turn, and print ratios.
    #[arg(long, value_name = "PATH")]
    firecracker: Option<PathBuf>,
}

impl Options {
    fn programs(&self) -> Result<Vec<Program>> {
        let mut programs = vec![Program::vmgenie()?];
        if let Some(path) = &self.firecracker {
            programs.push(Program::firecracker(path)?);
        }
        Ok(programs)
    }

    fn runs(&self, default: usize) -> usize {
        self.runs.map_or(default, |runs| runs as usize)
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().benchmark) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(benchmark: Benchmark) -> Result<()> {
    let (json, report): (bool, Report) = match benchmark {
        Benchmark::Restore(options) => {
            let report = restore::run(&options.programs()?, options.runs(100))?;
            (options.json, report)
        }
        Benchmark::Create(options) => {
            let report = create::run(&options.programs()?, options.runs(20))?;
            (options.json, report)
        }
        Benchmark::Boot(options) => {
            let report = boot::run(&options.programs()?, options.runs(5))?;
            (options.json, report)
        }
        Benchmark::Net(options) => {
            let report = net::run(&options.programs()?, options.runs(10))?;
            (options.json, report)
        }
        Benchmark::Vsock(options) => {
            let report = vsock::run(&options.programs()?, options.runs(10))?;
            (options.json, report)
        }
        Benchmark::Block(options) => {
            let report = block::run(&options.programs()?, options.runs(10))?;
            (options.json, report)
        }
        Benchmark::Image(options) => {
            let report = image::run(&options.programs()?, options.runs(5))?;
            (options.json, report)
        }
        Benchmark::Notify(options) => (options.json, notify::run(options.runs as usize)?),
        Benchmark::Unaware(options) => (options.json, unaware::run(options.runs as usize)?),
        Benchmark::Fork(ForkOptions { guests, tiny }) => {
            (guests.json, fork::run(guests.runs as usize, tiny)?)
        }
    };
    report.print(json);
    Ok(())
}
