//! The program where the host lacks something: KVM, or file descriptors.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use vmgenie_snapshot::not_looked_at::not_looked_at;

const DEV: &CStr = c"/dev";
const KVM: &CStr = c"/dev/kvm";
/// `linux/capability.h`: those by which the superuser opens what its mode forbids.
const CAP_DAC_OVERRIDE: libc::c_ulong = 1;
const CAP_DAC_READ_SEARCH: libc::c_ulong = 2;

fn vmgenie(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmgenie"));
    command.arg("api").arg("--api-sock").arg(socket);
    command.stdin(Stdio::null());
    command
}

/// The answer of a system call.
fn done(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives this process an empty `/dev`.
fn empty_dev() -> io::Result<()> {
    let (none, tmpfs) = (std::ptr::null(), c"tmpfs".as_ptr());
    // SAFETY: all pointers are to terminated strings, or null where the kernel does not look.
    unsafe {
        done(libc::unshare(libc::CLONE_NEWNS))?;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        done(libc::mount(none, c"/".as_ptr(), none, private, none.cast()))?;
        done(libc::mount(tmpfs, DEV.as_ptr(), tmpfs, 0, none.cast()))
    }
}

/// Makes a `/dev/kvm` that nobody may open, and gives up the right to open it all the same.
fn forbid_kvm() -> io::Result<()> {
    let number = libc::makedev(10, 232);
    // SAFETY: a terminated string; the other calls take numbers alone.
    unsafe {
        done(libc::mknod(KVM.as_ptr(), libc::S_IFCHR, number))?;
        for capability in [CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH] {
            done(libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0))?;
        }
    }
    Ok(())
}

/// Runs it in a world that `prepare` makes.
fn run_in(prepare: fn() -> io::Result<()>) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let mut command = vmgenie(&dir.path().join("api.sock"));
    // SAFETY: system calls alone.
    unsafe { command.pre_exec(prepare) };
    command.output().unwrap()
}

/// That takes root, as most tests on a KVM do.
#[test]
fn a_kvm_that_is_missing_or_forbidden_is_named_with_what_to_do() {
    // SAFETY: no memory is touched.
    if unsafe { libc::geteuid() } != 0 {
        not_looked_at("only root may make devices");
        return;
    }
    let forbidden = || empty_dev().and_then(|()| forbid_kvm());
    for (prepare, why) in [
        (
            empty_dev as fn() -> io::Result<()>,
            "No such file or directory",
        ),
        (forbidden, "Permission denied"),
    ] {
        let output = run_in(prepare);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{told}");
        for part in ["could not open /dev/kvm", "modprobe", "group kvm", why] {
            assert!(told.contains(part), "{part:?} is not in {told}");
        }
    }
}

/// A server that is ended with the test.
struct Server {
    process: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Server {
    /// None where it cannot run.
    fn at(socket: &Path) -> Option<Self> {
        let kvm = File::options().read(true).write(true).open("/dev/kvm");
        if let Err(error) = kvm {
            not_looked_at(&format!("no /dev/kvm: {error}"));
            return None;
        }
        Some(Self::started(vmgenie(socket), socket))
    }

    fn started(mut program: Command, socket: &Path) -> Self {
        let log = socket.with_extension("log");
        let process = program.stderr(File::create(&log).unwrap()).spawn().unwrap();
        let mut server = Self {
            process,
            socket: socket.to_owned(),
            log,
        };
        while UnixStream::connect(socket).is_err() {
            server.step();
        }
        // What the event loop needs it has when it answers.
        assert_eq!(answer(&mut ask(socket)), "HTTP/1.1 200 OK");
        server.wait_for_rest();
        server
    }

    /// One step of a wait for it.
    fn step(&mut self) {
        if let Some(status) = self.process.try_wait().unwrap() {
            let told = fs::read_to_string(&self.log).unwrap();
            panic!("the server has ended ({status}): {told}");
        }
        sleep(Duration::from_millis(5));
    }

    /// Waits until it has no connection any more: all sockets that it has accepted have the path of the one that listens.
    fn wait_for_rest(&mut self) {
        let socket = self.socket.to_str().unwrap().to_owned();
        let sockets = || {
            let table = fs::read_to_string("/proc/net/unix").unwrap();
            table.lines().filter(|line| line.ends_with(&socket)).count()
        };
        while sockets() > 1 {
            self.step();
        }
    }

    /// Gives it descriptors below this number alone, from now on.
    fn limit_descriptors(&self, number: u32) {
        let pid = self.process.id().cast_signed();
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        let what = libc::RLIMIT_NOFILE;
        // SAFETY: the limit lives for both calls.
        let set = unsafe {
            done(libc::prlimit(pid, what, std::ptr::null(), &raw mut limit)).and_then(|()| {
                limit.rlim_cur = number.into();
                done(libc::prlimit(
                    pid,
                    what,
                    &raw const limit,
                    std::ptr::null_mut(),
                ))
            })
        };
        set.unwrap();
    }

    /// The lowest number of a descriptor that it does not have.
    fn free_descriptor(&self) -> u32 {
        let dir = format!("/proc/{}/fd", self.process.id());
        let used = |number: &u32| Path::new(&dir).join(number.to_string()).is_symlink();
        (0..).find(|number| !used(number)).unwrap()
    }

    /// How long it has computed, in clock ticks.
    fn ticks(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let fields = text.rsplit_once(')').unwrap().1.split_whitespace();
        let numbers = fields.skip(11).take(2).map(|n| n.parse::<u64>().unwrap());
        numbers.sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A client that has asked for something.
fn ask(socket: &Path) -> UnixStream {
    let mut client = UnixStream::connect(socket).unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    client.write_all(request).unwrap();
    client
}

/// The first line of the answer that it gets.
fn answer(client: &mut UnixStream) -> String {
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[test]
#[should_panic(expected = "the server has ended")]
fn a_server_that_ends_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    Server::started(Command::new("/bin/false"), &dir.path().join("api.sock"));
}

#[test]
fn clients_that_say_nothing_leave_a_descriptor_to_one_that_asks() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let Some(server) = Server::at(&socket) else {
        return;
    };
    server.limit_descriptors(server.free_descriptor() + 10);
    let _silent: Vec<_> = (0..50)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    assert_eq!(answer(&mut ask(&socket)), "HTTP/1.1 200 OK");
}

/// Whoever has got the last one keeps it: that there is none for the next client is no reason to end this one while there is no next client.
#[test]
fn the_client_that_has_the_last_descriptor_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let Some(mut server) = Server::at(&socket) else {
        return;
    };
    server.limit_descriptors(server.free_descriptor() + 1);
    for _ in 0..5 {
        assert_eq!(answer(&mut ask(&socket)), "HTTP/1.1 200 OK");
        server.wait_for_rest();
    }
}

#[test]
fn a_server_that_has_no_descriptor_left_neither_spins_nor_dies() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let Some(server) = Server::at(&socket) else {
        return;
    };
    server.limit_descriptors(0);
    let mut client = ask(&socket);
    // A loop that tried again at once would take all of a processor; a busy machine makes this less, never more.
    let before = server.ticks();
    sleep(Duration::from_secs(1));
    let ticks = server.ticks() - before;
    assert!(ticks < 50, "{ticks} of 100 ticks");
    client.set_nonblocking(true).unwrap();
    let told = client.read(&mut [0]).unwrap_err();
    assert_eq!(told.kind(), io::ErrorKind::WouldBlock, "{told}");
    client.set_nonblocking(false).unwrap();
    server.limit_descriptors(1000);
    assert_eq!(answer(&mut client), "HTTP/1.1 200 OK");
}
