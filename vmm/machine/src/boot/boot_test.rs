//! Which files are kernels.

use std::io::Write;

use super::*;
use crate::config::Cmdline;
use crate::memory::Memory;

fn load_from(memory: &GuestMemory, source: &BootSource) -> Result<Images, BootError> {
    let files = match open_source(source, 32 << 20)? {
        Opened::Files(files) => files,
        Opened::Image(unread) => unread.read()?,
    };
    load(memory, 32 << 20, source, files)
}

fn source(kernel: &Path) -> BootSource {
    BootSource {
        kernel: kernel.to_owned(),
        initrd: None,
        cmdline: Cmdline::default(),
    }
}

#[test]
fn a_missing_kernel_is_named() {
    let error = check(&source(Path::new("/nowhere/vmlinux"))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "could not read the kernel /nowhere/vmlinux"
    );
}

#[test]
fn a_directory_is_no_kernel() {
    assert!(check(&source(&std::env::temp_dir())).is_err());
}

#[test]
fn rubbish_is_no_kernel() {
    let memory = Memory::anonymous(32 << 20).unwrap();
    for content in [
        &b""[..],
        b"abc",
        &[0x7f; 5000],
        b"\x7fELF",
        &[b"\x7fELF".as_slice(), &[0xff; 6000]].concat(),
    ] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let result = load_from(memory.map(), &source(file.path()));
        assert!(result.is_err(), "{} bytes", content.len());
    }
}

/// A bzImage's header, of one that has so many bytes in all, cut or filled to `len` bytes.
fn bzimage(syssize: u32, len: usize) -> Vec<u8> {
    let mut file = vec![0; 0x268];
    file[0x1f1] = 1;
    file[0x1f4..0x1f8].copy_from_slice(&syssize.to_le_bytes());
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    file.resize(len, 0);
    file
}

#[test]
fn what_is_no_kernel_or_is_cut_is_told_as_such() {
    let memory = Memory::anonymous(32 << 20).unwrap();
    let mut program = [0u8; 64];
    program[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    program[16..20].copy_from_slice(&[3, 0, 0x3e, 0]);
    program[24..32].copy_from_slice(&0x6000_u64.to_le_bytes());
    program[32] = 64;
    program[54] = 56;
    let none = "is neither an ELF vmlinux nor a bzImage";
    for (content, part) in [
        (b"".to_vec(), none),
        (b"some text\n".to_vec(), none),
        (b"\x7fELF".to_vec(), none),
        (vec![b'x'; 5000], none),
        (bzimage(0x10, 0x203), none),
        (
            bzimage(0x10, 0x210),
            "is truncated: it has 528 bytes of 1280,",
        ),
        (
            bzimage(0x8_0000, 1024),
            "is truncated: it has 1024 bytes of 8389632,",
        ),
        (
            bzimage(0x10, 1279),
            "is truncated: it has 1279 bytes of 1280,",
        ),
        (program.to_vec(), "is a position-independent program"),
    ] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&content).unwrap();
        let error = load_from(memory.map(), &source(file.path())).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_fifo_is_no_kernel_and_nobody_waits_for_its_writer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert!(check(&source(&path)).is_err());
}

#[test]
fn an_elf_kernel_of_another_machine_is_refused_by_name() {
    // AArch64.
    let mut elf = [0u8; 64];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[16..20].copy_from_slice(&[2, 0, 183, 0]);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&elf).unwrap();
    let memory = Memory::anonymous(32 << 20).unwrap();
    let error = load_from(memory.map(), &source(file.path())).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("not for x86_64 (its e_machine is 183"),
        "{error}"
    );
}

#[test]
fn a_kernel_whose_bss_reaches_the_system_area_is_refused() {
    // One loadable segment of no bytes in the file and 40 MiB in memory.
    let mut elf = vec![0u8; 64 + 56 + 8];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[16..20].copy_from_slice(&[2, 0, 0x3e, 0]);
    elf[24..32].copy_from_slice(&0x10_0000u64.to_le_bytes());
    elf[32..40].copy_from_slice(&64u64.to_le_bytes());
    elf[54..58].copy_from_slice(&[56, 0, 1, 0]);
    elf[64..68].copy_from_slice(&1u32.to_le_bytes());
    elf[72..80].copy_from_slice(&120u64.to_le_bytes());
    elf[88..96].copy_from_slice(&0x10_0000u64.to_le_bytes());
    elf[96..104].copy_from_slice(&8u64.to_le_bytes());
    elf[104..112].copy_from_slice(&(40u64 << 20).to_le_bytes());
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&elf).unwrap();
    let memory = Memory::anonymous(32 << 20).unwrap();
    let error = load_from(memory.map(), &source(file.path())).unwrap_err();
    assert!(
        matches!(error, BootError::TooSmall { kernel_end, .. } if kernel_end == 41 << 20),
        "{error}"
    );
}

#[test]
fn an_initrd_that_does_not_fit_is_refused_with_its_size() {
    let memory = Memory::anonymous(32 << 20).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(33 << 20).unwrap();
    let kernel = KernelLoaderResult {
        kernel_end: 2 << 20,
        ..Default::default()
    };
    let content = file.reopen().unwrap();
    let error = load_initrd(memory.map(), 32 << 20, file.path(), content, &kernel).unwrap_err();
    assert!(matches!(error, BootError::TooSmall { initrd_len, .. } if initrd_len == 33 << 20));
}
