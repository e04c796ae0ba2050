//! `image`: the Debian image, from InstanceStart to its page and from the request to load a snapshot to its page.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use vm_agent::patience::Patience;
use vmgenie_tests::console::Console;
use vmgenie_tests::guest::Guest;
use vmgenie_tests::image;
use vmgenie_tests::net::{GUEST, Namespace};

use crate::monitor::{Files, Monitor, Program, Size, vm_state};
use crate::report::{Report, times_table};
use crate::stats::Series;

const SIZE: Size = Size {
    vcpus: 1,
    memory_mib: 256,
    devices: false,
};
/// The guest's hardware address. At a boot the host knows it beforehand: a question that comes too early would be asked again
/// after a second. After a restore it asks, as hosts do; by the question the guest learns that it has another host.
const MAC: &str = "06:00:0a:4d:00:02";
/// How long an attempt to connect may take before the next; the host's own would be after a second, then two.
const ATTEMPT: Duration = Duration::from_millis(100);
/// How long an answer may take, and a boot.
const LIMIT: Duration = Duration::from_secs(60);
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// How long a guest that has answered is left alone before its snapshot: its services start still.
const SETTLE: Duration = Duration::from_secs(20);

/// One program with its disk and its snapshot.
struct Case<'a> {
    program: &'a Program,
    dir: TempDir,
    boot: Series,
    restore: Series,
    /// Of a restore, until the request to load was answered.
    load: Series,
}

/// Boots the image and restores its snapshot `runs` times with each program, in turn.
pub(crate) fn run(programs: &[Program], runs: usize) -> Result<Report> {
    ensure!(
        std::env::var_os("VMGENIE_IMAGE").is_some(),
        "VMGENIE_IMAGE does not name the Debian image: run `cargo xtask bench image`"
    );
    let mut cases: Vec<_> = programs
        .iter()
        .map(|program| Case {
            program,
            dir: image::room_for_disks(),
            boot: Series::default(),
            restore: Series::default(),
            load: Series::default(),
        })
        .collect();
    for round in 1..=runs {
        for case in &mut cases {
            let last = round == runs;
            case.boot(last)
                .with_context(|| format!("{} could not boot", case.program.name()))?;
        }
    }
    // The first restore is not counted: the memory file comes into the page cache.
    for round in 0..=runs {
        for case in &mut cases {
            case.restore(round > 0)
                .with_context(|| format!("{} could not restore", case.program.name()))?;
        }
    }
    Ok(report(&cases))
}

impl Case<'_> {
    fn disk(&self) -> PathBuf {
        self.dir.path().join("disk.ext4")
    }

    /// The disk as it was at the snapshot.
    fn frozen(&self) -> PathBuf {
        self.dir.path().join("frozen.ext4")
    }

    fn files(&self) -> Files {
        Files {
            state: self.dir.path().join("state"),
            memory: self.dir.path().join("memory"),
        }
    }

    /// Puts a copy of `from` where the snapshot's disk is.
    fn renew_disk(&self, from: &std::path::Path) -> Result<()> {
        let _ = fs::remove_file(self.disk());
        image::copy_disk(from, &self.disk()).context("could not copy the disk")
    }

    /// Starts the program on a network of its own.
    fn start(&self) -> Result<(Namespace, Monitor)> {
        let namespace = Namespace::new();
        namespace.add_tap("tap0");
        let monitor = namespace.run(|| self.program.start())?;
        Ok((namespace, monitor))
    }

    fn boot(&mut self, with_snapshot: bool) -> Result<()> {
        self.renew_disk(&image::image())?;
        let (namespace, mut monitor) = self.start()?;
        namespace.know(GUEST, MAC);
        let source = json!({
            "kernel_image_path": Guest::Debian.kernel(),
            "initrd_path": image::initrd(),
            "boot_args": image::cmdline(),
        });
        monitor.configure(SIZE, &source)?;
        let api = &mut monitor.connection;
        api.send("PUT /drives/disk0", &self.drive())?;
        let net = json!({ "iface_id": "net0", "host_dev_name": "tap0", "guest_mac": MAC });
        api.send("PUT /network-interfaces/net0", &net)?;
        api.send("PUT /entropy", &json!({}))?;
        let begun = Instant::now();
        api.send("PUT /actions", &json!({ "action_type": "InstanceStart" }))?;
        first_byte(&namespace, &monitor.console, BOOT_LIMIT)?;
        self.boot.push(begun.elapsed());
        if with_snapshot {
            thread::sleep(SETTLE);
            monitor.reconnect()?;
            let api = &mut monitor.connection;
            api.send("PATCH /vm", &vm_state("Paused"))?;
            api.send("PUT /snapshot/create", &self.files().create_request())?;
            image::copy_disk(&self.disk(), &self.frozen())?;
        }
        Ok(())
    }

    fn drive(&self) -> Value {
        json!({
            "drive_id": "disk0",
            "path_on_host": self.disk(),
            "is_root_device": true,
            "is_read_only": false,
            "cache_type": "Writeback",
        })
    }

    fn restore(&mut self, counts: bool) -> Result<()> {
        self.renew_disk(&self.frozen())?;
        let (namespace, mut monitor) = self.start()?;
        let begun = Instant::now();
        monitor
            .connection
            .send("PUT /snapshot/load", &self.files().load_request())?;
        let loaded = begun.elapsed();
        first_byte(&namespace, &monitor.console, LIMIT)?;
        let answered = begun.elapsed();
        if counts {
            self.restore.push(answered);
            self.load.push(loaded);
        }
        Ok(())
    }

    fn json(&self) -> Value {
        json!({
            "monitor": self.program.name(),
            "boot_to_first_answer": self.boot.json(),
            "load_to_first_answer": self.restore.json(),
            "load": self.load.json(),
        })
    }
}

/// Asks for the page until its first byte is there.
fn first_byte(namespace: &Namespace, console: &Console, limit: Duration) -> Result<()> {
    let mut patience = Patience::new(limit);
    loop {
        match ask(namespace) {
            Ok(()) => return Ok(()),
            Err(error) => ensure!(
                !patience.is_over_at(|| console.progress()),
                "there is no answer: {error}"
            ),
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn ask(namespace: &Namespace) -> io::Result<()> {
    let address = SocketAddrV4::new(GUEST, image::PORT).into();
    let mut stream = namespace.run(|| TcpStream::connect_timeout(&address, ATTEMPT))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    stream.read_exact(&mut [0])
}

fn report(cases: &[Case<'_>]) -> Report {
    let rows = times_table(
        cases,
        |case| case.program,
        &[
            ("InstanceStart to the first answer", |c| &c.boot),
            ("PUT /snapshot/load to the first answer", |c| &c.restore),
            ("  of it, to the answer to the request", |c| &c.load),
        ],
    );
    Report {
        tables: vec![rows],
        notes: vec![format!("the Debian image, {SIZE}; drive, net, entropy")],
        json: json!({
            "benchmark": "image",
            "vcpus": SIZE.vcpus,
            "memory_mib": SIZE.memory_mib,
            "cases": cases.iter().map(Case::json).collect::<Vec<_>>(),
        }),
    }
}
