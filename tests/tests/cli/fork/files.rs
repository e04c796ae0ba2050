//! Files and sockets that the clones of a fork have: whose they are, and who removes them.

use std::fs;
use std::path::Path;

use vmgenie_api::client::Client;
use vmgenie_api::wire::State;
use vmgenie_tests::process::{signal, wait_until};
use vmgenie_tests::vm::Boot;
use vmgenie_tests::{Guest, Snapshot, Vm, tiny};

use super::LIMIT;
use super::holding::Holding;
use super::place::{Place, end, spawn};

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
fn runs(socket: &Path) -> bool {
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
