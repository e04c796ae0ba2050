//! State files that are not as they were written.

use std::fs;
use std::path::Path;

use crc64fast_nvme::Digest;
use serde_json::json;
use vmgenie_snapshot::{FORMAT, HEADER_LENGTH, SnapshotId, StateReader, open_snapshot};
use vmgenie_tests::http::{call, ok, refused};
use vmgenie_tests::{Snapshot, Vm, tiny};

/// Where the header keeps the checksum of the whole file.
const CHECKSUM: std::ops::Range<usize> = 48..56;
/// Where the header keeps the format.
const FORMAT_FIELD: std::ops::Range<usize> = 8..10;

/// Gives a changed state file the checksum that its content has.
fn seal(bytes: &mut [u8]) {
    bytes[CHECKSUM].fill(0);
    let mut digest = Digest::new();
    digest.write(bytes);
    bytes[CHECKSUM].copy_from_slice(&digest.sum64().to_le_bytes());
}

fn load_body(state: &Path, snapshot: &Snapshot) -> String {
    json!({"snapshot_path": state, "mem_file_path": snapshot.memory()}).to_string()
}

fn two_vcpus() -> Snapshot {
    let boot = vmgenie_tests::vm::Boot::new(vmgenie_tests::Guest::Tiny).cpus(2);
    tiny::boot_with(boot.cmdline("touch=1")).snapshot()
}

#[test]
fn every_single_byte_flip_of_a_real_state_file_is_refused() {
    let snapshot = two_vcpus();
    let whole = fs::read(snapshot.state()).unwrap();
    StateReader::from_bytes(whole.clone()).expect("the file as it was written");
    let mut tried = 0_usize;
    for at in 0..whole.len() {
        for flip in [0x01, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            let result = StateReader::from_bytes(bytes);
            assert!(
                result.is_err(),
                "byte {at} flipped by {flip:#x} goes unnoticed"
            );
            tried += 1;
        }
    }
    println!("{tried} flips of {} bytes", whole.len());
    assert_eq!(tried, 2 * whole.len());
}

#[test]
fn every_truncation_of_a_real_state_file_is_refused() {
    let snapshot = two_vcpus();
    let whole = fs::read(snapshot.state()).unwrap();
    for length in 0..whole.len() {
        let result = StateReader::from_bytes(whole[..length].to_vec());
        assert!(result.is_err(), "{length} of {} bytes", whole.len());
    }
    let longer = [whole.as_slice(), &[0]].concat();
    assert!(StateReader::from_bytes(longer).is_err(), "a byte too many");
    println!("{} truncations", whole.len());
}

#[test]
fn a_vmm_lives_through_damaged_and_cut_state_files() {
    let snapshot = two_vcpus();
    let whole = fs::read(snapshot.state()).unwrap();
    let damaged = snapshot.dir().join("damaged");
    let mut vm = Vm::empty();
    let step = whole.len() / 20;
    for at in (0..HEADER_LENGTH)
        .step_by(4)
        .chain((HEADER_LENGTH..whole.len()).step_by(step))
    {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x80;
        fs::write(&damaged, bytes).unwrap();
        let message = refused(
            &mut vm.client,
            "PUT /snapshot/load",
            load_body(&damaged, &snapshot),
        );
        assert!(message.contains("damaged"), "it names the file: {message}");
        fs::write(&damaged, &whole[..at]).unwrap();
        refused(
            &mut vm.client,
            "PUT /snapshot/load",
            load_body(&damaged, &snapshot),
        );
    }
    assert_eq!(ok(&mut vm.client, "GET /", "")["state"], "Not started");
    let body = load_body(&snapshot.state(), &snapshot);
    assert_eq!(call(&mut vm.client, "PUT /snapshot/load", body).0, 204);
}

#[test]
fn a_state_file_of_a_newer_format_is_refused_with_what_to_do() {
    let snapshot = two_vcpus();
    let mut bytes = fs::read(snapshot.state()).unwrap();
    bytes[FORMAT_FIELD].copy_from_slice(&(FORMAT + 1).to_le_bytes());
    seal(&mut bytes);
    let newer = snapshot.dir().join("newer");
    fs::write(&newer, bytes).unwrap();
    let mut vm = Vm::empty();
    let message = refused(
        &mut vm.client,
        "PUT /snapshot/load",
        load_body(&newer, &snapshot),
    );
    assert!(message.contains("made by a newer vmgenie"), "{message}");
    assert!(
        message.contains("restore it with that vmgenie or a later one"),
        "{message}"
    );
}

/// A state file whose checksum is right may still hold anything: whoever can write the file can compute the checksum.
#[test]
fn a_forged_state_file_with_the_right_checksum_ends_no_vmm() {
    let snapshot = two_vcpus();
    let whole = fs::read(snapshot.state()).unwrap();
    let forged = snapshot.dir().join("forged");
    let mut vm = Vm::empty();
    let mut outcomes = [0, 0];
    // A prime, so that every part and every field has its turn.
    let step = (whole.len() / 150).max(1) | 1;
    for (round, at) in (HEADER_LENGTH..whole.len()).step_by(step).enumerate() {
        let mut bytes = whole.clone();
        match round % 3 {
            0 => bytes[at] ^= 0xff,
            1 => bytes[at] = bytes[at].wrapping_add(1),
            _ => {
                let end = (at + 8).min(bytes.len());
                bytes[at..end].fill(0xff);
            }
        }
        seal(&mut bytes);
        fs::write(&forged, &bytes).unwrap();
        let (status, json) = call(
            &mut vm.client,
            "PUT /snapshot/load",
            load_body(&forged, &snapshot),
        );
        outcomes[usize::from(status == 204)] += 1;
        match status {
            // What was changed may be a register of the guest: that is the guest's matter. It is saved again, not run: what a
            // guest does with it is not the question here.
            204 => {
                assert_eq!(ok(&mut vm.client, "GET /", "")["state"], "Paused");
                ok(&mut vm.client, "PUT /generation", "");
                vm = Vm::empty();
            }
            400 => assert_eq!(
                ok(&mut vm.client, "GET /", "")["state"],
                "Not started",
                "{json}"
            ),
            other => panic!("byte {at}: {other} {json}"),
        }
    }
    println!("{} refused, {} restored", outcomes[0], outcomes[1]);
    assert!(outcomes[0] > 0, "some forgeries must be seen");
}

#[test]
fn a_forged_length_or_identity_in_the_header_is_refused() {
    let snapshot = two_vcpus();
    let whole = fs::read(snapshot.state()).unwrap();
    let mut vm = Vm::empty();
    let forged = snapshot.dir().join("forged");
    for field in [10..12, 12..16, 16..24, 24..32, 32..48] {
        for value in [0x00, 0x7f, 0xff] {
            let mut bytes = whole.clone();
            bytes[field.clone()].fill(value);
            if bytes == whole {
                continue;
            }
            seal(&mut bytes);
            fs::write(&forged, bytes).unwrap();
            let body = load_body(&forged, &snapshot);
            refused(&mut vm.client, "PUT /snapshot/load", body);
        }
    }
    assert_eq!(ok(&mut vm.client, "GET /", "")["state"], "Not started");
    let loaded = open_snapshot(&snapshot.state(), &snapshot.memory()).unwrap();
    assert_eq!(whole[32..48], *SnapshotId::as_bytes(&loaded.id));
}
