//! The tiny guest of `guests/tiny.S`, and what its memory must hold.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use vmgenie_api::wire::{GenerationChoice, GenerationInfo, SnapshotLoad};

use crate::guest::Guest;
use crate::snapshot::Snapshot;
use crate::vm::{Boot, Vm};

/// How long the guest may take for anything: it executes some thousand instructions.
pub const LIMIT: Duration = Duration::from_secs(60);
/// A page.
pub const PAGE: u64 = 4096;
/// Where the guest keeps what it echoes.
const KEEP_FROM: u64 = 8 << 20;
/// Where the touched pages begin.
const TOUCH_FROM: u64 = 16 << 20;
/// The guest's memory: [`Guest::Tiny`] has 32 MiB.
const MEMORY: u64 = 32 << 20;
/// Where the generation ID lies: 64 KiB below the end of memory (`machine::layout`).
const GENERATION_ID: u64 = MEMORY - (64 << 10);

/// Boots the guest with these words on its command line and waits until it is ready.
pub fn boot(words: &str) -> Vm {
    boot_with(Boot::new(Guest::Tiny).cmdline(words))
}

/// Boots the guest in a VMM with this environment and waits until it is ready.
pub fn boot_in(words: &str, environment: &[(&str, &str)]) -> Vm {
    let kernel = Guest::Tiny.kernel();
    let arguments = [
        "run".to_owned(),
        format!("--kernel={}", kernel.display()),
        format!("--cmdline={words}"),
        format!("--memory={}", Guest::Tiny.memory()),
    ];
    let mut vm = Vm::spawn(&arguments, environment);
    vm.console.wait_for("ready\n", LIMIT);
    vm
}

/// Starts `boot`, a tiny guest, and waits until it is ready.
pub fn boot_with(boot: Boot) -> Vm {
    let mut vm = boot.start();
    vm.console.wait_for("ready\n", LIMIT);
    vm
}

/// The request that loads `snapshot`, running.
pub fn load_request(snapshot: &Snapshot, generation: GenerationChoice) -> SnapshotLoad {
    SnapshotLoad {
        resume_vm: true,
        generation,
        ..SnapshotLoad::of(snapshot.state(), snapshot.memory())
    }
}

/// The generation of a machine.
pub fn generation(vm: &mut Vm) -> GenerationInfo {
    vm.client.generation().expect("the generation")
}

/// Has an echoing guest say and keep `text`.
pub fn echo(vm: &mut Vm, text: &str) {
    vm.console.send(text);
    vm.console.wait_for(text, LIMIT);
}

/// The memory file of a snapshot of the tiny guest.
#[derive(Debug)]
pub struct Memory(File);

impl Memory {
    /// Opens it.
    pub fn of(snapshot: &Snapshot) -> Self {
        Self(File::open(snapshot.memory()).expect("the memory file"))
    }

    fn read<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact_at(&mut bytes, gpa).expect("guest memory");
        bytes
    }

    /// How many MiB the guest has touched.
    ///
    /// # Panics
    /// When a page is neither untouched nor what the guest has written there.
    pub fn touched_mib(&self) -> u64 {
        let mut pages = 0;
        for gpa in (TOUCH_FROM..GENERATION_ID).step_by(PAGE as usize) {
            let word = u64::from_le_bytes(self.read(gpa));
            let touched = pages == (gpa - TOUCH_FROM) / PAGE && word == gpa;
            assert!(touched || word == 0, "{word:#x} at gpa {gpa:#x}");
            pages += u64::from(touched);
        }
        assert_eq!(pages % 256, 0, "the guest touches whole MiB");
        pages / 256
    }

    /// What the guest has echoed.
    pub fn kept(&self) -> String {
        let bytes = (KEEP_FROM..TOUCH_FROM)
            .step_by(PAGE as usize)
            .map(|gpa| self.read::<1>(gpa)[0])
            .take_while(|byte| *byte != 0);
        bytes.map(char::from).collect()
    }

    /// The generation ID, as raw hex text.
    pub fn generation_id(&self) -> String {
        let id = self.read::<16>(GENERATION_ID);
        id.map(|byte| format!("{byte:02x}")).concat()
    }
}
