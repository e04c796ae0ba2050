//! What the demo does.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use vm_agent::patience::stretched;
use vmgenie_api::wire::SnapshotLoad;
use vmgenie_devices::vmgenid::GenerationId;
use vmgenie_tests::evidence::{self, Noticed};
use vmgenie_tests::vm::{Boot, agent_is_ready};
use vmgenie_tests::{Guest, Snapshot, Vm};

use crate::steps::Steps;
use crate::verdict::{Facts, Machine, Times};

const CPUS: u8 = 2;
const CLONES: usize = 3;
/// How long a guest may take to notice, on a host that may be emulated and busy.
const NOTICE: Duration = Duration::from_secs(60);
/// How long the machines get to notice more than they should.
const NOTHING_MORE: Duration = Duration::from_secs(2);

/// Shows in the trace what the guest's driver reads when it starts: it hands the 16 bytes to this
/// function. A `trace_event=`, an empty one too, gives the trace its full size from the start;
/// without it the trace has one page for each CPU and forgets what happened first.
const BOOT_PROBE: &str = "trace_event= \
    kprobe_event=p:boot,add_device_randomness,lo=+0(%di):x64,hi=+8(%di):x64,len=%si:u64";
/// What that probe saw.
const BOOT_IDS: &str = "grep ' boot: ' /sys/kernel/tracing/trace | grep 'len=16$' || true";
/// The lines in the kernel log that tell of a new generation.
const LOG: &str = "dmesg | grep 'crng reseeded due to virtual machine fork' || true";

/// Loads the driver, and starts an agent, which speaks for the guest, a program that is told of each generation, and one
/// that draws random numbers with AWS-LC, once before the snapshot and once when it is told to.
const PROGRAMS: [&str; 5] = [
    "insmod /modules/sysgenid.ko",
    "insmod /modules/sysgenid_vmgenid.ko",
    "mkdir -p /agent.d && sysgenctl agent --hooks /agent.d > /dev/null 2>&1 &",
    "sysgenctl watch > /dev/null 2>&1 &",
    "sysgenid-aws-lc draw --after /tmp/restored > /tmp/drawn &",
];
/// That it has drawn so many times.
const DRAWN: &str = "i=0; while [ $(grep -c bytes /tmp/drawn) -lt N ] && [ $i -lt 600 ]; \
    do sleep 0.1; i=$((i+1)); done; tail -n 1 /tmp/drawn";

/// Boots, snapshots, clones, and gathers what can be known.
pub(crate) fn show(steps: &Steps, guest: Guest, description: &str) -> Result<Facts> {
    let begun = Instant::now();
    let booting = format!(
        "booting {description} in vmgenie ({CPUS} vCPUs, {})",
        guest.memory()
    );
    let boot = Boot::new(guest).cpus(CPUS).cmdline(BOOT_PROBE);
    let mut original = steps.step(&booting, || boot.ready());
    let boot = begun.elapsed();
    let kernel = original.shell("uname -r").trim().to_owned();
    let boot_id = boot_id(&mut original)?;
    let first_id = host_id(&mut original)?;
    steps.note(&format!(
        "the guest is up: uname -r says {kernel}, its generation ID is {first_id}"
    ));

    steps.step("loading the guest driver, and starting programs", || {
        for command in PROGRAMS {
            original.shell(command);
        }
        original.shell(&DRAWN.replace('N', "1"));
    });
    // Else nobody would be there who could say that a clone has adapted.
    let waited = original.client.wait_for(&agent_is_ready(NOTICE));
    let waited = waited.context("could not wait for the guest's agent")?;
    if !waited.adapted {
        bail!("the guest's agent does not answer: {:?}", waited.missing);
    }

    let begun = Instant::now();
    let snapshot = steps.step("taking a snapshot of it", || snapshot_of(&mut original))?;
    let snapshot_time = begun.elapsed();
    original
        .client
        .resume()
        .context("could not resume the original")?;
    steps.note("the original goes on");

    let starting = format!("starting {CLONES} empty VMMs");
    let mut vms: Vec<Vm> = steps.step(&starting, || (0..CLONES).map(|_| Vm::empty()).collect());
    let waking =
        format!("restoring the snapshot in all {CLONES} at once, until each guest has noticed");
    let times = steps.step(&waking, || wake(&mut vms, &snapshot))?;
    let asking = "waiting whether anybody notices more than that, and asking all guests";
    let (original, clones) = steps.step(asking, || -> Result<_> {
        thread::sleep(NOTHING_MORE);
        let clones: Result<Vec<_>> = (1..)
            .zip(vms.iter_mut().zip(times))
            .map(|(number, (vm, times))| ask(vm, format!("clone {number}"), None, Some(times)))
            .collect();
        let original = ask(&mut original, "original".to_owned(), boot_id, None)?;
        Ok((original, clones?))
    })?;
    Ok(Facts {
        kernel,
        boot,
        snapshot: snapshot_time,
        first_id,
        original,
        clones,
    })
}

fn snapshot_of(vm: &mut Vm) -> Result<Snapshot> {
    let snapshot = Snapshot::new();
    vm.client.pause().context("could not pause the guest")?;
    vm.client
        .create_snapshot(&snapshot.request())
        .context("could not take the snapshot")?;
    Ok(snapshot)
}

/// Restores the snapshot in all VMMs at the same time and waits until their guests have noticed.
fn wake(vms: &mut [Vm], snapshot: &Snapshot) -> Result<Vec<Times>> {
    let together = Barrier::new(vms.len());
    thread::scope(|scope| {
        let threads: Vec<_> = vms
            .iter_mut()
            .map(|vm| scope.spawn(|| wake_one(vm, snapshot, &together)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a restore panicked"))?)
            .collect()
    })
}

fn wake_one(vm: &mut Vm, snapshot: &Snapshot, together: &Barrier) -> Result<Times> {
    let notice = stretched(NOTICE);
    let request = SnapshotLoad {
        resume_vm: true,
        ..SnapshotLoad::of(snapshot.state(), snapshot.memory())
    };
    together.wait();
    let begun = Instant::now();
    vm.client
        .load_snapshot(&request)
        .context("could not restore the snapshot")?;
    let restore = begun.elapsed();
    let resumed = Instant::now();
    let waited = vm.client.wait_for(&agent_is_ready(NOTICE));
    let driver = waited.context("could not wait for the guest")?.driver;
    let noticed = loop {
        let seen = Noticed::of(vm);
        if seen.reseeds > 0 && !seen.ids.is_empty() {
            break Some(resumed.elapsed());
        }
        // Told by the verdict.
        if resumed.elapsed() > notice {
            break None;
        }
        thread::sleep(Duration::from_millis(20));
    };
    Ok(Times {
        restore,
        noticed,
        reseeded: driver.reseeded_us.map(Duration::from_micros),
        adapted: driver.adapted_us.map(Duration::from_micros),
    })
}

/// Asks the host and the guest.
fn ask(
    vm: &mut Vm,
    name: String,
    boot_id: Option<GenerationId>,
    times: Option<Times>,
) -> Result<Machine> {
    let new_ids: Result<_> = Noticed::of(vm).ids.iter().map(|hex| id(hex)).collect();
    vm.shell("touch /tmp/restored");
    let drawn = vm.shell(&DRAWN.replace('N', "2"));
    let counter = vm
        .client
        .generation()
        .context("could not ask for the counter")?;
    Ok(Machine {
        counter: counter.counter,
        drawn: drawn
            .trim()
            .rsplit(' ')
            .next()
            .unwrap_or_default()
            .to_owned(),
        name,
        host_id: host_id(vm)?,
        boot_id,
        new_ids: new_ids?,
        log: vm.shell(LOG).lines().map(str::to_owned).collect(),
        times,
    })
}

fn host_id(vm: &mut Vm) -> Result<GenerationId> {
    let info = vm.client.generation().context("could not ask for the ID")?;
    id(&info.raw)
}

/// What the guest's driver read when it started; `None` if nothing of that size was seen.
fn boot_id(vm: &mut Vm) -> Result<Option<GenerationId>> {
    let seen = vm.shell(BOOT_IDS);
    let last = seen.lines().filter_map(evidence::id_in).next_back();
    last.map(|hex| id(&hex)).transpose()
}

/// The ID of 32 hexadecimal digits, in the order of guest memory.
fn id(hex: &str) -> Result<GenerationId> {
    match u128::from_str_radix(hex, 16) {
        Ok(number) if hex.len() == 32 && !hex.starts_with('+') => {
            Ok(GenerationId::from_bytes(number.to_be_bytes()))
        }
        _ => bail!("{hex:?} is no generation ID"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_in_the_order_of_guest_memory() {
        let read = id("00112233445566778899aabbccddee0f").unwrap();
        assert_eq!(read.to_guid(), "33221100-5544-7766-8899-aabbccddee0f");
        assert!(id("0011").is_err());
        assert!(id("+0112233445566778899aabbccddee0f").is_err());
    }
}
