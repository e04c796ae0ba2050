//! The guest's side of what moves bytes between a guest and its host.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use guest_load::disk::{self, Timing};
use guest_load::{clock, download, send, serve, serve_all, upload, vsock};

const USAGE: &str = "usage: guest-load serve PORT
       guest-load churn DISK WORKERS STOP-FILE
       guest-load log DISK
       guest-load clock PROCESSORS SECONDS [STOP-FILE]
       guest-load time DISK read|write random|sequential BYTES COUNT WORKERS
       guest-load vsock-cid
       guest-load vsock-serve PORT
       guest-load vsock-upload PORT BYTES CONNECTIONS
       guest-load vsock-download PORT BYTES CONNECTIONS
       guest-load vsock-pour PORT BYTES  sends, and ends at once
       guest-load vsock-halves PORT     sends a line, ends, prints what comes back
       guest-load vsock-hold PORT       sends a line, prints how the connection ends";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("guest-load: {error}");
            ExitCode::FAILURE
        }
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn run(words: &[&str]) -> Option<io::Result<()>> {
    Some(match *words {
        ["serve", port] => serve_tcp(port.parse().ok()?),
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
        ["clock", processors, seconds] => {
            watch_clock(processors.parse().ok()?, seconds.parse().ok()?, None)
        }
        ["clock", processors, seconds, stop] => {
            let stop = Some(Path::new(stop));
            watch_clock(processors.parse().ok()?, seconds.parse().ok()?, stop)
        }
        ["vsock-cid"] => vsock::local_cid().map(|cid| println!("{cid}")),
        ["vsock-serve", port] => serve_vsock(port.parse().ok()?),
        ["vsock-upload", port, bytes, connections] => {
            let (port, bytes) = (port.parse().ok()?, bytes.parse().ok()?);
            at_once(connections.parse().ok()?, move || {
                upload(vsock::connect_to_host(port)?, bytes).map(drop)
            })
        }
        ["vsock-download", port, bytes, connections] => {
            let (port, bytes) = (port.parse().ok()?, bytes.parse().ok()?);
            at_once(connections.parse().ok()?, move || {
                download(vsock::connect_to_host(port)?, bytes).map(drop)
            })
        }
        ["vsock-pour", port, bytes] => {
            let bytes = bytes.parse().ok()?;
            vsock::connect_to_host(port.parse().ok()?).and_then(|stream| send(stream, bytes))
        }
        ["vsock-halves", port] => halves(port.parse().ok()?),
        ["vsock-hold", port] => hold(port.parse().ok()?),
        _ => return None,
    })
}

fn watch_clock(processors: usize, seconds: u64, stop: Option<&Path>) -> io::Result<()> {
    tell("ready");
    let seen = clock::watch(processors, Duration::from_secs(seconds), stop)?;
    tell(&format!(
        "reads {} backwards {} worst_ns {} largest_step_ns {}",
        seen.reads, seen.backwards, seen.worst_ns, seen.largest_step_ns
    ));
    Ok(())
}

fn serve_tcp(port: u16) -> io::Result<()> {
    // By IPv6, which is by IPv4 as well, if the kernel has it.
    let listener =
        TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
    tell("ready");
    serve(&listener)
}

fn serve_vsock(port: u32) -> io::Result<()> {
    let listener = vsock::Listener::bind(port)?;
    tell("ready");
    serve_all(|| listener.accept())
}

/// So many at the same time; the first failure.
fn at_once(
    count: usize,
    job: impl Fn() -> io::Result<()> + Send + Clone + 'static,
) -> io::Result<()> {
    let threads: Vec<_> = (0..count).map(|_| thread::spawn(job.clone())).collect();
    for thread in threads {
        thread
            .join()
            .map_err(|_| io::Error::other("a thread panicked"))??;
    }
    Ok(())
}

fn halves(port: u32) -> io::Result<()> {
    let mut stream = vsock::connect_to_host(port)?;
    stream.write_all(b"a question\n")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    print!("{answer}");
    Ok(())
}

fn hold(port: u32) -> io::Result<()> {
    let mut stream = vsock::connect_to_host(port)?;
    stream.write_all(b"held\n")?;
    let end = stream.read(&mut [0]);
    match end {
        Ok(len) => println!("read {len}"),
        Err(error) => println!("{}", error.kind()),
    }
    Ok(())
}

/// A line that is seen at once.
fn tell(line: &str) {
    println!("{line}");
    // Nobody reads any more: what is done is done nevertheless.
    let _ = io::stdout().flush();
}
