use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Command, ExitStatus, Output};

use super::*;

/// Runs one of the ignored tests of this file in a process of its own.
fn alone(test: &str) -> Output {
    Command::new("timeout")
        .arg("60")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .arg(format!("fatal::tests::{test}"))
        .output()
        .unwrap()
}

fn signal_of(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

fn log_in(dir: &tempfile::TempDir, json: bool) -> File {
    let path = dir.path().join("log");
    let file = File::create(path).unwrap();
    set_log(Some(file.as_fd()), json);
    file
}

#[test]
#[ignore = "ends the process; run by another test"]
fn a_process_that_is_sent_a_fatal_signal() {
    install();
    let dir = tempfile::tempdir().unwrap();
    let _log = log_in(&dir, true);
    println!("log {}", dir.path().display());
    std::mem::forget(dir);
    let mut kill = Command::new("sh");
    kill.arg("-c")
        .arg(format!("kill -SEGV {}", std::process::id()));
    kill.status().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(5));
    println!("it lives");
}

#[test]
fn the_first_fatal_signal_from_outside_ends_the_process_with_a_line_in_the_log() {
    let output = alone("a_process_that_is_sent_a_fatal_signal");
    assert_eq!(signal_of(output.status), Some(libc::SIGSEGV), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("error: ended by SIGSEGV, which the process"),
        "{told}"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("it lives"), "{text}");
    let dir = text
        .lines()
        .find_map(|line| line.split_once("log "))
        .unwrap()
        .1;
    let log = std::fs::read(std::path::Path::new(dir).join("log")).unwrap();
    let line: serde_json::Value = serde_json::from_slice(&log).unwrap();
    assert_eq!(line["level"], "ERROR");
    assert!(
        line["message"]
            .as_str()
            .unwrap()
            .starts_with("ended by SIGSEGV"),
        "{line}"
    );
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
#[ignore = "ends the process; run by another test"]
fn a_process_whose_memory_file_is_truncated() {
    install();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(32 << 20).unwrap();
    let memory =
        vmgenie_machine::memory::Memory::from_file(32 << 20, file.reopen().unwrap()).unwrap();
    file.as_file().set_len(4096).unwrap();
    println!("{}", file.path().display());
    let mut byte = [0];
    vm_memory::Bytes::read_slice(memory.map(), &mut byte, vm_memory::GuestAddress(8192)).unwrap();
    println!("it lives");
}

#[test]
fn a_truncated_memory_file_ends_the_process_with_1_and_is_named() {
    let output = alone("a_process_whose_memory_file_is_truncated");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        told.contains("was truncated to 4096 bytes of 33554432"),
        "{told}"
    );
    let path = told.split('"').nth(1).unwrap();
    assert!(text.contains(path) && !text.contains("it lives"), "{text}");
    std::fs::remove_file(path).unwrap();
}

#[test]
#[ignore = "ends the process; run by another test"]
fn a_process_with_a_fault_of_its_own() {
    install();
    // SAFETY: on purpose it is none.
    unsafe { ptr::without_provenance::<u8>(0x1234_0000).read_volatile() };
}

#[test]
fn a_fault_of_our_own_has_its_address_told_and_keeps_its_signal() {
    let output = alone("a_process_with_a_fault_of_its_own");
    assert_eq!(signal_of(output.status), Some(libc::SIGSEGV), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("error: SIGSEGV at address 0x12340000: this is a fault"),
        "{told}"
    );
}

fn time(seconds: i64, nanoseconds: i64) -> String {
    let mut text = Text::<64>::new();
    text.push_time(seconds, nanoseconds);
    text.text().to_owned()
}

#[test]
fn a_number_is_told_in_its_base() {
    let mut text = Text::<64>::new();
    text.push_number(u64::MAX, 10, 1);
    text.push_number(0, 10, 1);
    text.push_number(0xbeef, 16, 6);
    assert_eq!(text.text(), "18446744073709551615000beef");
}

#[test]
fn the_time_is_told_as_the_log_tells_it() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00.000000Z"),
        (951_782_400, "2000-02-29T00:00:00.000000Z"),
        (1_795_824_000, "2026-11-28T00:00:00.000000Z"),
        (4_107_542_399, "2100-02-28T23:59:59.000000Z"),
    ] {
        assert_eq!(time(seconds, 0), text);
    }
    assert_eq!(time(1, 123_456_789), "1970-01-01T00:00:01.123456Z");
}

#[test]
fn a_text_is_cut_where_it_is_too_long_and_is_no_trouble_to_json() {
    let mut line = Text::<7>::new();
    write!(line, "a\"\\{}", "\u{e4}".repeat(20)).unwrap();
    assert_eq!(line.text(), "a\"\\\u{e4}\u{e4}");
    line.make_plain();
    assert_eq!(line.text(), "a??\u{e4}\u{e4}");
}
