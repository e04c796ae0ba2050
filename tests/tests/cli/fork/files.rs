//! Files and sockets that the clones of a fork have: whose they are, and who removes them.

use std::fs;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};

use vmgenie_api::client::Client;
use vmgenie_api::wire::State;
use vmgenie_tests::process::{is_alive, signal, wait_until};
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Snapshot, Vm, tiny};

use super::LIMIT;
use super::holding::Holding;
use super::place::{Place, end, spawn};
use crate::stderr;

/// A machine with a drive that it may write to and a vsock device, and the place of their files.
struct Original {
    vm: Vm,
    _files: Snapshot,
}

impl Original {
    fn boot(words: &str) -> Self {
        let files = Snapshot::new();
        let disk = files.dir().join("disk.img");
        fs::write(&disk, vec![7; 1 << 20]).unwrap();
        let boot = Boot::new(Guest::Tiny)
            .cmdline(words)
            .option(&format!("--drive={}", disk.display()))
            .option(&format!("--vsock={}", files.dir().join("vsock").display()));
        Self {
            vm: tiny::boot_with(boot),
            _files: files,
        }
    }
}

/// The clones' own files in `dir`, sorted.
fn of_clones(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("clone-")).collect();
    names.sort();
    names
}

/// A machine with this API socket runs.
pub(super) fn runs(socket: &Path) -> bool {
    let client = Client::new(socket);
    client.is_ok_and(|mut client| client.info().is_ok_and(|info| info.state == State::Running))
}

#[test]
fn a_fork_that_is_ended_removes_no_file_of_clones_that_were_faster() {
    for with in [Some(libc::SIGKILL), Some(libc::SIGINT), None] {
        let place = Place::new();
        let Original { vm, .. } = &Original::boot("touch=1");
        let holding = Holding::before(vm, place.at("proxy.sock"));
        let own = |n: &str| place.at(&format!("d-{n}.overlay"));
        let more = format!(
            "-n 2 --fallback plain --drive disk0={},overlay",
            own("{n}").display()
        );
        let mut waiting = spawn(&mut place.fork(&holding.socket, &more));
        holding.wait();
        let faster = place.forked(vm.client.socket(), &more);
        assert!(own("1").exists() && own("2").exists());
        match with {
            Some(with) => signal(waiting.id(), with),
            None => holding.let_go(),
        }
        assert!(!waiting.wait().unwrap().success());
        wait_until("its VMMs end", LIMIT, || place.processes().len() == 2);
        assert!(own("1").exists() && own("2").exists(), "signal {with:?}");
        faster
            .pids()
            .into_iter()
            .for_each(|pid| end(pid, libc::SIGTERM));
    }
}

#[test]
fn a_fork_that_is_ended_while_its_clones_adapt_takes_their_files_along() {
    for with in [libc::SIGKILL, libc::SIGINT] {
        let place = Place::new();
        let mut original = Original::boot("echo ring");
        let vm = &mut original.vm;
        tiny::echo(vm, "v");
        let (dir, own) = (place.at("clones"), |n| place.at(&format!("d-{n}.overlay")));
        let more = format!(
            "-n 2 --wait 5m --fallback plain --dir {} --drive disk0={},overlay",
            dir.display(),
            own("{n}").display()
        );
        let mut waiting = spawn(&mut place.fork(vm.client.socket(), &more));
        for n in ["1", "2"] {
            let socket = dir.join(format!("clone-{n}.sock"));
            wait_until("a clone runs", LIMIT, || runs(&socket));
            assert!(own(n).exists() && dir.join(format!("clone-{n}.vsock")).exists());
        }
        signal(waiting.id(), with);
        assert!(!waiting.wait().unwrap().success());
        wait_until("the clones end", LIMIT, || place.processes().is_empty());
        assert!(!own("1").exists() && !own("2").exists(), "signal {with}");
        assert_eq!(of_clones(&dir), [""; 0], "signal {with}");
        assert!(runs(vm.client.socket()));
    }
}

/// The overlays, and the inode of each, in `dir`.
fn overlays(dir: &Path) -> Vec<(PathBuf, u64)> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let mut overlays: Vec<_> = entries
        .map(|entry| (entry.path(), entry.ino()))
        .filter(|(path, _)| path.extension() == Some("overlay".as_ref()))
        .collect();
    overlays.sort();
    overlays
}

#[test]
fn a_second_fork_into_a_directory_works_and_leaves_the_files_of_the_first_one() {
    let place = Place::new();
    let Original { vm, .. } = &Original::boot("touch=1");
    let dir = place.at("snapshot");
    let more = format!("{} -n 2 --fallback plain", dir.display());
    let first = place.forked(vm.client.socket(), &more);
    let before = overlays(&dir);
    let second = place.forked(vm.client.socket(), &more);
    let after = overlays(&dir);
    assert_eq!((before.len(), after.len()), (2, 4), "{after:?}");
    assert!(before.iter().all(|overlay| after.contains(overlay)));
    let mut pids = first.pids().into_iter().chain(second.pids());
    assert!(pids.all(is_alive));
}

#[test]
fn a_fork_that_cannot_have_its_files_or_sockets_leaves_the_snapshot_of_before() {
    let place = Place::new();
    let Original { vm, .. } = &Original::boot("touch=1");
    let dir = place.at("snapshot");
    let fork = |more: &str| {
        let more = format!("{} -n 2 --fallback plain {more}", dir.display());
        place.fork(vm.client.socket(), &more).output().unwrap()
    };
    assert!(fork("").status.success());
    let before = fs::read(dir.join("state")).unwrap();
    let there = place.at("there-2");
    fs::write(&there, "precious").unwrap();
    let named = place.at("there-{n}");
    // An API socket has room there, and the vsock device's has not.
    let room = 107 - "/clone-1.sock".len() - place.at("").as_os_str().len();
    let long = place.at(&"d".repeat(room));
    for (more, why) in [
        (
            format!("--drive disk0={},overlay", named.display()),
            "there-2 made for its drive disk0",
        ),
        (
            format!("--drive disk0={},copy", named.display()),
            "there-2 made for its drive disk0",
        ),
        (
            format!("--vsock {}", named.display()),
            "there-2 exists and is not a socket",
        ),
        (
            format!("--dir {}", long.display()),
            "clone-1.vsock is longer than 107 bytes",
        ),
    ] {
        let output = fork(&more);
        assert_eq!(output.status.code(), Some(1), "{more}: {output:?}");
        assert!(stderr(&output).contains(why), "{more}: {output:?}");
        assert!(fs::read(dir.join("state")).unwrap() == before, "{more}");
    }
    assert_eq!(fs::read(&there).unwrap(), b"precious");
}
