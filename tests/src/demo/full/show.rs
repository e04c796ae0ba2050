//! What is shown.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;
use vm_agent::patience::Patience;
use vmgenie_api::wire::SnapshotCreate;
use vmgenie_tests::http::done;
use vmgenie_tests::image::{self, Page};
use vmgenie_tests::net::{GUEST, Namespace};
use vmgenie_tests::vm::agent_is_ready;
use vmgenie_tests::{Snapshot, Vm};

use super::download::Download;
use super::records::{self, Told};
use super::verdict::{Facts, Machine};
use crate::steps::Steps;

const CLONES: u8 = 3;
/// The file that is downloaded: the numbers to this one, a line each.
const NUMBERS: u32 = 1_500_000;
/// How many bytes of it have arrived when the snapshot is taken, and how many records were written.
const BEGUN: u64 = 256 << 10;
const WRITTEN: u64 = 5;
/// How long a guest may take for something, on a host that may be emulated and busy.
const LIMIT: Duration = Duration::from_secs(180);

/// A clone on a network of its own.
struct Clone {
    name: String,
    address: Ipv4Addr,
    namespace: Namespace,
    vm: Vm,
}

/// Boots, serves, snapshots, clones, and gathers what can be known.
pub(crate) fn show(steps: &Steps) -> Result<Facts> {
    let disks = image::room_for_disks();
    let disk = disks.path().join("origin.ext4");
    steps
        .step(
            "copying the Debian image, which the original writes to",
            || image::copy_disk(&image::image(), &disk),
        )
        .context("could not copy the image")?;
    let home = Namespace::new();
    home.add_tap("tap0");
    let booting = format!(
        "booting it: vmgenie run --disk origin.ext4 --net tap0 --memory {}",
        image::MEMORY
    );
    let begun = Instant::now();
    let (mut original, page) = steps.step(&booting, || {
        let vm = image::start(&home, &disk);
        let page = Page::of(&vm.console, &home, GUEST, image::BOOT_LIMIT);
        (vm, page)
    });
    let boot = begun.elapsed();
    steps.note(&format!(
        "{} serves its page at {GUEST} over the tap; its machine ID is {}",
        page.value("hostname"),
        page.value("machine-id")
    ));
    steps.step(
        "logging in on its console, and making a file to download",
        || {
            image::take_shell(&mut original);
            original.run_within(
                &format!("seq {NUMBERS} > /srv/www/numbers && sync /srv/www/numbers"),
                LIMIT,
            );
        },
    );
    let first_id = host_id(&mut original)?;

    let told = Told::by(home.listen(records::PORT));
    records::start(&mut original);
    let download = Download::begin(home.connect(image::PORT), "/numbers")?;
    let working = "a writer writes records and has each flushed, a client downloads";
    steps.step(working, || {
        wait_until(|| told.last() >= WRITTEN && download.received() >= BEGUN)
    })?;
    let snapshot = Snapshot::within(disks.path());
    let begun = Instant::now();
    original.client.pause().context("could not pause it")?;
    // Nothing is told any more, and what was told before is on the disk.
    thread::sleep(Duration::from_millis(50));
    let (received, flushed) = (download.received(), told.last());
    let request = SnapshotCreate {
        copy_drives: true,
        cooperative: None,
        ..snapshot.request()
    };
    steps
        .step(
            "taking a snapshot in the middle of both, with a copy of the disk",
            || original.client.create_snapshot(&request),
        )
        .context("could not take the snapshot")?;
    let snapshot_time = begun.elapsed();
    original.client.resume().context("could not resume it")?;
    steps.note("the original goes on");
    let mut clones = Vec::new();
    for number in 1..=CLONES {
        let what =
            format!("loading it as clone {number}: a network of its own, an overlay on the disk");
        clones.push(steps.step(&what, || load(number, &snapshot, disks.path()))?);
    }
    let waking =
        format!("all {CLONES} clones run: until each has adapted, and answers at its own address");
    let machines = steps.step(&waking, || wake(&mut clones))?;
    let body = steps.step(
        "the client of the original goes on with its download",
        || download.finish(),
    )?;
    let original_page = Page::of(&original.console, &home, GUEST, LIMIT);

    let asking = "reading what the disks have of the writer, and what became of the clients";
    let (original, clones) = steps.step(asking, || -> Result<_> {
        let original = Machine {
            name: "original".to_owned(),
            told: image::NAME.to_owned(),
            host_id: host_id(&mut original)?,
            page: original_page,
            times: None,
            records: records::on_disk(&mut original),
            left_open: 0,
            downloaded: whole(&body),
        };
        let clones: Result<Vec<_>> = clones
            .into_iter()
            .zip(machines)
            .map(|(clone, machine)| ask(clone, machine))
            .collect();
        Ok((original, clones?))
    })?;
    Ok(Facts {
        boot,
        snapshot: snapshot_time,
        first_id,
        first_page: page,
        received,
        flushed,
        original,
        clones,
    })
}

fn wait_until(happened: impl FnMut() -> bool) -> Result<()> {
    let there = Patience::new(LIMIT).wait_until(Duration::from_millis(10), happened);
    ensure!(there, "nothing is written or received");
    Ok(())
}

fn host_id(vm: &mut Vm) -> Result<String> {
    let info = vm.client.generation().context("could not ask for the ID")?;
    Ok(info.raw)
}

/// A restored machine that does not run yet.
fn load(number: u8, snapshot: &Snapshot, disks: &Path) -> Result<Clone> {
    let name = format!("clone-{number}");
    let address = Ipv4Addr::new(10, 77, 0, 10 + number);
    let namespace = Namespace::new();
    namespace.add_tap("tap0");
    let mut vm = namespace.empty_vm();
    let body = json!({
        "snapshot_path": snapshot.state(),
        "mem_file_path": snapshot.memory(),
        "resume_vm": false,
        "drive_overrides": [{
            "drive_id": "disk0",
            "path_on_host": disks.join(format!("{name}.overlay")),
            "overlay": true,
        }],
        "instance_data": image::told(address, &name),
    });
    done(&mut vm.client, "PUT /snapshot/load", body.to_string());
    Ok(Clone {
        name,
        address,
        namespace,
        vm,
    })
}

/// What is known of a clone when it has come up: its page, when that came, and when its guest had adapted.
type Woken = (Page, Duration, Option<Duration>);

fn wake(clones: &mut [Clone]) -> Result<Vec<Woken>> {
    let together = Barrier::new(clones.len());
    thread::scope(|scope| {
        let threads: Vec<_> = clones
            .iter_mut()
            .map(|clone| scope.spawn(|| wake_one(clone, &together)))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| anyhow!("a clone gave no answer"))?
            })
            .collect()
    })
}

fn wake_one(clone: &mut Clone, together: &Barrier) -> Result<Woken> {
    let Clone {
        vm,
        namespace,
        address,
        ..
    } = clone;
    together.wait();
    let begun = Instant::now();
    vm.client.resume().context("could not let a clone run")?;
    let (client, console) = (&mut vm.client, &vm.console);
    let (answered, adapted) = thread::scope(|scope| -> Result<_> {
        let page = scope.spawn(|| {
            Page::of(console, namespace, *address, LIMIT);
            begun.elapsed()
        });
        // The image has an agent, and its word is what counts.
        let waited = client.wait_for(&agent_is_ready(LIMIT));
        let adapted = waited.context("could not wait for a clone")?.adapted;
        let adapted = adapted.then(|| begun.elapsed());
        let answered = page.join().map_err(|_| anyhow!("no answer"))?;
        Ok((answered, adapted))
    })?;
    // Asked once more: the first answer may have come from before the last hook.
    let page = Page::of(&vm.console, namespace, *address, LIMIT);
    Ok((page, answered, adapted))
}

/// Asks a clone that has come up for the rest.
fn ask(mut clone: Clone, (page, answered, adapted): Woken) -> Result<Machine> {
    let vm = &mut clone.vm;
    let body = Download::begin(
        clone.namespace.connect_to(clone.address, image::PORT),
        "/numbers",
    )?
    .finish()?;
    let old = format!("ss -Htn state established src {GUEST} | wc -l");
    // The kernel finds out at its next attempt to send: the client is nobody's in this network.
    let mut patience = Patience::new(LIMIT);
    let left_open = loop {
        let count: u32 = vm.shell(&old).trim().parse()?;
        if count == 0 || patience.is_over() {
            break count;
        }
        thread::sleep(Duration::from_millis(500));
    };
    Ok(Machine {
        host_id: host_id(vm)?,
        records: records::on_disk(vm),
        told: clone.name.clone(),
        name: clone.name.replace('-', " "),
        page,
        times: Some((answered, adapted)),
        left_open,
        downloaded: whole(&body),
    })
}

/// Whether a download is what the file is.
fn whole(body: &[u8]) -> bool {
    let mut rest = body;
    for number in 1..=NUMBERS {
        let line = format!("{number}\n");
        match rest.strip_prefix(line.as_bytes()) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    rest.is_empty()
}
