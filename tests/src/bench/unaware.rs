//! `unaware`: what programs of a clone do before its kernel has dealt with the generation: of a fork, of a plain snapshot, and on QEMU.
//!
//! `sysgenid-test unaware` loads, draws and counts in the guest. The processor has no random numbers, so that
//! clones have nothing else that differs.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vmgenie_api::wire::{CooperativeCreate, SnapshotCreate, SnapshotHow};
use vmgenie_tests::qemu::Frozen;
use vmgenie_tests::shell::{load_modules, start, told};
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Qemu, Shell, Snapshot, Vm};

use crate::patience::patiently;
use crate::report::{Report, table};

/// One for the thread that loads, one for that which draws.
const CPUS: u8 = 2;
const STARVED: &str = "clearcpuid=rdrand,rdseed";

/// What one clone has shown.
#[derive(Debug, Default, PartialEq, Eq)]
struct Shown {
    /// Loads of the mapped counter after the resume that were of the snapshot's generation.
    old: u64,
    /// Loads after the resume of anything but the generation that the kernel was reseeded in.
    before: u64,
    /// The first draws that began after the resume.
    draws: Vec<String>,
}

/// Whose snapshot it is.
#[derive(Debug)]
enum Saved {
    Vmgenie(Snapshot),
    Qemu(Frozen),
}

/// Takes the snapshot of a guest in which the program runs.
type Take = fn() -> Result<Saved>;

struct Case {
    name: &'static str,
    clones: Vec<Shown>,
    spoilt: usize,
}

/// Has `runs` clones of each way draw.
pub(crate) fn run(runs: usize) -> Result<Report> {
    for variable in ["VMGENIE_GUEST_DIR", "VMGENIE_QEMU"] {
        ensure!(
            std::env::var_os(variable).is_some(),
            "{variable} is not set: run `cargo xtask bench unaware`"
        );
    }
    let ways: [(_, Take); 3] = [
        ("vmgenie, fork", fork),
        ("vmgenie, plain snapshot", plain),
        ("QEMU", qemu),
    ];
    let mut cases = Vec::new();
    for (name, take) in ways {
        let (saved, _) = patiently("the guest that is snapshotted", take)?;
        let mut case = Case {
            name,
            clones: Vec::new(),
            spoilt: 0,
        };
        for _ in 0..runs {
            let (shown, spoilt) = patiently("a clone", || saved.clone_shows())?;
            case.clones.push(shown);
            case.spoilt += spoilt;
        }
        cases.push(case);
    }
    Ok(report(&cases))
}

fn begin(guest: &mut impl Shell) {
    load_modules(guest, "");
    guest.shell("test -e /dev/vmclock0 || insmod /modules/ptp_vmclock.ko");
    // Only a generator that has been seeded can be reseeded.
    guest.shell("dd if=/dev/random of=/dev/null bs=1 count=1 2> /dev/null");
    start(guest, "sysgenid-test unaware");
}

fn boot() -> Vm {
    let mut vm = Boot::new(Guest::Small).cpus(CPUS).cmdline(STARVED).ready();
    begin(&mut vm);
    vm
}

fn fork() -> Result<Saved> {
    let mut vm = boot();
    let place = Snapshot::new();
    let made = vm.client.create_snapshot(&SnapshotCreate {
        cooperative: Some(CooperativeCreate::default()),
        ..place.request()
    })?;
    let how = made.cooperation.context("no word of the guest")?.how;
    ensure!(
        how == SnapshotHow::KernelOnly,
        "the snapshot was taken {how:?}"
    );
    Ok(Saved::Vmgenie(place))
}

fn plain() -> Result<Saved> {
    Ok(Saved::Vmgenie(boot().snapshot()))
}

fn qemu() -> Result<Saved> {
    let mut qemu = Qemu::boot_with(Guest::Small, CPUS, STARVED);
    begin(&mut qemu);
    Ok(Saved::Qemu(qemu.snapshot()))
}

impl Saved {
    fn clone_shows(&self) -> Result<Shown> {
        match self {
            Self::Vmgenie(snapshot) => shown(&told(&mut Vm::restore(snapshot), "done")),
            Self::Qemu(frozen) => shown(&told(&mut Qemu::restore(frozen), "done")),
        }
    }
}

/// Reads `loads old LOADS before LOADS` and lines `drawn HEX`.
fn shown(text: &str) -> Result<Shown> {
    let mut shown = Shown::default();
    let mut loads = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["drawn", bytes] => shown.draws.push(bytes.to_owned()),
            ["loads", "old", old, "before", before] => {
                loads = Some((old.parse()?, before.parse()?));
            }
            _ => {}
        }
    }
    (shown.old, shown.before) = loads.with_context(|| format!("no loads in {text:?}"))?;
    ensure!(!shown.draws.is_empty(), "no draws in {text:?}");
    Ok(shown)
}

impl Case {
    fn drawn(&self) -> usize {
        self.clones.iter().map(|clone| clone.draws.len()).sum()
    }

    /// How many draws another clone has made, too.
    fn equal(&self) -> usize {
        let mut clones = BTreeMap::<&str, Vec<usize>>::new();
        for (number, clone) in self.clones.iter().enumerate() {
            for draw in &clone.draws {
                clones.entry(draw).or_default().push(number);
            }
        }
        let shared = clones
            .values()
            .filter(|all| all.iter().any(|one| Some(one) != all.first()));
        shared.map(Vec::len).sum()
    }

    fn range(&self, number: impl Fn(&Shown) -> u64) -> String {
        let all = || self.clones.iter().map(&number);
        match (all().min(), all().max()) {
            (Some(min), Some(max)) if min != max => format!("{min} to {max}"),
            (Some(min), _) => min.to_string(),
            _ => String::new(),
        }
    }

    fn json(&self) -> Value {
        let all = |number: fn(&Shown) -> u64| self.clones.iter().map(number).collect::<Vec<_>>();
        json!({
            "way": self.name,
            "old_loads": all(|clone| clone.old),
            "loads_before_reseeding": all(|clone| clone.before),
            "draws": self.drawn(),
            "equal_draws": self.equal(),
            "repeated": self.spoilt,
        })
    }
}

fn report(cases: &[Case]) -> Report {
    let mut rows = table(&[
        "of each clone",
        "old loads",
        "loads before the reseeding",
        "equal draws, of all",
    ]);
    for case in cases {
        rows.add_row([
            case.name.to_owned(),
            case.range(|clone| clone.old),
            case.range(|clone| clone.before),
            format!("{} of {}", case.equal(), case.drawn()),
        ]);
    }
    let notes = vec![
        "each load is a pass of a program's loop, of some ten instructions, after the resume"
            .to_owned(),
        "draws are the first of each clone that begin after its resume".to_owned(),
    ];
    Report {
        tables: vec![rows],
        notes,
        json: json!({
            "benchmark": "unaware",
            "vcpus": CPUS,
            "cases": cases.iter().map(Case::json).collect::<Vec<_>>(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clone(draws: &[&str]) -> Shown {
        let lines: String = draws.iter().map(|draw| format!("drawn {draw}\n")).collect();
        shown(&format!(
            "ready unaware\n{lines}loads old 3 before 40\ndone"
        ))
        .unwrap()
    }

    fn case(clones: Vec<Shown>) -> Case {
        Case {
            name: "",
            clones,
            spoilt: 0,
        }
    }

    #[test]
    fn what_a_clone_tells_is_read() {
        let one = clone(&["00", "01"]);
        assert_eq!((one.old, one.before, one.draws.len()), (3, 40, 2));
        assert!(shown("drawn 00\ndone").is_err());
        assert!(shown("loads old 1 before 2\ndone").is_err());
        assert!(shown("drawn 00\nloads old x before 2").is_err());
    }

    #[test]
    fn draws_are_equal_that_another_clone_has_made() {
        assert_eq!(
            case(vec![clone(&["a", "b"]), clone(&["c", "d"])]).equal(),
            0
        );
        // One that a clone repeats is its own.
        assert_eq!(
            case(vec![clone(&["a", "a"]), clone(&["c", "d"])]).equal(),
            0
        );
        let three = [clone(&["a", "b"]), clone(&["b", "a"]), clone(&["a", "e"])];
        assert_eq!(case(three.into()).equal(), 5);
    }

    #[test]
    fn a_range_has_both_ends() {
        let mut clones = [clone(&["a"]), clone(&["b"])];
        clones[1].old = 9;
        assert_eq!(case(clones.into()).range(|clone| clone.old), "3 to 9");
        let clones = [clone(&["a"])];
        assert_eq!(case(clones.into()).range(|clone| clone.old), "3");
    }
}
