//! A guest on QEMU with its VMGENID device: the same kernels, the same shell, other means of a snapshot.

use std::env;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use vm_agent::patience::Patience;

use crate::console::Console;
use crate::guest::Guest;
use crate::process::end_within;
use crate::qmp::Qmp;
use crate::shell::Shell;
use crate::vm::BOOT_LIMIT;

/// The least machine that has what VMGENID needs, `fw_cfg` with DMA.
const MACHINE: &str = "q35,accel=kvm,sata=off,smbus=off,usb=off,vmport=off,hpet=off";
/// The file in which vmgenie's guests read who they are.
const INSTANCE_FILE: &str = "opt/org.vmgenie.instance";
/// What QEMU's guests read there.
pub const INSTANCE: &str = "a guest of QEMU";
/// How long QEMU may take until its control socket is there.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a QEMU whose console has ended may take to end itself.
const LAST_MOMENT: Duration = Duration::from_secs(5);

/// A QEMU process. It is killed when this is dropped.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    /// The guest's console.
    pub console: Console,
    qmp: Qmp,
    setting: Setting,
    _dir: TempDir,
}

/// What a snapshot has to be restored into.
#[derive(Debug, Clone)]
struct Setting {
    guest: Guest,
    cpus: u8,
    cmdline: String,
    /// What `-device` takes.
    devices: &'static [&'static str],
}

/// The device that tells of generations, and the one by which tests see a resume.
const DEVICES: &[&str] = &["vmgenid,guid=auto", "vmclock"];

/// The state of a stopped guest, in a file.
#[derive(Debug)]
pub struct Frozen {
    dir: TempDir,
    setting: Setting,
}

impl Frozen {
    fn uri(&self) -> String {
        format!("file:{}", self.dir.path().join("state").display())
    }
}

impl Qemu {
    /// Boots a guest with so many vCPUs, and waits until its shell is there.
    pub fn boot(guest: Guest, cpus: u8) -> Self {
        Self::boot_with(guest, cpus, "")
    }

    /// The same with more on the kernel command line.
    pub fn boot_with(guest: Guest, cpus: u8, cmdline: &str) -> Self {
        Self::boot_setting(Setting {
            guest,
            cpus,
            cmdline: format!("{} {cmdline}", guest.cmdline()),
            devices: DEVICES,
        })
    }

    /// A guest on a hypervisor that does not tell of generations.
    pub fn boot_without_vmgenid(guest: Guest) -> Self {
        Self::boot_setting(Setting {
            guest,
            cpus: 1,
            cmdline: guest.cmdline().to_owned(),
            devices: &[],
        })
    }

    fn boot_setting(setting: Setting) -> Self {
        let mut qemu = Self::start(setting, None);
        qemu.console.wait_for("@@ready\n", BOOT_LIMIT);
        qemu
    }

    /// Stops the guest and writes its state to a file; the guest stays stopped.
    pub fn snapshot(&mut self) -> Frozen {
        let frozen = Frozen {
            dir: tempfile::tempdir().expect("a temporary directory"),
            setting: self.setting.clone(),
        };
        self.qmp.run("stop", json!({}));
        // By default it takes care not to fill a network.
        let unlimited = json!({ "max-bandwidth": 1u64 << 40 });
        self.qmp.run("migrate-set-parameters", unlimited);
        self.qmp.run("migrate", json!({ "uri": frozen.uri() }));
        self.qmp.wait_for_status("query-migrate", "completed");
        frozen
    }

    /// A guest with this state, and with another generation ID, as QEMU gives one to each process.
    pub fn restore(frozen: &Frozen) -> Self {
        let mut qemu = Self::load(frozen);
        qemu.resume();
        qemu
    }

    /// The same, but the guest does not run yet.
    pub fn load(frozen: &Frozen) -> Self {
        let mut qemu = Self::start(frozen.setting.clone(), Some(frozen));
        qemu.qmp.wait_for_status("query-status", "paused");
        qemu
    }

    /// Lets a stopped guest go on.
    pub fn resume(&mut self) {
        self.qmp.run("cont", json!({}));
    }

    fn start(setting: Setting, from: Option<&Frozen>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("qmp.sock");
        let mut command = Command::new(program());
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-machine", MACHINE, "-cpu", "host", "-no-reboot"])
            .args(["-smp", &setting.cpus.to_string()])
            .args(["-m", setting.guest.memory()])
            .args(
                setting
                    .devices
                    .iter()
                    .flat_map(|device| ["-device", device]),
            )
            .args([
                "-fw_cfg",
                &format!("name={INSTANCE_FILE},string={INSTANCE}"),
            ])
            .args(["-chardev", "stdio,id=console,signal=off"])
            .args(["-serial", "chardev:console"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .arg("-kernel")
            .arg(setting.guest.kernel())
            .args(["-append", &setting.cmdline]);
        if let Some(initrd) = setting.guest.initrd() {
            command.arg("-initrd").arg(initrd);
        }
        if let Some(frozen) = from {
            command.args(["-S", "-incoming", &frozen.uri()]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("QEMU starts");
        let console = Console::of(&mut child);
        let mut patience = Patience::new(START_LIMIT);
        let qmp = loop {
            match Qmp::connect(&socket) {
                Ok(qmp) => break qmp,
                Err(error) => assert!(!patience.is_over(), "no QMP: {error}"),
            }
            if let Some(status) = child.try_wait().expect("our child") {
                panic!("QEMU ended with {status}");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Self {
            child,
            console,
            qmp,
            setting,
            _dir: dir,
        }
    }
}

impl Qemu {
    /// Whether the process has ended, or is about to: its console goes a moment before it.
    fn has_ended(&mut self) -> bool {
        end_within(&mut self.child, LAST_MOMENT).is_some()
    }
}

impl Shell for Qemu {
    fn console(&mut self) -> &mut Console {
        &mut self.console
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.console.tell_end();
        }
        // QEMU takes a triple fault for a reset; a kernel that gives up says so on the console before.
        if std::thread::panicking()
            && self.has_ended()
            && self.qmp.reason_of_end().as_deref() == Some("guest-reset")
            && !self.console.text().contains("Kernel panic")
        {
            eprintln!("error: the guest crashed: triple fault (on QEMU, which says guest-reset)");
        }
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The QEMU program.
fn program() -> PathBuf {
    env::var_os("VMGENIE_QEMU")
        .map(PathBuf::from)
        .expect("VMGENIE_QEMU is not set: run this through `cargo xtask test`")
}
