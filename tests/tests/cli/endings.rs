//! How a process ends, and what it leaves.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use vm_agent::patience::Patience;
use vmgenie_tests::process::signal;
use vmgenie_tests::tiny::{self, echo};
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Snapshot, Vm};

use crate::{fail, run, stderr, vmgenie};

/// SIGTERM to the end of the process.
const END_LIMIT: Duration = Duration::from_secs(10);

#[test]
fn sigterm_sigint_and_sighup_end_a_machine_and_remove_its_socket() {
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let mut running = tiny::boot("echo");
        let mut paused = tiny::boot("");
        paused.client.pause().unwrap();
        for vm in [&mut running, &mut paused, &mut Vm::empty()] {
            assert!(vm.socket().exists());
            signal(vm.pid(), number);
            assert_eq!(vm.wait_status(END_LIMIT).code(), Some(0), "signal {number}");
            assert!(!vm.socket().exists(), "signal {number}");
        }
    }
}

#[test]
fn a_triple_fault_ends_the_process_with_3_and_removes_its_socket() {
    let mut vm = tiny::boot("echo");
    vm.console.send("!");
    assert_eq!(vm.wait_status(tiny::LIMIT).code(), Some(3));
    assert!(!vm.socket().exists());
}

#[test]
fn a_triple_fault_is_told() {
    let kernel = Guest::Tiny.kernel();
    let arguments = [
        "run",
        "--kernel",
        kernel.to_str().unwrap(),
        "--cmdline",
        "crash",
        "--memory",
        "32M",
    ];
    let output = run(arguments);
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains("the microVM has crashed"), "{told}");
    assert!(told.contains("triple fault on vCPU 0"), "{told}");
    assert!(crate::stdout(&output).contains("ready"));
}

#[test]
fn a_clone_of_a_machine_that_will_crash_crashes_with_3_too() {
    let mut original = tiny::boot("echo");
    let snapshot = original.snapshot();
    let mut clone = Vm::restore(&snapshot);
    echo(&mut clone, "fine");
    clone.console.send("!");
    assert_eq!(clone.wait_status(tiny::LIMIT).code(), Some(3));
    original.client.resume().unwrap();
    echo(&mut original, "fine");
}

#[test]
fn a_kernel_that_is_missing_or_none_is_named_and_ends_with_1() {
    let place = Snapshot::new();
    let socket = place.dir().join("api.sock");
    let run = |kernel: &Path, more: &[&str], part: &str| {
        let fixed = [
            "run",
            "--api-sock",
            socket.to_str().unwrap(),
            "--kernel",
            kernel.to_str().unwrap(),
        ];
        let told = fail([&fixed[..], more].concat(), 1, part);
        assert!(!socket.exists(), "its socket is gone: {told}");
    };
    run(Path::new("/nowhere/vmlinux"), &[], "/nowhere/vmlinux");
    run(Path::new("/nowhere/vmlinux"), &[], "No such file");
    run(place.dir(), &[], "kernel");
    let rubbish = place.dir().join("rubbish");
    fs::write(&rubbish, vec![0x55; 5000]).unwrap();
    run(&rubbish, &[], "rubbish");
    let kernel = Guest::Tiny.kernel();
    run(&kernel, &["--initrd", "/nowhere/initrd"], "/nowhere/initrd");
    run(&kernel, &["--cmdline", "tab\there"], "command line");
    fs::File::create(&rubbish)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    run(
        &kernel,
        &["--memory", "32M", "--initrd", rubbish.to_str().unwrap()],
        "initrd",
    );
}

#[test]
fn a_socket_path_that_is_taken_or_impossible_is_told() {
    let vm = Vm::empty();
    let socket = vm.socket();
    fail(
        ["api", "--api-sock", socket.to_str().unwrap()],
        1,
        "another VMM listens on it",
    );
    let place = Snapshot::new();
    let file = place.dir().join("file");
    fs::write(&file, "precious").unwrap();
    fail(
        ["api", "--api-sock", file.to_str().unwrap()],
        1,
        "is not a socket",
    );
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    fail(
        ["api", "--api-sock", "/nowhere/api.sock"],
        1,
        "could not listen on /nowhere/api.sock",
    );
    let long = place.dir().join("x".repeat(200));
    fail(
        ["api", "--api-sock", long.to_str().unwrap()],
        1,
        "could not listen on",
    );
}

#[test]
fn the_socket_of_a_killed_vmm_is_taken_over() {
    let place = Snapshot::new();
    let socket = place.dir().join("api.sock");
    drop(UnixListener::bind(&socket).unwrap());
    let mut child = vmgenie(["api", "--api-sock", socket.to_str().unwrap()])
        .spawn()
        .unwrap();
    let mut client = vmgenie_api::client::Client::new(&socket).unwrap();
    let mut patience = Patience::new(END_LIMIT);
    let told = loop {
        match client.info() {
            Err(_) if !patience.is_over() => std::thread::sleep(Duration::from_millis(5)),
            told => break told,
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(told.unwrap().app_name, "vmgenie");
}

#[test]
fn a_machine_runs_without_an_api_and_with_closed_input() {
    let kernel = Guest::Tiny.kernel();
    let arguments = [
        "run",
        "--kernel",
        kernel.to_str().unwrap(),
        "--cmdline",
        "echo",
        "--memory",
        "32M",
    ];
    let mut child = vmgenie(arguments)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let early = child.try_wait().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(early.is_none(), "{early:?}");
}

#[test]
fn input_from_a_file_reaches_the_guest_whole_and_its_end_ends_nothing() {
    let place = Snapshot::new();
    let text = "0123456789abcdef".repeat(20);
    let (input, output) = (place.dir().join("input"), place.dir().join("output"));
    fs::write(&input, format!("{text}!")).unwrap();
    let kernel = Guest::Tiny.kernel();
    let arguments = [
        "run",
        "--kernel",
        kernel.to_str().unwrap(),
        "--cmdline",
        "echo",
        "--memory",
        "32M",
    ];
    let mut command = vmgenie(arguments);
    command.stdin(fs::File::open(&input).unwrap());
    command.stdout(fs::File::create(&output).unwrap());
    let mut child = command.spawn().unwrap();
    let mut patience = Patience::new(tiny::LIMIT);
    let status = loop {
        match child.try_wait().unwrap() {
            None if !patience.is_over() => std::thread::sleep(Duration::from_millis(10)),
            status => break status,
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(
        fs::read_to_string(&output).unwrap(),
        format!("ready\n{text}!")
    );
    let code = status.and_then(|status| status.code());
    assert_eq!(code, Some(3), "the guest crashes at the mark");
}

#[test]
fn a_machine_has_the_name_that_it_was_given() {
    let mut vm = tiny::boot_with(Boot::new(Guest::Tiny).option("--id=my-machine"));
    assert_eq!(vm.client.info().unwrap().id, "my-machine");
}
