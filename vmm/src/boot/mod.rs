//! Boot: kernel, initrd and command line into guest memory, and how the first vCPU enters the kernel.
//!
//! An ELF kernel with a PVH note is entered in 32-bit protected mode (`hvm_start_info`), any other ELF kernel and a bzImage by
//! the 64-bit boot protocol of Linux (`Documentation/arch/x86/boot.rst`).

mod image;
mod linux64;

mod pvh;

pub use image::ImageError;
pub(crate) use image::{READER, reader_main};
pub(crate) use linux64::GDT;

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use crate::config::{BootSource, Cmdline};
use crate::machine::layout;
use crate::machine::memory::GuestMemory;
use crate::snapshot::open_regular;

/// The `e_machine` of x86_64.
const EM_X86_64: u16 = 62;

/// Why a guest could not be booted.
#[derive(Debug, Error)]
pub enum BootError {
    /// A file could not be opened or read.
    #[error("could not read the {what} {}", path.display())]
    File {
        /// Kernel or initrd.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image of a root file system has nothing to boot.
    #[error("could not boot from the image {}", .0.display())]
    Image(PathBuf, #[source] ImageError),
    /// The kernel is neither an ELF file nor a bzImage.
    #[error("{} is neither an ELF vmlinux nor a bzImage, nor an image with an ext4 file system", .0.display())]
    NotAKernel(PathBuf),
    /// The kernel is for another machine: the ELF header's `e_machine`.
    #[error("the ELF kernel {} is not for x86_64 (its e_machine is {machine}, not {EM_X86_64})", path.display())]
    OtherMachine {
        /// The file.
        path: PathBuf,
        /// What it is for.
        machine: u16,
    },
    /// The kernel cannot be entered in 64-bit mode.
    #[error(
        "the bzImage {} has no 64-bit entry point: it is a 32-bit kernel, or one from before Linux 3.8",
        .0.display()
    )]
    No64BitEntry(PathBuf),
    /// The kernel could not be loaded.
    #[error("could not load the kernel {} into {memory_mib} MiB of guest memory", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// The size of guest memory.
        memory_mib: u64,
        /// Why.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// The memory is too small for the kernel and the initrd.
    #[error(
        "the guest memory is too small: the kernel ends at {kernel_end:#x}, and an initrd of {initrd_len} bytes must fit \
         between it and {limit:#x}; give the guest more memory"
    )]
    TooSmall {
        /// Where the kernel ends.
        kernel_end: u64,
        /// The length of the initrd.
        initrd_len: u64,
        /// Where the initrd must end.
        limit: u64,
    },
    /// Boot data could not be written.
    #[error("could not write the {0} to guest memory")]
    Write(&'static str, #[source] vm_memory::GuestMemoryError),
}

/// How the first vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode without paging, `ebx` points to the start info.
    Pvh {
        /// The instruction pointer.
        rip: u64,
    },
    /// Long mode with identity paging, `rsi` points to the zero page.
    Linux64 {
        /// The instruction pointer.
        rip: u64,
    },
}

/// Where the initrd lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Initrd {
    gpa: u64,
    len: u64,
}

/// Kernel and initrd in guest memory.
#[derive(Debug)]
pub struct Images {
    kernel: KernelLoaderResult,
    initrd: Option<Initrd>,
}

/// Loads kernel and initrd into `memory` (of `memory_bytes` bytes).
///
/// *Before* anything else is written there: a kernel file may want any address, and what the machine itself needs (ACPI tables,
/// generation ID, boot data) must win.
pub fn load(
    memory: &GuestMemory,
    memory_bytes: u64,
    source: &BootSource,
) -> Result<Images, BootError> {
    let (kernel, initrd) = open_source(source, memory_bytes)?;
    let kernel = load_kernel(memory, memory_bytes, &source.kernel, kernel)?;
    let (kernel_end, _) = limits(&kernel);
    let limit = layout::system_area(memory_bytes).0;
    if kernel_end > limit {
        return Err(BootError::TooSmall {
            kernel_end,
            initrd_len: 0,
            limit,
        });
    }
    let initrd = match initrd {
        Some((path, file)) => Some(load_initrd(memory, memory_bytes, path, file, &kernel)?),
        None => None,
    };
    Ok(Images { kernel, initrd })
}

impl Images {
    /// Writes what the kernel is told, and says how to enter it. `rsdp` is the gpa of the ACPI RSDP.
    pub fn write_boot_data(
        self,
        memory: &GuestMemory,
        memory_bytes: u64,
        cmdline: &Cmdline,
        rsdp: u64,
    ) -> Result<Entry, BootError> {
        let Self { kernel, initrd } = self;
        let cmdline = cmdline.as_str();
        write_cmdline(memory, cmdline)?;
        let map = layout::e820(memory_bytes);
        match (kernel.setup_header, kernel.pvh_boot_cap) {
            (None, PvhBootCapability::PvhEntryPresent(entry)) => {
                pvh::write(memory, &map, initrd, rsdp)?;
                Ok(Entry::Pvh { rip: entry.0 })
            }
            (header, _) => {
                linux64::write(memory, &map, initrd, rsdp, cmdline.len(), header)?;
                // A bzImage's 64-bit entry point is 0x200 behind its start; an ELF file names its own.
                let offset = if header.is_some() { 0x200 } else { 0 };
                Ok(Entry::Linux64 {
                    rip: kernel.kernel_load.0 + offset,
                })
            }
        }
    }
}

/// Opens both files, so that a wrong path is told when it is set, not when the machine starts.
pub fn check(source: &BootSource) -> Result<(), BootError> {
    if let Kernel::Image(image) = open_kernel(&source.kernel)? {
        let in_image = |error| BootError::Image(source.kernel.clone(), error);
        image.check().map_err(in_image)?;
    }
    if let Some(initrd) = &source.initrd {
        open("initrd", initrd)?;
    }
    Ok(())
}

fn open(what: &'static str, path: &Path) -> Result<File, BootError> {
    let at = |source| BootError::File {
        what,
        path: path.to_owned(),
        source,
    };
    match open_regular(path).map_err(at)? {
        Some((file, _)) => Ok(file),
        None => Err(at(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ))),
    }
}

/// A file, and the path that it has to those who read errors.
type Named<'a> = (&'a Path, File);

/// What the path of a kernel leads to.
enum Kernel {
    /// Taken to be a kernel.
    File(File),
    /// A root file system with a kernel.
    Image(image::Image),
}

fn open_kernel(path: &Path) -> Result<Kernel, BootError> {
    use rustix::fs::{Mode, OFlags};

    let at = |source| BootError::File {
        what: "kernel",
        path: path.to_owned(),
        source,
    };
    let in_image = |error| BootError::Image(path.to_owned(), error);
    // Without NONBLOCK the open of a FIFO would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|e| at(e.into()))?);
    let kind = file.metadata().map_err(at)?.file_type();
    if kind.is_file() || kind.is_block_device() {
        match image::in_file(file).map_err(in_image)? {
            Ok(image) => return Ok(Kernel::Image(image)),
            Err(file) if kind.is_file() => return Ok(Kernel::File(file)),
            Err(_) => {}
        }
    }
    Err(at(io::Error::new(
        io::ErrorKind::InvalidInput,
        "neither a regular file nor an image",
    )))
}

/// The kernel and the initrd, for a guest with so much memory. An image's own initrd is taken where no other is named.
fn open_source(
    source: &BootSource,
    memory_bytes: u64,
) -> Result<(File, Option<Named<'_>>), BootError> {
    let in_image = |error| BootError::Image(source.kernel.clone(), error);
    let named = match &source.initrd {
        Some(path) => Some((path.as_path(), open("initrd", path)?)),
        None => None,
    };
    match open_kernel(&source.kernel)? {
        Kernel::File(kernel) => Ok((kernel, named)),
        Kernel::Image(image) => {
            let found = image.contents(memory_bytes).map_err(in_image)?;
            let own = found.initrd.map(|file| (source.kernel.as_path(), file));
            Ok((found.kernel, named.or(own)))
        }
    }
}

fn load_kernel(
    memory: &GuestMemory,
    memory_bytes: u64,
    path: &Path,
    mut file: File,
) -> Result<KernelLoaderResult, BootError> {
    // Up to `e_machine`; a bzImage is longer as well.
    let mut header = [0; 20];
    file.read_exact(&mut header)
        .and_then(|()| file.rewind())
        .map_err(|source| BootError::File {
            what: "kernel",
            path: path.to_owned(),
            source,
        })?;
    let start = Some(layout::HIGH_RAM_START);
    let loaded = if header.starts_with(b"\x7fELF") {
        // An ELF file says in its sixth byte if it is big-endian, and is then not for x86_64 either.
        let machine = u16::from_le_bytes([header[18], header[19]]);
        if machine != EM_X86_64 {
            return Err(BootError::OtherMachine {
                path: path.to_owned(),
                machine,
            });
        }
        Elf::load(memory, None, &mut file, start)
    } else {
        BzImage::load(memory, None, &mut file, start)
    };
    let loaded = loaded.map_err(|source| match source {
        linux_loader::loader::Error::Bzimage(
            linux_loader::loader::bzimage::Error::InvalidBzImage,
        ) => BootError::NotAKernel(path.to_owned()),
        source => BootError::Kernel {
            path: path.to_owned(),
            memory_mib: memory_bytes >> 20,
            source,
        },
    })?;
    // Boot protocol 2.12 says whether there is a 64-bit entry point (`XLF_KERNEL_64`).
    match &loaded.setup_header {
        Some(header) if header.version < 0x20c || header.xloadflags & 1 == 0 => {
            Err(BootError::No64BitEntry(path.to_owned()))
        }
        _ => Ok(loaded),
    }
}

/// Puts the initrd as high below the system area as the kernel allows.
fn load_initrd(
    memory: &GuestMemory,
    memory_bytes: u64,
    path: &Path,
    mut file: File,
    kernel: &KernelLoaderResult,
) -> Result<Initrd, BootError> {
    let at = |source| BootError::File {
        what: "initrd",
        path: path.to_owned(),
        source,
    };
    let len = file.metadata().map_err(at)?.len();
    let (kernel_end, highest) = limits(kernel);
    let limit = layout::system_area(memory_bytes)
        .0
        .min(highest.saturating_add(1));
    let gpa = limit
        .checked_sub(len)
        .map(|gpa| gpa & !0xfff)
        .filter(|gpa| *gpa >= kernel_end);
    let Some(gpa) = gpa else {
        return Err(BootError::TooSmall {
            kernel_end,
            initrd_len: len,
            limit,
        });
    };
    // `len` is below `limit`, which fits a usize.
    let count = usize::try_from(len).map_err(|e| at(io::Error::other(e)))?;
    memory
        .read_exact_volatile_from(GuestAddress(gpa), &mut file, count)
        .map_err(|source| BootError::Write("initrd", source))?;
    Ok(Initrd { gpa, len })
}

/// Where the kernel ends once it runs, and how high its initrd may end.
fn limits(kernel: &KernelLoaderResult) -> (u64, u64) {
    match &kernel.setup_header {
        Some(header) => bzimage_limits(kernel.kernel_load, header),
        None => (kernel.kernel_end, u64::from(u32::MAX)),
    }
}

/// How far a bzImage's kernel reaches once it has unpacked itself, and how high its initrd may end.
fn bzimage_limits(load: GuestAddress, header: &setup_header) -> (u64, u64) {
    let unpacked = load
        .0
        .max(header.pref_address)
        .saturating_add(u64::from(header.init_size));
    (unpacked, u64::from(header.initrd_addr_max))
}

fn write_cmdline(memory: &GuestMemory, cmdline: &str) -> Result<(), BootError> {
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    memory
        .write_slice(&bytes, layout::CMDLINE)
        .map_err(|source| BootError::Write("command line", source))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::config::Cmdline;
    use crate::machine::memory::Memory;

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
            let result = load(memory.map(), 32 << 20, &source(file.path()));
            assert!(result.is_err(), "{} bytes", content.len());
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
        let error = load(memory.map(), 32 << 20, &source(file.path())).unwrap_err();
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
        let error = load(memory.map(), 32 << 20, &source(file.path())).unwrap_err();
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
}
