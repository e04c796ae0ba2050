//! What is shown.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vm_agent::patience::{Patience, Progress};
use vmgenie_tests::guest::vmgenie;
use vmgenie_tests::http::done;
use vmgenie_tests::image::{self, Page};
use vmgenie_tests::net::{GUEST, HOST, Namespace};
use vmgenie_tests::{Snapshot, Vm};

use super::asking::{Asked, Client, ask};
use super::verdict::{CLONES, Clone, Facts};
use crate::steps::Steps;

/// How many answers the client of the original has before the fork, and each client in the end at least.
const BEFORE: usize = 20;
const AFTER: usize = 20;
/// How many answers each machine of the control gives.
const CONTROL: usize = 10;
/// How long a guest may take for something, on a host that may be emulated and busy.
const LIMIT: Duration = Duration::from_secs(180);

/// Boots, serves, forks under load, and gathers what can be known.
pub(crate) fn show(steps: &Steps) -> Result<Facts> {
    let disks = image::room_for_disks();
    let disk = disks.path().join("origin.ext4");
    steps
        .step("copying the Debian image", || {
            image::copy_disk(&image::image(), &disk)
        })
        .context("could not copy the image")?;
    let home = Arc::new(Namespace::new());
    home.add_bridge(&["tap0", "tap1", "tap2", "tap3"]);
    let snapshot = Snapshot::within(disks.path());
    let plain = steps.step(
        "booting it on a bridge, and taking a plain snapshot",
        || prepare(&home, &disk, &snapshot),
    )?;
    let control = steps.step(
        "the control: restored twice, and told of no new generation",
        || -> Result<_> {
            let machine = |name: &str| keeps_the_generation(&snapshot, &disks.path().join(name));
            Ok([machine("one")?, machine("other")?])
        },
    )?;
    let (forked, original, clones) = under_load(steps, &home, &snapshot, disks.path())?;
    Ok(Facts {
        plain,
        control,
        forked,
        original,
        clones,
    })
}

/// Forks the machine of the snapshot while it is asked; what the fork has told, and what all clients have got.
fn under_load(
    steps: &Steps,
    home: &Arc<Namespace>,
    snapshot: &Snapshot,
    disks: &Path,
) -> Result<(Value, Asked, Vec<Clone>)> {
    // What it writes from here on is in an overlay: that is all that a fork has to copy.
    let original = on_overlay(home, snapshot, &disks.join("origin.overlay"));
    let client = Client::begin(Arc::clone(home), GUEST);
    steps.step("a client asks the original without pause", || {
        until(&client, BEFORE)
    })?;
    let forked = steps.step("vmgenie fork origin -n 3", || fork(home, &original, disks))?;
    let clients: Vec<_> = (1..=CLONES)
        .map(|number| Client::begin(Arc::clone(home), address(number)))
        .collect();
    let asked = client.count();
    steps.step("a client asks each clone, too", || {
        clients
            .iter()
            .try_for_each(|client| until(client, AFTER))
            .and_then(|()| until(&client, asked + AFTER))
    })?;
    let original = client.finish()?;
    let asked: Result<Vec<_>> = clients.into_iter().map(Client::finish).collect();
    let clones = (1..).zip(asked?).map(|(number, asked)| Clone {
        told: name(number),
        asked,
    });
    Ok((forked, original, clones.collect()))
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + number)
}

fn name(number: u8) -> String {
    format!("clone-{number}")
}

/// Boots the image, and snapshots it when its generator has a seed; how long it stood still for that.
fn prepare(home: &Namespace, disk: &Path, snapshot: &Snapshot) -> Result<Duration> {
    let mut vm = image::start(home, disk);
    Page::of(&vm.console, home, GUEST, image::BOOT_LIMIT);
    ask(home, GUEST).context("no nonce")?;
    image::take_shell(&mut vm);
    vm.shell("sync");
    vm.client.pause().context("could not pause it")?;
    let request = snapshot.request();
    let made = vm.client.create_snapshot(&request);
    Ok(made.context("could not take a snapshot")?.standstill)
}

/// What one more machine of the snapshot answers, on a network of its own, when nothing tells it that it is a copy.
fn keeps_the_generation(snapshot: &Snapshot, overlay: &Path) -> Result<Asked> {
    let network = Namespace::new();
    network.add_tap("tap0");
    let _machine = on_overlay(&network, snapshot, overlay);
    let mut asked = Asked::default();
    for _ in 0..CONTROL {
        asked.answers.push(ask(&network, GUEST)?);
    }
    Ok(asked)
}

/// The same machine, which goes on with what it writes in `overlay`.
fn on_overlay(home: &Namespace, snapshot: &Snapshot, overlay: &Path) -> Vm {
    let mut vm = home.empty_vm();
    let body = json!({
        "snapshot_path": snapshot.state(),
        "mem_file_path": snapshot.memory(),
        "resume_vm": true,
        "generation": "keep",
        "drive_overrides": [{ "drive_id": "disk0", "path_on_host": overlay, "overlay": true }],
    });
    done(&mut vm.client, "PUT /snapshot/load", body.to_string());
    vm
}

/// Waits until a client has had so many requests, as long as there are more and more.
fn until(client: &Client, count: usize) -> Result<()> {
    let mut patience = Patience::new(LIMIT);
    while client.count() < count {
        let progress = || Progress {
            done: client.count() as u64,
            ..Progress::default()
        };
        ensure!(!patience.is_over_at(progress), "a client gets no answers");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Runs `vmgenie fork` as a user would; what it has told.
fn fork(home: &Namespace, original: &Vm, disks: &Path) -> Result<Value> {
    let clones = tempfile::tempdir()?.keep();
    let mut command = Command::new(vmgenie());
    command
        .arg("fork")
        .arg(original.socket())
        .args(["-n", &CLONES.to_string(), "--json", "--dir"])
        .arg(&clones)
        .args(["--net", "net0=tap{n},mac=06:00:0a:4d:00:1{n}"])
        .arg("--gate=agents=1")
        .args(["--quiesce", "1m", "--wait", "5m"])
        .arg("--data")
        .arg(format!(
            "ip=10.77.0.1{{n}}::{HOST}:24:clone-{{n}}:eth0:off mac=06:00:0a:4d:00:1{{n}}"
        ))
        .env("TMPDIR", disks)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped());
    let output = home.run(|| command.output())?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(
        matches!(output.status.code(), Some(0 | 5)),
        "vmgenie fork ended with {}: {told}",
        output.status
    );
    serde_json::from_slice(&output.stdout).context("vmgenie fork told no JSON")
}
