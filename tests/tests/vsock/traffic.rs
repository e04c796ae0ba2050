//! Bytes both ways.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use guest_load::{download, round_trips, upload, vsock::connect_to_guest};
use vmgenie_tests::Guest;
use vmgenie_tests::shell::no_complaints;
use vmgenie_tests::vsock::{CID, LOAD_PORT, boot, cid, connect, listen, serve, socket, start_load};

/// What goes both ways, and where nobody listens.
fn both_ways(guest: Guest) {
    let mut vm = boot(guest);
    let socket = socket(&vm);
    assert_eq!(cid(&mut vm), CID);
    start_load(&mut vm);
    download(connect(&socket, LOAD_PORT), 1 << 20).unwrap();
    upload(connect(&socket, LOAD_PORT), 1 << 20).unwrap();
    round_trips(connect(&socket, LOAD_PORT), 100).unwrap();
    let error = connect_to_guest(&socket, LOAD_PORT + 1).unwrap_err();
    assert!(
        matches!(
            error.kind(),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
        ),
        "{error}"
    );

    serve(&socket, 80);
    vm.shell("guest-load vsock-download 80 1000000 1");
    vm.shell("guest-load vsock-upload 80 1000000 1");
    let (status, output) = vm.run("guest-load vsock-upload 81 1 1 2>&1");
    assert_eq!((status, output.contains("reset")), (1, true), "{output}");
    no_complaints(&mut vm);
}

#[test]
fn bytes_go_both_ways_on_the_small_kernel() {
    both_ways(Guest::Small);
}

#[test]
fn bytes_go_both_ways_on_the_stock_kernel() {
    both_ways(Guest::Debian);
}

#[test]
fn a_hundred_connections_at_once_each_have_their_own_bytes() {
    const CONNECTIONS: usize = 100;
    let mut vm = boot(Guest::Small);
    let socket = socket(&vm);
    start_load(&mut vm);
    // All are there before the first byte goes.
    let streams: Vec<_> = (0..CONNECTIONS)
        .map(|_| connect(&socket, LOAD_PORT))
        .collect();
    let threads: Vec<_> = (0_u64..)
        .zip(streams)
        .map(|(n, stream)| {
            thread::spawn(move || match n % 2 {
                0 => download(stream, 100_000 + n),
                _ => upload(stream, 100_000 + n),
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
    serve(&socket, 80);
    vm.shell(&format!("guest-load vsock-upload 80 100000 {CONNECTIONS}"));
    vm.shell(&format!(
        "guest-load vsock-download 80 100000 {CONNECTIONS}"
    ));
    no_complaints(&mut vm);
}

#[test]
fn each_direction_of_a_connection_ends_by_itself() {
    let mut vm = boot(Guest::Small);
    let socket = socket(&vm);
    start_load(&mut vm);
    // The host ends first; the guest's echo still comes, and then its end.
    let mut stream = connect(&socket, LOAD_PORT);
    let mut request = vec![b'e'; 9];
    request.extend(b"back to me");
    stream.write_all(&request).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "back to me");
    // The guest ends first, and hears the host's answer.
    let listener = listen(&socket, 80);
    let host = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut question = String::new();
        stream.read_to_string(&mut question).unwrap();
        write!(stream, "the answer to {question}").unwrap();
    });
    let output = vm.shell("guest-load vsock-halves 80");
    assert_eq!(output, "the answer to a question\n");
    host.join().unwrap();
    no_complaints(&mut vm);
}

/// Reads no faster than a few MiB each second.
struct Slow<R>(R);

impl<R: Read> Read for Slow<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        thread::sleep(Duration::from_millis(20));
        self.0.read(into)
    }
}

#[test]
fn a_slow_reader_gets_every_byte_and_then_the_end() {
    const BYTES: u64 = 4 << 20;
    let mut vm = boot(Guest::Small);
    let socket = socket(&vm);
    // The guest sends as fast as it can, and closes; the host reads in its own time.
    let listener = listen(&socket, 80);
    let host = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let right = guest_load::receive(Slow(&mut stream), BYTES).unwrap();
        (right, stream.read(&mut [0]).unwrap())
    });
    vm.shell(&format!("guest-load vsock-pour 80 {BYTES}"));
    assert_eq!(host.join().unwrap(), (true, 0));
    // The host sends as fast as it can; the guest is slower than a Unix socket by far.
    start_load(&mut vm);
    upload(connect(&socket, LOAD_PORT), BYTES).unwrap();
    no_complaints(&mut vm);
}

#[test]
fn a_driver_that_starts_anew_loses_its_connections_and_gets_new_ones() {
    let mut vm = boot(Guest::Small);
    let socket = socket(&vm);
    start_load(&mut vm);
    let mut stream = connect(&socket, LOAD_PORT);
    let device = vm.shell("ls /sys/bus/virtio/drivers/vmw_vsock_virtio_transport | grep ^virtio");
    let driver = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport";
    let device = device.trim();
    vm.shell(&format!("echo {device} > {driver}/unbind"));
    assert!(!matches!(stream.read(&mut [0]), Ok(1..)), "its end is seen");
    vm.shell(&format!("echo {device} > {driver}/bind"));
    download(connect(&socket, LOAD_PORT), 100_000).unwrap();
    no_complaints(&mut vm);
}
