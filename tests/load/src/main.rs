//! `guest-load`: the guest's side of the tests of networks and disks.

use std::io::{self, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;

use guest_load::disk::{self, Timing};

const USAGE: &str = "usage: guest-load serve PORT
       guest-load churn DISK WORKERS STOP-FILE
       guest-load log DISK
       guest-load time DISK read|write random|sequential BYTES COUNT WORKERS";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            println!("guest-load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// None if the arguments are not understood.
fn run(arguments: &[&str]) -> Option<io::Result<()>> {
    Some(match *arguments {
        ["serve", port] => serve(port.parse().ok()?),
        ["churn", disk, workers, stop] => {
            let workers = workers.parse().ok()?;
            let progress = |done| tell(&format!("done {done}"));
            let total = disk::churn(Path::new(disk), workers, Path::new(stop), progress);
            total.map(|total| tell(&format!("all right after {total}")))
        }
        ["log", disk] => disk::log(Path::new(disk), |number| tell(&format!("record {number}"))),
        ["time", disk, direction, order, bytes, count, workers] => {
            let timing = Timing {
                write: direction == "write",
                random: order == "random",
                bytes: bytes.parse().ok()?,
                count: count.parse().ok()?,
                workers: workers.parse().ok()?,
            };
            let took = disk::time(Path::new(disk), timing);
            took.map(|took| tell(&format!("nanoseconds {}", took.as_nanos())))
        }
        _ => return None,
    })
}

fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    tell("ready");
    guest_load::serve(&listener)
}

/// A line that is seen at once.
fn tell(line: &str) {
    println!("{line}");
    // Nobody reads any more: what is done is done nevertheless.
    let _ = io::stdout().flush();
}
