//! The emulated KVM host: a machine with AMD virtualization that QEMU emulates in software.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use vm_agent::patience::{Patience, Progress};
use vm_agent::{
    HOST_IS_UP, PORT_REPORT, PORT_STDERR, PORT_STDIN, PORT_STDOUT, RUNTIMES_DISK, Report, Work,
};

use super::claims::Clerk;
use super::terminal::RawTerminal;
use super::{HostDied, Request, overlay};
use crate::image;
use crate::lifetime;
use crate::setup::Resources;

/// The machine. Its memory must hold the guests of the tests. It has one processor: with two, the emulator at times
/// loses a busy guest or the host itself, as one of them finds none of its pages right after a `vmrun`.
const MACHINE: &[&str] = &[
    "-machine",
    "q35",
    "-accel",
    "tcg,thread=multi",
    "-cpu",
    "max",
    "-m",
    "4096",
    "-smp",
    "1",
    "-nodefaults",
    "-display",
    "none",
    "-no-reboot",
];

/// The kernel is quiet because every character on the console costs time, and does without its
/// certificates because parsing them costs a second and a half; nothing here checks a signature.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on nokaslr \
     no_timer_check tsc=reliable initcall_blacklist=load_system_certificate_list";

/// The size of a disk that tests may write, which know it by its serial number.
const SCRATCH_LEN: u64 = 24 << 20;

/// How long a host that comes up may say nothing; it takes a tenth of it altogether even on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// How long a host that runs tests may tell nothing, as on a quiet machine. It does each [`vm_agent::HEARTBEAT`], and stands still for 20 seconds at times; when its
/// processor turns in circles, it does for ever.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);

/// How much of the console an error shows.
const TAIL_LINES: usize = 30;

/// The file of the disk that a run has to itself, in its directory.
const WORK_DISK: &str = "work.ext4";

/// The room on that disk beside the Debian image, in bytes; nothing is taken for it in advance.
const WORK_ROOM: u64 = 6 << 30;

/// Makes a disk with a copy of the Debian image, and room for the disks of its clones, which a memory file system
/// has not. Returns the image's name there.
fn work_disk(path: &Path, image: &Path) -> Result<String> {
    let dir = image.parent().context("the image is in a directory")?;
    let name = image.file_name().context("the image is a file")?;
    image::make_disk(path, dir, WORK_ROOM)?;
    Ok(name.to_string_lossy().into_owned())
}

/// Boots the host, runs the job in it, and returns its report.
pub(super) fn run(resources: &Resources, request: &Request) -> Result<Report> {
    let run = resources.cache.run_dir()?;
    let initramfs = run.path().join("initramfs.cpio");
    let image = match &resources.image {
        Some(image) => Some(work_disk(&run.path().join(WORK_DISK), image)?),
        None => None,
    };
    overlay::write(
        &initramfs,
        &resources.host.initramfs,
        request,
        image.as_deref(),
        resources.runtimes.as_ref().map(|_| RUNTIMES_DISK),
    )?;
    let console = run.path().join("console.log");
    let report = run.path().join("report");
    let interactive = matches!(request.work, Work::Terminal { .. });
    let answers = request.lane.as_ref().map(|_| run.path().join("answers"));
    if let Some(answers) = &answers {
        for name in ["in", "out"] {
            make_fifo(&answers.with_extension(name))?;
        }
    }
    let input = match (interactive, &answers) {
        (true, _) => Input::Terminal,
        (false, Some(answers)) => Input::Answers(answers),
        (false, None) => Input::Nothing,
    };
    let mut command = command(resources, run.path(), &initramfs, &input)?;
    let log = File::options()
        .append(true)
        .create(true)
        .open(&console)
        .context("could not make the console's log")?;
    command.stdout(Stdio::null()).stderr(log);
    let stdout = Stream::new(&run.path().join("stdout"))?;
    let stderr = Stream::new(&run.path().join("stderr"))?;
    let raw = match interactive {
        true => RawTerminal::enter()?,
        false => None,
    };
    let mut clerk = match (&request.lane, &answers) {
        (Some(lane), Some(answers)) => Some(Clerk::new(lane, &report, &answers_in(answers))?),
        _ => None,
    };
    let mut child = lifetime::bind(&mut command)
        .spawn()
        .context("could not start qemu-system-x86_64")?;
    let watched = matches!(request.work, Work::Tests(_)).then_some(report.as_path());
    let by_line = request.lane.is_some();
    let end = thread::scope(|scope| {
        scope.spawn(|| stdout.copy(io::stdout(), by_line));
        scope.spawn(|| stderr.copy(io::stderr(), by_line));
        let look = || clerk.as_mut().map_or((), Clerk::look);
        let end = wait(&mut child, request.timeout_secs, watched, &console, look);
        stdout.end();
        stderr.end();
        end
    })?;
    drop(raw);
    if end == End::TimeLimit {
        bail!(
            "the job took longer than its time limit and the emulated host was ended{}",
            console_tail(&console)
        );
    }
    let text = fs::read_to_string(&report).unwrap_or_default();
    Report::parse(&text).map_err(|cut| {
        let console = console_tail(&console);
        let hung = end == End::Silence;
        HostDied { cut, hung, console }.into()
    })
}

/// What the host reads.
enum Input<'a> {
    Nothing,
    Terminal,
    /// What comes from a named pipe of this name with `.in` behind it; `.out` is there and stays empty.
    Answers(&'a Path),
}

impl Input<'_> {
    /// QEMU's option.
    fn option(&self) -> Result<String> {
        Ok(match self {
            Self::Nothing => "null,id=stdin".into(),
            Self::Terminal => "stdio,id=stdin,signal=off".into(),
            Self::Answers(path) => format!("pipe,id=stdin,path={}", option_text(path)?),
        })
    }
}

/// The pipe that QEMU reads of those that it knows by this name.
fn answers_in(answers: &Path) -> PathBuf {
    answers.with_extension("in")
}

fn command(
    resources: &Resources,
    run: &Path,
    initramfs: &Path,
    input: &Input<'_>,
) -> Result<Command> {
    let emulator = &resources.emulator;
    let kernel = &resources.host.kernel;
    let mut command = emulator.command();
    command
        .args(MACHINE)
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", KERNEL_COMMAND_LINE]);
    // In this order: the agent knows the disks by the names that Linux gives them.
    let (qemu, work) = (resources.peer.disk(), run.join(WORK_DISK));
    let mut disks = vec![
        ("guests", &resources.host.disk, "readonly=on"),
        ("qemu", &qemu, "readonly=on"),
    ];
    if resources.image.is_some() {
        // It goes with the run: nothing on it has to survive the machine.
        disks.push(("work", &work, "cache=unsafe"));
        // The fourth, behind that: guests have it as a disk of theirs.
        if let Some(runtimes) = &resources.runtimes {
            disks.push(("runtimes", runtimes, "readonly=on"));
        }
    }
    for (name, disk, options) in disks {
        let disk = option_text(disk)?;
        let drive = format!("if=none,id={name},format=raw,{options},file={disk}");
        let device = format!("virtio-blk-pci,drive={name}");
        command.args(["-drive", &drive, "-device", &device]);
    }
    let scratch = run.join("scratch.img");
    File::create(&scratch)
        .and_then(|file| file.set_len(SCRATCH_LEN))
        .context("could not make a disk for tests")?;
    let drive = format!(
        "if=none,id=scratch,format=raw,cache=unsafe,discard=unmap,file={}",
        option_text(&scratch)?
    );
    let device = "virtio-blk-pci,drive=scratch,serial=vmgenie-scratch";
    command.args(["-drive", &drive, "-device", device]);
    let file = |name: &str| option_text(&run.join(name));
    command
        .args([
            "-chardev",
            &format!("file,id=console,append=on,path={}", file("console.log")?),
        ])
        .args(["-serial", "chardev:console"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
        .args(["-device", "virtio-serial-pci,max_ports=8"]);
    // Input that ends closes a port in both directions, so output has ports of its own.
    let stdin = match input {
        Input::Terminal => Stdio::inherit(),
        _ => Stdio::null(),
    };
    command.args(["-chardev", &input.option()?]).stdin(stdin);
    for name in ["stdout", "stderr", "report"] {
        let path = file(name)?;
        command.args(["-chardev", &format!("file,id={name},append=on,path={path}")]);
    }
    for (chardev, name) in [
        ("stdin", PORT_STDIN),
        ("stdout", PORT_STDOUT),
        ("stderr", PORT_STDERR),
        ("report", PORT_REPORT),
    ] {
        command.args([
            "-device",
            &format!("virtserialport,chardev={chardev},name={name}"),
        ]);
    }
    Ok(command)
}

/// A path as part of one of QEMU's options, where a comma ends a part and two are one.
fn option_text(path: &Path) -> Result<String> {
    let path = path.to_str().context("the cache's path is no UTF-8")?;
    Ok(path.replace(',', ",,"))
}

pub(super) fn make_fifo(path: &Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the name is NUL-terminated and outlives the call.
    if unsafe { libc::mkfifo(name.as_ptr(), 0o600) } != 0 {
        return Err(io::Error::last_os_error()).context("could not make a pipe");
    }
    Ok(())
}

/// How a host ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Of itself.
    Own,
    /// By us, at its time limit.
    TimeLimit,
    /// By us, because it told nothing for [`SILENCE_LIMIT`].
    Silence,
}

/// Waits for the end of the host, or ends it: at its limit, which is that of the job or, before the job begins, that of the boot;
/// or when the report that it is `watched` by grows no more.
fn wait(
    child: &mut Child,
    timeout_secs: Option<u64>,
    watched: Option<&Path>,
    console: &Path,
    mut look: impl FnMut(),
) -> Result<End> {
    let begun = Instant::now();
    let limit = timeout_secs.map(Duration::from_secs);
    let mut boot = Patience::new(BOOT_LIMIT);
    let mut silence = Patience::endless(SILENCE_LIMIT);
    let mut is_up = false;
    loop {
        look();
        if child
            .try_wait()
            .context("could not wait for QEMU")?
            .is_some()
        {
            return Ok(End::Own);
        }
        // One look is enough: what is up by then was up in time.
        if !is_up && boot.is_over_at(|| length_of(console)) {
            let said = fs::read(console).unwrap_or_default();
            is_up = String::from_utf8_lossy(&said).contains(HOST_IS_UP);
            if !is_up {
                end(child)?;
                bail!(
                    "the emulated host was not up, and has said nothing for {} s{}",
                    BOOT_LIMIT.as_secs(),
                    console_tail(console)
                );
            }
        }
        if limit.is_some_and(|limit| begun.elapsed() >= limit) {
            end(child)?;
            return Ok(End::TimeLimit);
        }
        if watched.is_some_and(|report| has_stopped(&mut silence, report, is_up)) {
            end(child)?;
            return Ok(End::Silence);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a report that has begun, or should have, has not grown for as long as patience is with it.
fn has_stopped(patience: &mut Patience, report: &Path, should_have: bool) -> bool {
    let over = patience.is_over_at(|| length_of(report));
    over && (should_have || length_of(report) != Progress::default())
}

/// How long a file is, as the progress of who writes it.
fn length_of(file: &Path) -> Progress {
    Progress {
        done: fs::metadata(file).map_or(0, |it| it.len()),
        ..Progress::default()
    }
}

fn end(child: &mut Child) -> Result<()> {
    child.kill().context("could not end QEMU")?;
    child.wait().context("could not wait for QEMU").map(|_| ())
}

/// What we write into the pipe behind the last byte of the host. Long and odd enough that no
/// program's output ends in it by chance.
const END_MARK: &[u8] = b"\0vmgenie: end of the emulated host\0";

/// A named pipe through which QEMU hands us an output of the host.
struct Stream {
    /// Open for writing too, so that neither side waits for the other to open it, and reading
    /// does not end when QEMU does.
    pipe: File,
}

impl Stream {
    fn new(path: &Path) -> Result<Self> {
        make_fifo(path)?;
        let pipe = File::options()
            .read(true)
            .write(true)
            .open(path)
            .context("could not open a pipe")?;
        Ok(Self { pipe })
    }

    /// Marks the end: QEMU is gone, and everything that it wrote is before the mark.
    fn end(&self) {
        let _ = (&self.pipe).write_all(END_MARK);
    }

    /// Copies until the mark, whole lines only if others write to the same output. What nobody wants to read any
    /// more is dropped.
    fn copy(&self, mut to: impl Write, by_line: bool) {
        let mut pending = Vec::new();
        let mut buffer = [0; 16 * 1024];
        while let Ok(n @ 1..) = (&self.pipe).read(&mut buffer) {
            pending.extend(&buffer[..n]);
            let (mut ready, end) = split_at_mark(&pending);
            if by_line && !end {
                let line = pending[..ready].iter().rposition(|byte| *byte == b'\n');
                ready = line.map_or(0, |at| at + 1);
            }
            let _ = to.write_all(&pending[..ready]).and_then(|()| to.flush());
            pending.drain(..ready);
            if end {
                return;
            }
        }
    }
}

/// How many bytes are certainly not of the mark, and whether the mark follows them.
fn split_at_mark(bytes: &[u8]) -> (usize, bool) {
    let at = (0..bytes.len())
        .find(|at| {
            let rest = &bytes[*at..];
            rest.starts_with(END_MARK) || END_MARK.starts_with(rest)
        })
        .unwrap_or(bytes.len());
    (at, bytes[at..].starts_with(END_MARK))
}

/// The end of the console's log, to be appended to an error.
fn console_tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return "; its console is empty".to_owned();
    }
    let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    format!("; the end of its console:\n{}", tail.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_has_begun_and_grows_no_more_has_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("report");
        let mut patience = Patience::endless(Duration::from_millis(5));
        let pass = || thread::sleep(Duration::from_millis(200));
        pass();
        assert!(
            !has_stopped(&mut patience, &file, false),
            "it has not begun"
        );
        assert!(
            has_stopped(&mut patience, &file, true),
            "it should have begun"
        );
        for text in ["a", "ab"] {
            fs::write(&file, text).unwrap();
            pass();
            assert!(!has_stopped(&mut patience, &file, false), "it has grown");
        }
        pass();
        assert!(has_stopped(&mut patience, &file, false));
    }

    #[test]
    fn output_before_the_mark_passes_and_the_mark_ends_it() {
        let whole = [b"ab\0c", END_MARK].concat();
        assert_eq!(split_at_mark(&whole), (4, true));
        assert_eq!(split_at_mark(b"plain"), (5, false));
    }

    #[test]
    fn a_mark_that_has_half_arrived_is_held_back() {
        let half = [b"ab", &END_MARK[..9]].concat();
        assert_eq!(split_at_mark(&half), (2, false));
        assert_eq!(split_at_mark(b"ab\0"), (2, false));
        assert_eq!(split_at_mark(b"ab\0x"), (4, false));
    }
}
