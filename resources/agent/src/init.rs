//! Process 1 of the emulated KVM host.
//!
//! Errors go to the kernel's console, which the other side shows when no report arrives.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use vm_agent::patience::Patience;
use vm_agent::{
    EXIT_PORT, Entry, GUEST_DIR, GUEST_DISK, HOST_IS_UP, JOB_PATH, Job, MODULES_DIR, PORT_REPORT,
    PORT_STDERR, PORT_STDIN, PORT_STDOUT, QEMU_DIR, QEMU_DISK, WORK_DIR, WORK_DISK,
};

/// What is mounted, where, and with which options.
const MOUNTS: [(&str, &str, &str); 6] = [
    ("devtmpfs", "/dev", "mode=0755"),
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("tmpfs", "/tmp", "mode=1777"),
];

/// How long a device may take to appear; much longer than it does on a busy machine.
const APPEARANCE: Duration = Duration::from_secs(60);

/// Sets the machine up, runs the job, and ends the machine.
pub(crate) fn run() -> ExitCode {
    let result = set_up().and_then(|()| run_job());
    if let Err(message) = &result {
        eprintln!("vm-agent: {message}");
    }
    end_machine(result.is_ok())
}

fn set_up() -> Result<(), String> {
    for (kind, target, options) in MOUNTS {
        mount(kind, target, options).map_err(|e| format!("could not mount {target}: {e}"))?;
    }
    // A kernel without devpts's own node, and programs that look for the usual links.
    let _ = fs::remove_file("/dev/ptmx");
    for (to, link) in [("pts/ptmx", "ptmx"), ("/proc/self/fd", "fd")] {
        let link = Path::new("/dev").join(link);
        symlink(to, &link).map_err(|e| format!("could not make {}: {e}", link.display()))?;
    }
    load_modules()?;
    mount_disk(GUEST_DISK, GUEST_DIR, libc::MS_RDONLY)?;
    mount_disk(QEMU_DISK, QEMU_DIR, libc::MS_RDONLY)?;
    if job()?.work_disk {
        fs::create_dir_all(WORK_DIR).map_err(|e| format!("could not make {WORK_DIR}: {e}"))?;
        mount_disk(WORK_DISK, WORK_DIR, 0)?;
    }
    if !Path::new("/dev/kvm").exists() {
        return Err("there is no /dev/kvm although its modules are loaded".into());
    }
    loopback_up().map_err(|e| format!("could not bring the loopback network up: {e}"))
}

fn mount(kind: &str, target: &str, options: &str) -> io::Result<()> {
    fs::create_dir_all(target)?;
    mount_device(kind, kind, target, 0, options)
}

fn mount_device(
    device: &str,
    kind: &str,
    target: &str,
    flags: libc::c_ulong,
    options: &str,
) -> io::Result<()> {
    let device = CString::new(device)?;
    let kind = CString::new(kind)?;
    let target = CString::new(target)?;
    let options = CString::new(options)?;
    // SAFETY: the four pointers are to NUL-terminated strings that outlive the call.
    let result = unsafe {
        libc::mount(
            device.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    };
    check(result.into())
}

/// Mounts a disk, which appears some time after its driver.
fn mount_disk(disk: &str, dir: &str, flags: libc::c_ulong) -> Result<(), String> {
    let mut patience = Patience::new(APPEARANCE);
    while !Path::new(disk).exists() {
        if patience.is_over() {
            return Err(format!("the disk {disk} did not appear"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    mount_device(disk, "ext4", dir, flags, "").map_err(|e| format!("could not mount {disk}: {e}"))
}

fn job() -> Result<Job, String> {
    let text = fs::read(JOB_PATH).map_err(|e| format!("could not read {JOB_PATH}: {e}"))?;
    serde_json::from_slice(&text).map_err(|e| format!("could not read {JOB_PATH}: {e}"))
}

fn check(result: i64) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Loads the modules in the order of their list. One that does not fit this machine (the other
/// vendor's half of KVM) is passed over: whether `/dev/kvm` came is what counts.
fn load_modules() -> Result<(), String> {
    let list = Path::new(MODULES_DIR).join("order");
    let names =
        fs::read_to_string(&list).map_err(|e| format!("could not read {}: {e}", list.display()))?;
    for name in names.lines() {
        let path = Path::new(MODULES_DIR).join(name);
        let file = File::open(&path).map_err(|e| format!("could not open {name}: {e}"))?;
        // SAFETY: the descriptor is open and the parameter string is NUL-terminated.
        let result =
            unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
        if let Err(error) = check(result) {
            eprintln!("vm-agent: did not load {name}: {error}");
        }
    }
    Ok(())
}

fn loopback_up() -> io::Result<()> {
    // SAFETY: socket takes no pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    check(socket.into())?;
    // SAFETY: an all-zero ifreq is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is a live ifreq with a NUL-terminated name, as this ioctl reads.
    let result = unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &request) };
    let outcome = check(result.into());
    // SAFETY: the socket is ours and is used no more.
    unsafe { libc::close(socket) };
    outcome
}

/// Runs the job in a process of its own and collects orphans until it ends.
fn run_job() -> Result<(), String> {
    let streams = [
        open_port(PORT_STDIN)?,
        open_port(PORT_STDOUT)?,
        open_port(PORT_STDERR)?,
    ];
    let report = find_port(PORT_REPORT)?;
    let child = start_job(streams, &report)
        .map_err(|e| format!("could not start the job's process: {e}"))?;
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = uptime.split(' ').next().unwrap_or_default();
    eprintln!("{HOST_IS_UP}, {seconds} s after the kernel");
    let pid = child.id() as libc::pid_t;
    loop {
        let mut status = 0;
        // SAFETY: the pointer is to a live integer.
        let reaped = unsafe { libc::waitpid(-1, &mut status, 0) };
        if reaped < 0 {
            return Err("the job's process was lost".into());
        }
        if reaped == pid {
            return match status {
                0 => Ok(()),
                // It ended before it could write its own report.
                _ => report_failure(&report, status),
            };
        }
    }
}

fn start_job([stdin, stdout, stderr]: [File; 3], report: &Path) -> io::Result<Child> {
    // Not /proc/self/exe: that would name the program that is about to be replaced.
    Command::new("/init")
        .args(["run", JOB_PATH])
        .arg(report)
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout))
        .stderr(Stdio::from(stderr))
        .env_clear()
        .env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin")
        .env("HOME", "/tmp")
        .env("TERM", "linux")
        .spawn()
}

fn report_failure(port: &Path, status: i32) -> Result<(), String> {
    let line = Entry::End(1).to_line().map_err(|e| e.to_string())?;
    fs::write(port, line).map_err(|e| format!("could not write the report: {e}"))?;
    Err(format!(
        "the job's process ended with wait status {status:#x}"
    ))
}

fn open_port(name: &str) -> Result<File, String> {
    let path = find_port(name)?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|e| format!("could not open {} ({name}): {e}", path.display()))
}

/// The device node of the virtio port with this name. The names arrive by messages from the
/// device after its discovery, so it is waited for.
fn find_port(name: &str) -> Result<PathBuf, String> {
    let mut patience = Patience::new(APPEARANCE);
    loop {
        for entry in fs::read_dir("/sys/class/virtio-ports")
            .into_iter()
            .flatten()
        {
            let Ok(entry) = entry else { continue };
            let found = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            let node = Path::new("/dev").join(entry.file_name());
            if found.trim_end() == name && node.exists() {
                return Ok(node);
            }
        }
        if patience.is_over() {
            return Err(format!("the virtio port {name} did not appear"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends the machine: at once through the exit device, else by the ordinary power-off.
fn end_machine(success: bool) -> ! {
    // Whatever is still running would only be in the way.
    // SAFETY: these calls take no pointers.
    unsafe {
        libc::kill(-1, libc::SIGKILL);
        libc::sync();
    }
    if let Ok(ports) = OpenOptions::new().write(true).open("/dev/port") {
        let _ = ports.write_at(&[u8::from(!success)], EXIT_PORT.into());
    }
    loop {
        // SAFETY: reboot with this command takes no pointer.
        unsafe { libc::reboot(libc::RB_POWER_OFF) };
        std::thread::sleep(Duration::from_secs(1));
    }
}
