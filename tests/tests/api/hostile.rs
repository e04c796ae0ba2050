//! Clients that send rubbish, and clients that send nothing.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::json;
use vm_agent::patience::stretched;
use vmgenie_api::client::Client;
use vmgenie_tests::http::{call, done, ok};
use vmgenie_tests::process::{open_files, resident_kib, threads, wait_until};
use vmgenie_tests::{Guest, Snapshot, Vm, tiny};

use crate::endpoints::{WITH_BODY, WITHOUT_BODY, good_body};

/// How much resident memory ten thousand requests may leave behind, in KiB: the buffers that a connection has grown once, and
/// what the allocator keeps.
const RESIDENT_BOUND_KIB: u64 = 2048;

/// xorshift64*: the same bodies in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    fn bytes(&mut self, limit: usize) -> Vec<u8> {
        (0..self.below(limit)).map(|_| self.next() as u8).collect()
    }
}

/// What JSON parsers and range checks stumble over.
const TOKENS: [&str; 20] = [
    "null",
    "true",
    "-1",
    "0",
    "1e400",
    "18446744073709551616",
    "4294967297",
    "0.5",
    "\"\"",
    "{}",
    "[]",
    "[[[[[[[[",
    "\\ud800",
    "\\u0000",
    "\u{10ffff}",
    "\"state\":",
    ",",
    "\"generation\": \"new\"",
    "\"/\"",
    "\"2M\"",
];

/// A body for `request`: one that is right in its shape, with some changes, or plain rubbish.
fn body(random: &mut Random, request: &str) -> Vec<u8> {
    if random.below(8) == 0 {
        let limit = random.pick(&[&4, &64, &2000]);
        return random.bytes(*limit);
    }
    // Another route's body, at times.
    let of = match random.below(6) {
        0 => random.pick(&WITH_BODY),
        _ => request,
    };
    let mut body = good_body(of).as_bytes().to_vec();
    for _ in 0..random.below(4) {
        let at = random.below(body.len() + 1);
        let end = (at + random.below(9)).min(body.len());
        let new = match random.below(4) {
            0 => Vec::new(),
            1 => random.bytes(6),
            2 => body[at..end].repeat(2),
            _ => random.pick(&TOKENS).as_bytes().to_vec(),
        };
        body.splice(at..end, new);
    }
    body
}

/// Sends `count` random requests; each must be answered as the API answers.
fn bombard(vm: &mut Vm, random: &mut Random, count: usize) {
    for _ in 0..count {
        let request = match random.below(10) {
            0 => random.pick(&WITHOUT_BODY),
            1 => random.pick(&[
                "PUT /vm",
                "GET /nowhere",
                "DELETE /",
                "PATCH /snapshot/load",
            ]),
            _ => random.pick(&WITH_BODY),
        };
        let body = body(random, request);
        let (status, json) = call(&mut vm.client, request, body.clone());
        let as_promised = match status {
            200 => json.is_object(),
            204 => json.is_null(),
            400 => json["fault_message"]
                .as_str()
                .is_some_and(|message| !message.is_empty()),
            _ => false,
        };
        assert!(
            as_promised,
            "{request} {:?}: {status} {json}",
            String::from_utf8_lossy(&body)
        );
    }
}

#[test]
fn ten_thousand_random_bodies_do_no_harm() {
    let mut vm = Vm::empty();
    let mut random = Random(0x76_6d67_656e_6965);
    bombard(&mut vm, &mut random, 500);
    let before = (
        open_files(vm.pid()),
        threads(vm.pid()),
        resident_kib(vm.pid()),
    );
    bombard(&mut vm, &mut random, 6500);
    let after = (
        open_files(vm.pid()),
        threads(vm.pid()),
        resident_kib(vm.pid()),
    );
    println!("(open files, threads, KiB resident) before {before:?}, after {after:?}");
    assert_eq!(
        (after.0, after.1),
        (before.0, before.1),
        "open files and threads"
    );
    assert!(
        after.2 <= before.2 + RESIDENT_BOUND_KIB,
        "{before:?}, {after:?}"
    );

    done(
        &mut vm.client,
        "PUT /machine-config",
        r#"{"vcpu_count": 1, "mem_size_mib": 32}"#,
    );
    let source = json!({"kernel_image_path": Guest::Tiny.kernel(), "boot_args": "touch=1"});
    done(&mut vm.client, "PUT /boot-source", source.to_string());
    done(
        &mut vm.client,
        "PUT /actions",
        r#"{"action_type": "InstanceStart"}"#,
    );
    vm.console.wait_for("ready\n", tiny::LIMIT);

    // And now with a machine to harm.
    bombard(&mut vm, &mut random, 500);
    let before = (
        open_files(vm.pid()),
        threads(vm.pid()),
        resident_kib(vm.pid()),
    );
    bombard(&mut vm, &mut random, 2500);
    let after = (
        open_files(vm.pid()),
        threads(vm.pid()),
        resident_kib(vm.pid()),
    );
    println!("(open files, threads, KiB resident) before {before:?}, after {after:?}");
    assert_eq!(
        (after.0, after.1),
        (before.0, before.1),
        "open files and threads"
    );
    assert!(
        after.2 <= before.2 + RESIDENT_BOUND_KIB,
        "{before:?}, {after:?}"
    );
    assert_eq!(tiny::Memory::of(&vm.snapshot()).touched_mib(), 1);
}

#[test]
fn clients_that_do_not_go_on_keep_nobody_waiting() {
    let vm = tiny::boot("");
    let socket = vm.socket();
    let before = open_files(vm.pid());
    let mut slow: Vec<_> = (0..100)
        .map(|_| UnixStream::connect(&socket).expect("another client"))
        .collect();
    for (number, stream) in slow.iter_mut().enumerate() {
        let sent: &[u8] = match number % 4 {
            0 => b"",
            1 => b"PUT /generation HTTP/1.1\r\nHost: x\r\nContent-Le",
            2 => b"PUT /generation HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{",
            _ => b"\0\xff\r\n rubbish",
        };
        // Some have been closed to make room, some for what they said.
        let _ = stream.write_all(sent);
    }
    let begun = Instant::now();
    for _ in 0..20 {
        // A connection of its own: those that idle are closed to make room.
        let mut client = Client::new(&socket).unwrap();
        assert_eq!(ok(&mut client, "GET /", "")["state"], "Running");
    }
    // The VMM gives a body 10 s and a head 30 s: who waits for that, waits longer on a busy machine, too.
    assert!(
        begun.elapsed() < stretched(Duration::from_secs(8)),
        "{:?}",
        begun.elapsed()
    );
    drop(slow);
    wait_until(
        "the connections are closed",
        Duration::from_secs(20),
        || open_files(vm.pid()) <= before,
    );
}

#[test]
fn a_client_that_asks_while_a_snapshot_is_written_is_answered() {
    let mut vm = tiny::boot("touch=8");
    let snapshot = Snapshot::new();
    vm.client.pause().unwrap();
    let request = snapshot.request();
    let mut other = Client::new(vm.socket()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| vm.client.create_snapshot(&request).unwrap());
        for _ in 0..20 {
            assert_eq!(
                other.info().unwrap().state,
                vmgenie_api::wire::State::Paused
            );
        }
    });
}

#[test]
fn a_client_that_goes_before_its_answer_leaves_the_request_done() {
    let mut vm = tiny::boot("");
    let first = tiny::generation(&mut vm);
    for _ in 0..5 {
        let mut client = UnixStream::connect(vm.socket()).unwrap();
        client
            .write_all(b"PUT /generation HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
            .unwrap();
    }
    wait_until("five new generations", tiny::LIMIT, || {
        tiny::generation(&mut vm).changes == first.changes + 5
    });
}

#[test]
fn requests_that_arrive_together_are_answered_in_their_order() {
    let vm = Vm::empty();
    let mut client = UnixStream::connect(vm.socket()).unwrap();
    let requests = "GET /version HTTP/1.1\r\nHost: x\r\n\r\n\
                    GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n\
                    GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    client.write_all(requests.as_bytes()).unwrap();
    let mut answers = String::new();
    client.read_to_string(&mut answers).unwrap();
    let at = |text: &str| {
        answers
            .find(text)
            .unwrap_or_else(|| panic!("no {text} in {answers}"))
    };
    assert!(at("firecracker_version") < at("fault_message"), "{answers}");
    assert!(at("fault_message") < at("app_name"), "{answers}");
}
