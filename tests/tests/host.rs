//! The KVM that the other tests run on, and what it says of vmgenie.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use kvm_ioctls::Kvm;
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Vm, tiny};

#[test]
fn the_kvm_of_this_host_answers_api_version_12() {
    assert_eq!(Kvm::new().unwrap().get_api_version(), 12);
}

/// What the host's kernel has logged since the file was opened; the file is at the end of the log then.
fn logged(log: &mut File) -> String {
    let mut all = String::new();
    let mut line = vec![0; 8192];
    loop {
        match log.read(&mut line) {
            Ok(len) => all += &String::from_utf8_lossy(&line[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return all,
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {
                panic!("the log has lost lines meanwhile")
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// A host with a thousand clones would have as many lines.
#[test]
fn kvm_does_not_complain_in_the_log_of_the_host_of_what_a_restore_writes() {
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .unwrap();
    let mut vm = Boot::new(Guest::Tiny).start();
    vm.console.wait_for("ready\n", tiny::LIMIT);
    let snapshot = vm.snapshot();
    log.seek(SeekFrom::End(0)).unwrap();
    let _clone = Vm::restore(&snapshot);
    let logged = logged(&mut log);
    let complaints: Vec<&str> = logged
        .lines()
        .filter(|line| line.contains("WRMSR(0x1d9)"))
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}
