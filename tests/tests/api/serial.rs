//! PUT `/serial`: the guest's serial console in a file.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use vm_agent::patience::Patience;
use vmgenie_tests::http::{done, ok, refused_with};
use vmgenie_tests::{Guest, Vm, tiny};

fn serial(path: &Path) -> String {
    json!({ "serial_out_path": path }).to_string()
}

/// Configures the tiny guest, its console in `path`.
fn configured(path: &Path, words: &str) -> Vm {
    let mut vm = Vm::empty();
    let source = json!({ "kernel_image_path": Guest::Tiny.kernel(), "boot_args": words });
    let size = json!({ "vcpu_count": 1, "mem_size_mib": 32 });
    done(&mut vm.client, "PUT /boot-source", source.to_string());
    done(&mut vm.client, "PUT /machine-config", size.to_string());
    done(&mut vm.client, "PUT /serial", serial(path));
    vm
}

fn start(vm: &mut Vm) {
    let start = json!({ "action_type": "InstanceStart" });
    done(&mut vm.client, "PUT /actions", start.to_string());
}

/// Types on the console of the machine, as one who has attached to it, until as many bytes have come back.
fn type_to(vm: &Vm, text: &str) {
    let mut console = Command::new(vmgenie_tests::guest::vmgenie())
        .arg("console")
        .arg(vm.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = console.stdin.take().unwrap();
    let typed = text.to_owned();
    let typing = std::thread::spawn(move || input.write_all(typed.as_bytes()));
    let mut output = console.stdout.take().unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(text.as_bytes()) {
        let mut buffer = [0; 4096];
        let len = output.read(&mut buffer).unwrap();
        assert!(len > 0, "the console has ended");
        seen.extend_from_slice(&buffer[..len]);
    }
    typing.join().unwrap().unwrap();
    // It would read on until the machine ends.
    console.kill().unwrap();
    console.wait().unwrap();
}

fn wait_for(path: &Path, text: &str) {
    let mut patience = Patience::new(tiny::LIMIT);
    loop {
        let said = fs::read(path).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).into_owned();
        if said.contains(text) {
            return;
        }
        assert!(!patience.is_over(), "no {text:?} in {said:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn se_01_a_file_is_written_from_its_front_and_standard_output_has_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("serial.log");
    fs::write(&file, "0123456789abcdef").unwrap();
    let mut vm = configured(&file, "echo");
    assert_eq!(fs::read(&file).unwrap(), b"0123456789abcdef");
    start(&mut vm);
    wait_for(&file, "ready");
    // What is on standard input is not the guest's, and what is typed on the console is.
    vm.console.send("in");
    type_to(&vm, "typed");
    wait_for(&file, "typed");
    let said = fs::read_to_string(&file).unwrap();
    assert_eq!(said, "ready\ntypedbcdef");
    assert_eq!(vm.console.text(), "");
}

#[test]
fn se_02_a_pipe_need_not_have_a_reader() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    let name = CString::new(pipe.as_os_str().as_bytes()).unwrap();
    // SAFETY: the name is a C string that lives for the call.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    // As small as a pipe can be, for as long as somebody has it open.
    let small = File::options().read(true).write(true).open(&pipe).unwrap();
    // SAFETY: it takes no pointer.
    let size = unsafe { libc::fcntl(small.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    assert_eq!(size, 4096);
    let mut vm = configured(&pipe, "echo");
    start(&mut vm);
    drop(small);
    // More than the pipe and what waits beside it have room for.
    type_to(&vm, &"x".repeat(70 << 10));
    assert_eq!(ok(&mut vm.client, "GET /", "")["state"], "Running");
    let mut reader = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&pipe)
        .unwrap();
    let mut said = [0; 8];
    reader.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"ready\nxx");
}

#[test]
fn se_04_a_restored_machine_s_console_goes_to_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("serial.log");
    let mut vm = tiny::boot("echo");
    let snapshot = vm.snapshot();
    drop(vm);
    let mut clone = Vm::empty();
    done(&mut clone.client, "PUT /serial", serial(&file));
    let load = json!({
        "snapshot_path": snapshot.state(), "mem_file_path": snapshot.memory(), "resume_vm": true,
    });
    done(&mut clone.client, "PUT /snapshot/load", load.to_string());
    type_to(&clone, "typed");
    wait_for(&file, "typed");
    assert_eq!(clone.console.text(), "");
}

#[test]
fn se_05_what_cannot_be_opened_is_told_at_the_start_and_another_path_starts() {
    let dir = tempfile::tempdir().unwrap();
    let mut vm = configured(dir.path(), "");
    let body = json!({ "action_type": "InstanceStart" }).to_string();
    refused_with(&mut vm.client, "PUT /actions", body, "serial console");
    let file = dir.path().join("serial.log");
    done(&mut vm.client, "PUT /serial", serial(&file));
    start(&mut vm);
    wait_for(&file, "ready");
}
