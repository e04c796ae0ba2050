use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

fn fed(pieces: &[&[u8]]) -> (Vec<u8>, Escape) {
    let (mut filter, mut guest) = (EscapeFilter::quitting(), Vec::new());
    for piece in pieces {
        if filter.feed(piece, &mut guest) == Escape::Leave {
            return (guest, Escape::Leave);
        }
    }
    (guest, Escape::Continue)
}

#[test]
fn ordinary_bytes_go_to_the_guest_unchanged() {
    let all: Vec<u8> = (2..=255).chain([0]).collect();
    assert_eq!(fed(&[&all]), (all, Escape::Continue));
}

#[test]
fn ctrl_a_x_quits_and_drops_what_follows() {
    assert_eq!(fed(&[b"ls\n\x01xrm"]), (b"ls\n".to_vec(), Escape::Leave));
}

#[test]
fn an_escape_sequence_may_arrive_in_pieces() {
    assert_eq!(fed(&[b"a\x01", b"x"]), (b"a".to_vec(), Escape::Leave));
    assert_eq!(
        fed(&[b"\x01", b"\x01", b"x"]),
        (b"\x01x".to_vec(), Escape::Continue)
    );
}

#[test]
fn ctrl_a_twice_is_one_ctrl_a() {
    assert_eq!(fed(&[b"\x01\x01x"]), (b"\x01x".to_vec(), Escape::Continue));
}

#[test]
fn ctrl_a_and_another_key_both_go_to_the_guest() {
    assert_eq!(fed(&[b"\x01b"]), (b"\x01b".to_vec(), Escape::Continue));
}

#[test]
fn a_file_is_not_made_raw() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"x").unwrap();
    assert!(may_read(file.as_fd()));
    // Not a terminal: there is nothing to make raw.
    assert!(RawMode::enter(file.as_fd()).is_none());
    restore();
}

#[test]
fn a_terminal_in_whose_background_we_run_is_left_alone() {
    let Some((_host, terminal)) = pseudo_terminal() else {
        return;
    };
    // It is nobody's controlling terminal, so this process is not in its foreground.
    assert!(!may_read(terminal.as_fd()));
    assert!(RawMode::enter(terminal.as_fd()).is_none());
}

fn pseudo_terminal() -> Option<(OwnedFd, File)> {
    let (mut host, mut terminal) = (-1, -1);
    // SAFETY: openpty writes two descriptors; name, settings and size may be null.
    let opened = unsafe {
        libc::openpty(
            &mut host,
            &mut terminal,
            ptr::null_mut(),
            ptr::null(),
            ptr::null(),
        )
    };
    // SAFETY: both are fresh descriptors that nobody else owns.
    (opened == 0).then(|| unsafe { (OwnedFd::from_raw_fd(host), File::from_raw_fd(terminal)) })
}

/// How a process that has made its terminal raw may end.
const ENDS: [&str; 7] = [
    "drop",
    "exit after restore",
    "panic",
    "abort",
    "fault",
    "sent SIGSEGV",
    "sent SIGQUIT",
];

#[test]
#[ignore = "run by the next test, in a terminal of its own"]
fn a_process_that_makes_its_terminal_raw() {
    let stdin = std::io::stdin();
    crate::fatal::install();
    let raw = RawMode::enter(stdin.as_fd()).unwrap();
    stdin.lock().read_exact(&mut [0]).unwrap(); // the other side has seen it
    if std::env::var("VMGENIE_TEST_END").unwrap() == "drop" {
        return;
    }
    std::mem::forget(raw); // as if it were in a thread that never returns
    match std::env::var("VMGENIE_TEST_END").unwrap().as_str() {
        "exit after restore" => {
            restore();
            std::process::exit(0);
        }
        "panic" => panic!("on purpose"),
        "abort" => std::process::abort(),
        // SAFETY: none; the process is meant to die of it.
        "fault" => unsafe { ptr::null_mut::<u8>().write_volatile(1) },
        // SAFETY: raise takes a number.
        "sent SIGSEGV" => assert_eq!(unsafe { libc::raise(libc::SIGSEGV) }, 0),
        // SAFETY: as above.
        "sent SIGQUIT" => assert_eq!(unsafe { libc::raise(libc::SIGQUIT) }, 0),
        other => panic!("{other}"),
    }
    unreachable!("this process has survived");
}

#[test]
fn the_terminal_is_restored_however_the_process_ends() {
    for end in ENDS {
        let Some((host, terminal)) = pseudo_terminal() else {
            return;
        };
        let is_raw = || get(terminal.as_raw_fd()).unwrap().c_lflag & libc::ICANON == 0;
        // The shell leads the session: when its leader ends, a terminal is reset anyway.
        let script = "ulimit -c 0; \"$0\" --exact --ignored --nocapture \
                      terminal::tests::a_process_that_makes_its_terminal_raw >&2; \
                      echo status $?; read line";
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .arg(std::env::current_exe().unwrap())
            .env("VMGENIE_TEST_END", end)
            .stdin(terminal.try_clone().unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // SAFETY: setsid and ioctl are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let mut shell = command.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_raw() {
            assert!(
                Instant::now() < deadline,
                "{end}: the terminal was never raw"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut keys = File::from(host);
        keys.write_all(b"x").unwrap();
        let mut status = String::new();
        BufReader::new(shell.stdout.take().unwrap())
            .read_line(&mut status)
            .unwrap();
        assert!(!is_raw(), "{end}: the terminal is left raw");
        let harmless = ["drop", "exit after restore"].contains(&end);
        assert_eq!(status.trim() == "status 0", harmless, "{end}: {status}");
        keys.write_all(b"\n").unwrap();
        shell.wait().unwrap();
    }
}
