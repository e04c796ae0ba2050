//! In a root directory that has nothing but the program, a kernel and the devices, as a jailer makes it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use vmgenie_api::client::Client;
use vmgenie_tests::console::Console;
use vmgenie_tests::guest::vmgenie;
use vmgenie_tests::process::wait_until;
use vmgenie_tests::{Guest, tiny};

const LIMIT: Duration = Duration::from_secs(60);

/// Such a directory.
struct Jail(tempfile::TempDir);

impl Jail {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::copy(vmgenie(), path("vmgenie")).unwrap();
        fs::copy(Guest::Tiny.kernel(), path("kernel")).unwrap();
        for name in ["dev", "run", "snapshot"] {
            fs::create_dir(path(name)).unwrap();
        }
        let number = fs::metadata("/dev/kvm").unwrap().rdev();
        let device = std::ffi::CString::new(path("dev/kvm").to_str().unwrap()).unwrap();
        // SAFETY: a path that ends with a zero.
        let made = unsafe { libc::mknod(device.as_ptr(), libc::S_IFCHR | 0o600, number) };
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn start(&self, arguments: &[&str]) -> Inmate {
        let mut command = Command::new("/vmgenie");
        command.args(arguments).stdin(Stdio::null()).env_clear();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let root = std::ffi::CString::new(self.0.path().to_str().unwrap()).unwrap();
        // SAFETY: both are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                if libc::chroot(root.as_ptr()) != 0 || libc::chdir(c"/".as_ptr()) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let spawned = command.spawn();
        let mut process = spawned.expect("a static program starts anywhere");
        let console = Console::of(&mut process);
        Inmate { process, console }
    }
}

/// A process in a jail; it is killed when this is dropped.
struct Inmate {
    process: Child,
    console: Console,
}

impl Inmate {
    /// Waits until it serves its API at `socket`, as it is called outside.
    fn client(&mut self, socket: &Path) -> Client {
        let mut client = Client::new(socket).unwrap();
        wait_until("it answers", LIMIT, || {
            client.info().is_ok() || self.process.try_wait().unwrap().is_some()
        });
        client
    }

    /// Waits until the guest has said `text`, and nothing else before it.
    fn wait_for(&mut self, text: &str) {
        assert_eq!(self.console.wait_for(text, LIMIT), "");
    }
}

impl Drop for Inmate {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let mut told = String::new();
            let _ = self
                .process
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut told);
            eprintln!("{told}");
        }
    }
}

/// A program that needs a dynamic linker cannot be started there: a build for the developer's own machine.
fn is_static() -> bool {
    let program = fs::read(vmgenie()).unwrap();
    let linker = b"/lib64/ld-linux";
    !program.windows(linker.len()).any(|part| part == linker)
}

#[test]
fn a_machine_boots_is_snapshotted_and_cloned_without_proc_and_without_dev_random() {
    if !is_static() {
        let for_guests = std::env::var_os("VMGENIE_GUEST_DIR").is_some();
        assert!(!for_guests, "`cargo xtask test` builds a static program");
        eprintln!("not looked at: the program is not static");
        return;
    }
    let jail = Jail::new();
    let snapshot = |name: &str| vmgenie_api::wire::SnapshotCreate {
        snapshot_type: Default::default(),
        snapshot_path: format!("/snapshot/{name}.state").into(),
        mem_file_path: format!("/snapshot/{name}.memory").into(),
        resume_vm: true,
        copy_drives: false,
        cooperative: None,
        pause_vm: false,
    };
    let boot = [
        "run",
        "--kernel=kernel",
        "--memory=32M",
        "--cmdline=touch=1",
    ];
    let mut original = jail.start(&[&boot[..], &["--api-sock=/run/a"]].concat());
    let mut client = original.client(&jail.path("run/a"));
    original.wait_for("ready\n");
    client.pause().unwrap();
    let made = client.create_snapshot(&snapshot("a")).unwrap();
    assert!(made.memory_bytes >= 1 << 20, "{made:?}");
    let mut clone = jail.start(&["api", "--api-sock=/run/b"]);
    let mut client = clone.client(&jail.path("run/b"));
    let request = vmgenie_api::wire::SnapshotLoad {
        resume_vm: true,
        ..vmgenie_api::wire::SnapshotLoad::of(
            "/snapshot/a.state".into(),
            "/snapshot/a.memory".into(),
        )
    };
    client.load_snapshot(&request).unwrap();
    client.pause().unwrap();
    let made = client.create_snapshot(&snapshot("b")).unwrap();
    // Over a base only what has changed is written: what tells of the generation, and the little that KVM has in the guest's memory.
    assert!(made.memory_bytes < 1 << 20, "{made:?}");
    let place = vmgenie_tests::Snapshot::new();
    symlink(jail.path("snapshot/b.memory"), place.memory()).unwrap();
    assert_eq!(tiny::Memory::of(&place).touched_mib(), 1);
}
