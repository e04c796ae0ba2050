//! Networks for guests: namespaces with taps, and the host's side of what goes through them. Needs the rights of root.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use vm_agent::patience::{Patience, stretched};

use crate::booted::Booted;
use crate::http;
use crate::packets::{Packets, check, named, packet_socket};
use crate::{Guest, Vm};

/// The host's address on each tap.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The guest's address.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The host's address by IPv6.
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// The guest's.
pub const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
/// Where the guest's side of [`guest_load`] listens.
pub const LOAD_PORT: u16 = 5001;
/// How long the other side of a connection may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long one attempt may take. Who was not there yet does not hear of it before the next.
const ATTEMPT: Duration = Duration::from_secs(5);

/// A network namespace. It goes when nobody uses it any more.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// An empty one, with its loopback up.
    #[allow(clippy::new_without_default, reason = "makes a namespace")]
    pub fn new() -> Self {
        let thread = thread::spawn(|| {
            // SAFETY: takes a number; this thread alone is moved.
            let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            let error = io::Error::last_os_error();
            assert_eq!(moved, 0, "a network namespace (are you root?): {error}");
            ip("link set lo up");
            File::open("/proc/thread-self/ns/net").expect("the namespace's file")
        });
        Self {
            file: thread.join().expect("a network namespace"),
        }
    }

    /// Does something inside: what it connects, binds and starts is there, and stays there.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // SAFETY: the descriptor is that of a network namespace and open; this thread alone is moved.
                let moved = unsafe { libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(moved, 0, "{}", io::Error::last_os_error());
                body()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Makes a tap that stays, gives the host [`HOST`] on it, and sets it up.
    pub fn add_tap(&self, name: &str) {
        self.run(|| {
            make_tap(name).unwrap_or_else(|error| panic!("the tap {name}: {error}"));
            ip(&format!("addr add {HOST}/24 dev {name}"));
            ip(&format!("link set {name} up"));
        });
    }

    /// Makes a bridge on which the host has [`HOST`], and taps that stay, which are its ports.
    pub fn add_bridge(&self, taps: &[&str]) {
        self.run(|| {
            ip("link add bridge0 type bridge");
            for tap in taps {
                make_tap(tap).unwrap_or_else(|error| panic!("the tap {tap}: {error}"));
                ip(&format!("link set {tap} master bridge0"));
                ip(&format!("link set {tap} up"));
            }
            ip(&format!("addr add {HOST}/24 dev bridge0"));
            ip("link set bridge0 up");
        });
    }

    /// Tells the host's side of `tap0` a guest's hardware address, so that it need not ask.
    pub fn know(&self, address: Ipv4Addr, mac: &str) {
        let arguments = ["-i", "tap0", "-s", &address.to_string(), mac].map(str::to_owned);
        let output = self.run(|| Command::new("arp").args(arguments).output().expect("arp"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "arp: {errors}");
    }

    /// Deletes an interface, whoever uses it.
    pub fn delete(&self, name: &str) {
        self.run(|| ip(&format!("link del {name}")));
    }

    /// Gives the host [`HOST6`] on an interface. It answers when it has made sure that nobody else has that address, in a second or two.
    pub fn add_ipv6(&self, name: &str) {
        self.run(|| ip(&format!("-6 addr add {HOST6}/64 dev {name}")));
    }

    /// Connects to the guest; waits until it listens.
    pub fn connect(&self, port: u16) -> TcpStream {
        self.connect_to(GUEST, port)
    }

    /// The same for a guest that has another address.
    pub fn connect_to(&self, address: impl Into<IpAddr>, port: u16) -> TcpStream {
        let address = SocketAddr::new(address.into(), port);
        let mut patience = Patience::new(LIMIT);
        self.run(|| {
            loop {
                match TcpStream::connect_timeout(&address, ATTEMPT) {
                    Ok(stream) => break stream,
                    Err(error) => assert!(!patience.is_over(), "{address}: {error}"),
                }
                thread::sleep(Duration::from_millis(20));
            }
        })
    }

    /// Listens on the host's address.
    pub fn listen(&self, port: u16) -> TcpListener {
        self.run(|| TcpListener::bind((HOST, port)).expect("a listener"))
    }

    /// Serves `body` by HTTP to everybody, `pace` after each piece of it.
    pub fn serve(&self, port: u16, body: Vec<u8>, pace: Duration) {
        let listener = self.listen(port);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let body = body.clone();
                thread::spawn(move || respond(stream, &body, pace));
            }
        });
    }

    /// Gets a page of the guest's.
    pub fn get(&self, port: u16, path: &str) -> Vec<u8> {
        let mut stream = self.connect(port);
        let limit = Some(stretched(LIMIT));
        stream.set_read_timeout(limit).expect("a timeout");
        write!(stream, "GET {path} HTTP/1.0\r\nHost: guest\r\n\r\n").expect("a request");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        let end = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .expect("a head");
        let head = String::from_utf8_lossy(&answer[..end]);
        assert!(head.contains(" 200 "), "{path}: {head}");
        answer.split_off(end + 4)
    }

    /// Gets a page from some address, or tells why there is none. An answer that is cut short is none.
    pub fn try_get(&self, address: Ipv4Addr, port: u16, path: &str) -> io::Result<Vec<u8>> {
        self.try_get_within(address, port, path, ATTEMPT)
    }

    /// The same where connecting may take as long as is said.
    pub fn try_get_within(
        &self,
        address: Ipv4Addr,
        port: u16,
        path: &str,
        connecting: Duration,
    ) -> io::Result<Vec<u8>> {
        let to = SocketAddr::new(address.into(), port);
        let mut stream = self.run(|| TcpStream::connect_timeout(&to, connecting))?;
        stream.set_read_timeout(Some(stretched(LIMIT)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        match end {
            Some(end)
                if answer[..end].starts_with(b"HTTP/1.") && contains(&answer[..end], b" 200 ") =>
            {
                Ok(answer.split_off(end + 4))
            }
            _ => Err(io::Error::other(format!(
                "answered {:?}",
                String::from_utf8_lossy(&answer)
            ))),
        }
    }

    /// Hears ARP on an interface from now on.
    pub fn hear_arp(&self, interface: &str) -> Arp {
        self.run(|| Arp::new(interface).expect("a packet socket"))
    }

    /// Hears all that comes out of an interface's guest from now on.
    pub fn hear(&self, interface: &str) -> Packets {
        self.run(|| Packets::of(interface).expect("a packet socket"))
    }

    /// Packets and bytes that the host has got from an interface, and that it has sent to it.
    pub fn traffic(&self, interface: &str) -> [u64; 4] {
        let table = self.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"));
        let table = table.expect("a table of interfaces");
        let line = table
            .lines()
            .find_map(|line| line.trim().strip_prefix(&format!("{interface}:")))
            .unwrap_or_else(|| panic!("no {interface} in {table}"));
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map(|n| n.parse().expect("a number"))
            .collect();
        [numbers[1], numbers[0], numbers[9], numbers[8]]
    }

    /// Starts an empty VMM inside.
    pub fn empty_vm(&self) -> Vm {
        self.run(Vm::empty)
    }

    /// A guest with one vCPU and these interfaces (bodies of PUT `/network-interfaces`), which has booted. The taps have to be those of this
    /// namespace by the same names.
    pub fn booted(&self, guest: Guest, interfaces: &[Value]) -> Vm {
        let description = format!("{guest:?} with {}", json!(interfaces));
        let booted = Booted::of(&description, || self.boot(guest, interfaces));
        let mut vm = self.empty_vm();
        booted.restore_into(&mut vm, &json!({}));
        vm
    }

    /// Boots a guest with one vCPU and these interfaces, and waits for its shell.
    pub fn boot(&self, guest: Guest, interfaces: &[Value]) -> Vm {
        let mut vm = self.empty_vm();
        configure(&mut vm, guest, interfaces);
        vm.client.start().expect("the guest starts");
        vm.wait_ready();
        vm
    }
}

/// Configures a guest that is to boot.
pub fn configure(vm: &mut Vm, guest: Guest, interfaces: &[Value]) {
    let memory: u64 = guest.memory().trim_end_matches('M').parse().expect("MiB");
    let machine = json!({ "vcpu_count": 1, "mem_size_mib": memory });
    let source = guest.boot_source();
    http::done(&mut vm.client, "PUT /machine-config", machine.to_string());
    http::done(&mut vm.client, "PUT /boot-source", source.to_string());
    for interface in interfaces {
        let id = interface["iface_id"].as_str().expect("an iface_id");
        let request = format!("PUT /network-interfaces/{id}");
        http::done(&mut vm.client, &request, interface.to_string());
    }
}

/// The body for an interface `eth0` on `tap`.
pub fn eth0(tap: &str) -> Value {
    json!({ "iface_id": "eth0", "host_dev_name": tap })
}

/// Sets up `eth0` in the guest.
pub fn set_up_guest(vm: &mut Vm) {
    vm.shell("ip link set eth0 up");
    vm.shell(&format!("ip addr add {GUEST}/24 dev eth0"));
}

/// Starts the guest's side of [`guest_load`].
pub fn start_load(vm: &mut Vm) {
    vm.shell(&format!("guest-load serve {LOAD_PORT} > /tmp/load 2>&1 &"));
}

fn respond(mut stream: TcpStream, body: &[u8], pace: Duration) {
    let mut request = [0; 4096];
    // Whether the client gets it all is the client's business.
    let _ = stream.read(&mut request);
    let _ = write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    for piece in body.chunks(64 << 10) {
        if stream.write_all(piece).is_err() {
            return;
        }
        thread::sleep(pace);
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Runs `ip`, busybox's or iproute2's.
fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .expect("ip");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
}

/// Makes a tap that stays in the network namespace of this thread.
pub fn make_tap(name: &str) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = named(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives through the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    // SAFETY: TUNSETPERSIST takes a number.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST as _, 1) })
}

/// A socket that hears the ARP packets of one interface.
#[derive(Debug)]
pub struct Arp {
    socket: File,
}

impl Arp {
    fn new(interface: &str) -> io::Result<Self> {
        let socket = packet_socket(interface, libc::ETH_P_ARP)?;
        let timeout = libc::timeval {
            tv_sec: 1,
            tv_usec: 0,
        };
        // SAFETY: SO_RCVTIMEO reads one `timeval`, which lives through the call.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const timeout).cast(),
                size_of::<libc::timeval>() as u32,
            )
        };
        check(set)?;
        Ok(Self { socket })
    }

    /// Waits until somebody announces [`GUEST`] without being asked (both addresses of the packet are the sender's), and
    /// returns its MAC address.
    pub fn announcement(&mut self, limit: Duration) -> [u8; 6] {
        let mut patience = Patience::new(limit);
        while !patience.is_over() {
            let mut packet = [0; 128];
            let Ok(len @ 42..) = self.socket.read(&mut packet) else {
                continue;
            };
            let arp = &packet[14..len];
            let (sender, target) = (&arp[14..18], &arp[24..28]);
            if sender == GUEST.octets() && target == GUEST.octets() {
                let mut mac = [0; 6];
                mac.copy_from_slice(&arp[8..14]);
                return mac;
            }
        }
        panic!("nobody announced {GUEST} within {limit:?}");
    }
}
