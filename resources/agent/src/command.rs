//! One program, on pipes or on a terminal.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;

use vm_agent::{STATUS_CANNOT_RUN, exit_status};

use crate::supervise::die_with_parent;

/// Runs a program with no input, its output copied to the agent's own. Returns its exit status.
///
/// The output goes through pipes because a virtio port can be open only once: a program that
/// opened `/dev/stdout` would otherwise be refused.
pub(crate) fn run(argv: &[String]) -> i32 {
    let Some((program, args)) = argv.split_first() else {
        return cannot_run("", &io::Error::other("no command was given"));
    };
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    die_with_parent(&mut command);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return cannot_run(program, &error),
    };
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    let status = thread::scope(|scope| {
        scope.spawn(|| copy(stdout, io::stdout()));
        scope.spawn(|| copy(stderr, io::stderr()));
        child.wait()
    });
    match status {
        Ok(status) => exit_status(status),
        Err(error) => cannot_run(program, &error),
    }
}

fn cannot_run(program: &str, error: &io::Error) -> i32 {
    eprintln!("vm-agent: could not run {program:?}: {error}");
    STATUS_CANNOT_RUN
}

/// Copies until the end, flushing after every piece so that output is seen as it comes.
fn copy(from: Option<impl Read>, mut to: impl Write) {
    let Some(mut from) = from else { return };
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                if to
                    .write_all(&buffer[..n])
                    .and_then(|()| to.flush())
                    .is_err()
                {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A terminal whose last user is gone reads as EIO.
            Err(_) => return,
        }
    }
}

/// Runs a program on a new terminal that is joined to the agent's standard streams. Returns its
/// exit status.
pub(crate) fn run_on_terminal(argv: &[String], rows: u16, columns: u16) -> i32 {
    let Some((program, args)) = argv.split_first() else {
        return cannot_run("", &io::Error::other("no command was given"));
    };
    let (master, slave) = match open_terminal(rows, columns) {
        Ok(pair) => pair,
        Err(error) => return cannot_run(program, &error),
    };
    let started = on_terminal(Command::new(program).args(args), slave).and_then(Command::spawn);
    let mut child = match started {
        Ok(child) => child,
        Err(error) => return cannot_run(program, &error),
    };
    let output = match master.try_clone() {
        Ok(output) => output,
        Err(error) => return cannot_run(program, &error),
    };
    // Neither thread is joined: input has no end, and a background job may hold the terminal.
    thread::spawn(move || copy(Some(io::stdin()), master));
    let drained = thread::spawn(move || copy(Some(output), io::stdout()));
    let status = child.wait();
    // What the program wrote last is in the terminal's buffer; give it a moment to arrive.
    for _ in 0..50 {
        if drained.is_finished() {
            break;
        }
        thread::sleep(std::time::Duration::from_millis(10));
    }
    match status {
        Ok(status) => exit_status(status),
        Err(error) => cannot_run(program, &error),
    }
}

/// Makes `slave` the child's standard streams and its controlling terminal.
fn on_terminal(command: &mut Command, slave: File) -> io::Result<&mut Command> {
    command
        .stdin(slave.try_clone()?)
        .stdout(slave.try_clone()?)
        .stderr(slave);
    die_with_parent(command);
    // SAFETY: the closure makes only async-signal-safe system calls.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    Ok(command)
}

/// A new pseudo-terminal: the side of this program and the side of the child.
fn open_terminal(rows: u16, columns: u16) -> io::Result<(File, File)> {
    let (mut master, mut slave) = (-1, -1);
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the pointers are to live locals; null is allowed for the name and the settings.
    let result = unsafe {
        libc::openpty(
            &mut master,
            &mut slave,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            &size,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: openpty has just returned both, and nothing else owns them.
    let (master, slave) = unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
    // SAFETY: fcntl on a descriptor that we own; it keeps the child from holding our side open.
    unsafe { libc::fcntl(master.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    Ok((master.into(), slave.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_command_s_exit_status_is_returned() {
        assert_eq!(run(&argv(&["/bin/sh", "-c", "exit 77"])), 77);
        assert_eq!(run(&argv(&["/bin/true"])), 0);
    }

    #[test]
    fn a_command_that_dies_of_a_signal_counts_as_a_shell_counts() {
        assert_eq!(run(&argv(&["/bin/sh", "-c", "kill -9 $$"])), 137);
    }

    #[test]
    fn a_command_that_is_not_there_cannot_be_run() {
        assert_eq!(run(&argv(&["/nowhere/at/all"])), STATUS_CANNOT_RUN);
        assert_eq!(run(&[]), STATUS_CANNOT_RUN);
    }
}
