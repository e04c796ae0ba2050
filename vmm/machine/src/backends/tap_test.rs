//! Each test runs this program once more, as root of a network namespace of its own.

use std::fs;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use vmgenie_devices::virtio::net::MAX_FRAME_LEN;

use super::*;

/// Set in a process that is in its namespace already.
const INSIDE: &str = "VMGENIE_TEST_NAMESPACE";

fn in_namespace(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let module = module_path!().split_once("::").unwrap().1;
    let output = Command::new("unshare")
        .args(["--map-root-user", "--net", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{test}"), "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare (package util-linux)");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("1 passed"), "no such test: {text}");
}

/// Sets the interface up or down, as `ip link set NAME up` does.
fn set_up(name: &str, up: bool) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let mut request = request(name).unwrap();
    request.ifr_ifru.ifru_flags = if up { libc::IFF_UP as c_short } else { 0 };
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which lives through the call.
    let done = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw const request,
        )
    };
    check(done).unwrap();
}

/// How many packets the host has got from the interface.
fn received_by_host(name: &str) -> u64 {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = table
        .lines()
        .find_map(|line| line.trim().strip_prefix(&format!("{name}:")))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// An ARP request with a virtio header that asks for nothing.
fn arp() -> Vec<u8> {
    let mut frame = vec![0; HEADER_LEN + 60];
    frame[HEADER_LEN..HEADER_LEN + 6].fill(0xff);
    frame[HEADER_LEN + 6..HEADER_LEN + 12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[HEADER_LEN + 12..HEADER_LEN + 14].copy_from_slice(&[8, 6]);
    frame
}

fn send(tap: &mut Tap, mut frame: Vec<u8>) -> io::Result<()> {
    let (head, rest) = frame.split_at_mut(HEADER_LEN);
    tap.send(&[VolatileSlice::from(head), VolatileSlice::from(rest)])
}

#[test]
fn frames_go_both_ways() {
    in_namespace("frames_go_both_ways", || {
        let mut tap = Tap::open("tap7").unwrap();
        assert_eq!(tap.name(), "tap7");
        assert_eq!(
            send(&mut tap, arp()).unwrap_err().raw_os_error(),
            Some(libc::EIO),
            "the interface is down"
        );
        set_up("tap7", true);
        send(&mut tap, arp()).unwrap();
        assert_eq!(received_by_host("tap7"), 1);

        // The host looks for routers on an interface that comes up.
        let mut buffer = vec![0xee; MAX_FRAME_LEN];
        let deadline = Instant::now() + Duration::from_secs(10);
        let len = loop {
            let (head, rest) = buffer.split_at_mut(5);
            let buffers = [VolatileSlice::from(head), VolatileSlice::from(rest)];
            match tap.receive(&buffers) {
                Ok(len) => break len,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            assert!(Instant::now() < deadline, "nothing within 10 s");
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(len > HEADER_LEN + 14, "{len}");
        assert_eq!(buffer[HEADER_LEN + 12..HEADER_LEN + 14], [0x86, 0xdd]);
    });
}

#[test]
fn a_frame_that_the_kernel_does_not_understand_is_refused() {
    in_namespace(
        "a_frame_that_the_kernel_does_not_understand_is_refused",
        || {
            let mut tap = Tap::open("tap0").unwrap();
            set_up("tap0", true);
            // A checksum beyond the frame.
            let mut frame = arp();
            frame[0] = 1;
            frame[6..8].copy_from_slice(&5000_u16.to_le_bytes());
            assert!(send(&mut tap, frame).is_err());
            assert!(send(&mut tap, vec![0; HEADER_LEN]).is_err());
            assert_eq!(received_by_host("tap0"), 0);
        },
    );
}

#[test]
fn this_kernel_s_taps_have_all_offloads_that_are_offered() {
    in_namespace(
        "this_kernel_s_taps_have_all_offloads_that_are_offered",
        || {
            let mut tap = Tap::open("tap0").unwrap();
            let all = tap.offloads();
            assert!(all.checksum && all.tso4 && all.tso6);
            tap.set_offloads(all).unwrap();
            tap.set_offloads(Offloads::default()).unwrap();
        },
    );
}

#[test]
fn what_cannot_be_opened_is_refused_with_the_reason() {
    in_namespace("what_cannot_be_opened_is_refused_with_the_reason", || {
        let _first = Tap::open("tap0").unwrap();
        assert!(matches!(Tap::open("tap0"), Err(TapError::Busy(_))));
        assert!(matches!(Tap::open("lo"), Err(TapError::NoTap(_))));
        assert!(matches!(check_kind("lo"), Err(TapError::NoTap(_))));
        for fine in ["tap0", "missing"] {
            check_kind(fine).unwrap();
        }
        assert!(Tap::open("missing").is_ok(), "the look has made none");
        for name in ["", "tap%d", "a/b", "a b", ".", "sixteen_bytes_abc"] {
            assert!(matches!(Tap::open(name), Err(TapError::Name(_))), "{name}");
        }
    });
}
