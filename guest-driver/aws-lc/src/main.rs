//! AWS-LC as it is, for real guests. The library opens `/dev/sysgenid` by itself, maps the counter and
//! reseeds its generators when that has moved. Root's programs and others' are told apart: it runs as
//! a user without privilege unless told not to.

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use aws_lc_sys::RAND_bytes;
use clap::{Parser, Subcommand};

// The library's own view of the device. The crate does not declare these; their names carry its version,
// to which it is pinned.
unsafe extern "C" {
    #[link_name = "aws_lc_0_47_0_CRYPTO_get_vm_ube_active"]
    fn vm_ube_active() -> i32;
    #[link_name = "aws_lc_0_47_0_CRYPTO_get_vm_ube_generation"]
    fn vm_ube_generation(generation: *mut u32) -> i32;
}

/// The user without privilege.
const NOBODY: u32 = 65_534;

/// Draws random numbers with AWS-LC in a guest that is cloned meanwhile.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  sysgenid-aws-lc speed
  sysgenid-aws-lc draw --after /tmp/restored"
)]
struct Cli {
    /// Keep the user that started it.
    #[arg(long, global = true)]
    as_is: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Draws once, waits until a file is there, and draws again.
    Draw {
        /// The file.
        #[arg(long)]
        after: PathBuf,
    },
    /// Draws for half a second, and prints how often.
    Speed,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if !cli.as_is && !become_nobody() {
        eprintln!("could not give up privilege: start it as root, or with --as-is");
        return ExitCode::FAILURE;
    }
    match cli.command {
        Command::Draw { after } => {
            draw("ready");
            while !after.exists() {
                thread::sleep(Duration::from_millis(20));
            }
            draw("again");
        }
        Command::Speed => {
            draw("ready");
            println!("draws {}", speed());
        }
    }
    ExitCode::SUCCESS
}

fn become_nobody() -> bool {
    // SAFETY: the call takes an integer, and this process has one thread.
    unsafe { libc::setuid(NOBODY) == 0 }
}

/// Prints 16 random bytes, and what the library knows of the machine's generation.
fn draw(word: &str) {
    let bytes = random();
    let (active, generation) = generation();
    println!(
        "{word} active {active} generation {generation} bytes {:032x}",
        u128::from_be_bytes(bytes)
    );
}

fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    // SAFETY: the buffer is as long as it is said to be.
    let drawn = unsafe { RAND_bytes(bytes.as_mut_ptr(), bytes.len()) };
    assert_eq!(drawn, 1, "AWS-LC has no random bytes");
    bytes
}

/// Whether the library watches the device, and the counter that it sees.
fn generation() -> (i32, u32) {
    let mut generation = 0;
    // SAFETY: the number is written to for the duration of the call alone.
    unsafe {
        let active = vm_ube_active();
        vm_ube_generation(&mut generation);
        (active, generation)
    }
}

fn speed() -> u64 {
    let end = Instant::now() + Duration::from_millis(500);
    let mut draws = 0;
    while Instant::now() < end {
        random();
        draws += 1;
    }
    draws
}
