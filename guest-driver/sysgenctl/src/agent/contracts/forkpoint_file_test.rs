//! Tests of the file, mounted: with programs that read it as any program would.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::process::geteuid;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

/// The file in a directory of its own; nothing where that cannot be mounted.
fn mounted() -> Option<(tempfile::TempDir, ForkpointFile)> {
    if !geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        // Not by `eprintln!`, which is kept from sight when a test passes.
        let _ = writeln!(io::stderr(), "needs root and FUSE; left out");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = ForkpointFile::mount(&dir.path().join("run/forkpoint")).unwrap();
    Some((dir, file))
}

fn turn(new: u32) -> Turn<'static> {
    Turn {
        new,
        limit: LIMIT,
        start: Instant::now(),
        signals: None,
        cut: &|| None,
    }
}

/// A program with the file as its input, which says first that it has it open.
fn reader(file: &ForkpointFile, script: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new("/bin/sh")
        .args(["-c", &format!("exec < \"$1\"; echo open; {script}"), "sh"])
        .arg(&file.path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "open\n");
    (child, said)
}

fn line(said: &mut impl BufRead) -> serde_json::Value {
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

fn told(role: &str, generation: u32) -> serde_json::Value {
    json!({ "role": role, "generation": generation, "instance": null })
}

#[test]
fn a_read_returns_when_the_machine_was_forked_to_all_who_have_it_open() {
    let Some((_dir, file)) = mounted() else {
        return;
    };
    let mut readers = [
        reader(&file, "exec head -n 1"),
        reader(&file, "sleep 0.5; exec head -n 1"),
    ];
    file.adapting(3);
    for (child, said) in &mut readers {
        assert_eq!(line(said), told("clone", 3));
        assert!(child.wait().unwrap().success());
    }
    // Who comes later waits for the next one.
    let (mut child, mut said) = reader(&file, "exec head -n 1");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(child.try_wait().unwrap(), None);
    file.before(&turn(3)).unwrap();
    file.after(Resumed::Original, &turn(3)).unwrap();
    assert_eq!(line(&mut said), told("original", 3));
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_snapshot_that_was_not_taken_and_a_second_attempt_tell_nothing() {
    let Some((_dir, file)) = mounted() else {
        return;
    };
    let (mut child, mut said) = reader(&file, "exec head -n 1");
    file.before(&turn(0)).unwrap();
    file.after(Resumed::CalledOff, &turn(0)).unwrap();
    // Nobody has asked.
    file.after(Resumed::Original, &turn(0)).unwrap();
    file.after(Resumed::Clone, &turn(0)).unwrap();
    assert_eq!(file.news.borrow().number, 0);
    for _ in 0..3 {
        file.adapting(2);
    }
    assert_eq!(file.news.borrow().number, 1);
    assert_eq!(line(&mut said), told("clone", 2));
    child.wait().unwrap();
}

#[test]
fn one_who_has_it_open_misses_nothing_while_it_works() {
    let Some((_dir, file)) = mounted() else {
        return;
    };
    // The loop of the documentation. What it does with the first fork takes until after the second.
    let script = "while read -r fork; do echo \"$fork\"; read -r go < \"$0.go\"; done";
    let go = file.path.with_extension("go");
    let made = Command::new("mkfifo").arg(&go).status().unwrap();
    assert!(made.success());
    let script = script.replace("$0.go", &go.display().to_string());
    let (mut child, mut said) = reader(&file, &script);
    file.adapting(2);
    assert_eq!(line(&mut said), told("clone", 2));
    file.adapting(4);
    fs::write(&go, "go\n").unwrap();
    assert_eq!(line(&mut said), told("clone", 4));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_read_is_interrupted_by_a_signal_and_does_not_wait_if_it_is_not_to() {
    let Some((_dir, file)) = mounted() else {
        return;
    };
    let script = "exec perl -e '$SIG{ALRM} = sub {}; alarm 1; \
                  defined sysread STDIN, $_, 4096 and die; print \"$!\\n\"; \
                  use Fcntl; sysopen my $f, $ARGV[0], O_RDONLY | O_NONBLOCK or die; \
                  defined sysread $f, $_, 4096 and die; print \"$!\\n\"' \"$1\"";
    let (mut child, said) = reader(&file, script);
    let lines: Vec<_> = said.lines().map(Result::unwrap).collect();
    assert_eq!(
        lines,
        [
            "Interrupted system call",
            "Resource temporarily unavailable"
        ]
    );
    assert!(child.wait().unwrap().success());
    let open = file_count(&file);
    assert_eq!(open, 0, "files and reads that nobody has any more");
}

/// Open files and waiting reads, by what the kernel says of the mount: none is left where it can be unmounted.
fn file_count(file: &ForkpointFile) -> usize {
    let busy = rustix::mount::unmount(&file.path, rustix::mount::UnmountFlags::empty());
    usize::from(busy.is_err())
}

#[test]
fn what_a_killed_agent_left_is_no_hindrance_and_the_file_goes_with_the_agent() {
    let Some((dir, file)) = mounted() else {
        return;
    };
    let path = file.path.clone();
    let (mut child, _said) = reader(&file, "cat; exit 7");
    // A second agent, in the place of the first.
    let second = ForkpointFile::mount(&path).unwrap();
    let (mut late, mut said) = reader(&second, "exec head -n 1");
    second.adapting(1);
    assert_eq!(line(&mut said), told("clone", 1));
    late.wait().unwrap();
    drop(second);
    drop(file);
    // The first one's reader has an end, of whatever kind.
    child.wait().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"", "what lies beneath it");
    dir.close().unwrap();
}
