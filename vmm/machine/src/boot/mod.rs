//! Boot: kernel, initrd and command line into guest memory, and how the first vCPU enters the kernel.
//!
//! An ELF kernel with a PVH note is entered in 32-bit protected mode (`hvm_start_info`), any other ELF kernel and a bzImage by
//! the 64-bit boot protocol of Linux (`Documentation/arch/x86/boot.rst`).

mod image;
mod linux64;

mod pvh;

pub use image::ImageError;
pub use image::{READER, reader_main};
pub(crate) use linux64::GDT;

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, Error as LoaderError, KernelLoader, KernelLoaderResult};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};
use vmgenie_snapshot::open_regular;

use crate::config::{BootSource, Cmdline};
use crate::layout;
use crate::memory::GuestMemory;

/// The `e_machine` of x86_64.
const EM_X86_64: u16 = 62;
/// The `e_type` of a shared object, which a position-independent program is as well.
const ET_DYN: u16 = 3;
/// Where these are in an ELF file.
const E_TYPE: usize = 16;
const E_MACHINE: usize = 18;
/// Where a bzImage's setup header begins, and the magic number in that.
const SETUP_HEADER: usize = 0x1f1;
const SETUP_MAGIC: usize = 0x202 - SETUP_HEADER;
/// How much of a kernel file tells what it is.
const HEADER_LEN: usize = 0x206;

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
    /// An ELF file that is a program or a library.
    #[error(
        "{} is a position-independent program or a library (its e_type is ET_DYN), not a vmlinux, which is linked to fixed addresses",
        .0.display()
    )]
    NotAVmlinux(PathBuf),
    /// The end of a bzImage is missing.
    #[error(
        "the bzImage {} is truncated: it has {len} bytes of {needed}, by what its header says",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// How many bytes it has.
        len: u64,
        /// How many its header tells of.
        needed: u64,
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

/// Loads kernel and initrd, which are `files` of `source`, into `memory` (of `memory_bytes` bytes).
///
/// *Before* anything else is written there: a kernel file may want any address, and what the machine itself needs (ACPI tables,
/// generation ID, boot data) must win.
pub fn load(
    memory: &GuestMemory,
    memory_bytes: u64,
    source: &BootSource,
    files: Files,
) -> Result<Images, BootError> {
    let Files { kernel, initrd } = files;
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
        Some((path, file)) => Some(load_initrd(memory, memory_bytes, &path, file, &kernel)?),
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
type Named = (PathBuf, File);

/// The files that a guest is booted from.
#[derive(Debug)]
pub struct Files {
    kernel: File,
    initrd: Option<Named>,
}

/// What a guest is booted from, as far as it is there at once.
#[derive(Debug)]
pub enum Opened {
    /// The files.
    Files(Files),
    /// An image that they have yet to be read from.
    Image(Unread),
}

/// An image whose files have yet to be read, which may take long if a guest has made it so.
#[derive(Debug)]
pub struct Unread {
    image: image::Image,
    path: PathBuf,
    initrd: Option<Named>,
    memory_bytes: u64,
}

impl Unread {
    /// Reads them. An image's own initrd is taken where no other is named.
    pub fn read(self) -> Result<Files, BootError> {
        let Self {
            image,
            path,
            initrd,
            memory_bytes,
        } = self;
        match image.contents(memory_bytes) {
            Ok(found) => Ok(Files {
                kernel: found.kernel,
                initrd: initrd.or(found.initrd.map(|file| (path, file))),
            }),
            Err(error) => Err(BootError::Image(path, error)),
        }
    }
}

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

/// Opens the kernel and the initrd, for a guest with so much memory.
pub fn open_source(source: &BootSource, memory_bytes: u64) -> Result<Opened, BootError> {
    let initrd = match &source.initrd {
        Some(path) => Some((path.clone(), open("initrd", path)?)),
        None => None,
    };
    Ok(match open_kernel(&source.kernel)? {
        Kernel::File(kernel) => Opened::Files(Files { kernel, initrd }),
        Kernel::Image(image) => Opened::Image(Unread {
            image,
            path: source.kernel.clone(),
            initrd,
            memory_bytes,
        }),
    })
}

fn load_kernel(
    memory: &GuestMemory,
    memory_bytes: u64,
    path: &Path,
    mut file: File,
) -> Result<KernelLoaderResult, BootError> {
    let at = |source| BootError::File {
        what: "kernel",
        path: path.to_owned(),
        source,
    };
    let header = read_header(&file).map_err(at)?;
    file.rewind().map_err(at)?;
    let start = Some(layout::HIGH_RAM_START);
    let mut elf_type = 0;
    let loaded = if header.starts_with(b"\x7fELF") {
        let field = |at: usize| match header.get(at..at + 2) {
            Some(&[low, high]) => Ok(u16::from_le_bytes([low, high])),
            _ => Err(BootError::NotAKernel(path.to_owned())),
        };
        elf_type = field(E_TYPE)?;
        // An ELF file says in its sixth byte if it is big-endian, and is then not for x86_64 either.
        let machine = field(E_MACHINE)?;
        if machine != EM_X86_64 {
            return Err(BootError::OtherMachine {
                path: path.to_owned(),
                machine,
            });
        }
        Elf::load(memory, None, &mut file, start)
    } else {
        let Some(needed) = bzimage_len(&header) else {
            return Err(BootError::NotAKernel(path.to_owned()));
        };
        let len = file.metadata().map_err(at)?.len();
        if len < needed {
            let path = path.to_owned();
            return Err(BootError::Truncated { path, len, needed });
        }
        BzImage::load(memory, None, &mut file, start)
    };
    let loaded = loaded.map_err(|source| match source {
        LoaderError::Bzimage(linux_loader::loader::bzimage::Error::InvalidBzImage) => {
            BootError::NotAKernel(path.to_owned())
        }
        LoaderError::Elf(linux_loader::loader::elf::Error::InvalidEntryAddress)
            if elf_type == ET_DYN =>
        {
            BootError::NotAVmlinux(path.to_owned())
        }
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

/// The beginning of a kernel file: what tells its kind and, of a bzImage, its length. Less if the file has less.
fn read_header(file: &File) -> io::Result<Vec<u8>> {
    let mut header = Vec::with_capacity(HEADER_LEN);
    file.take(HEADER_LEN as u64).read_to_end(&mut header)?;
    Ok(header)
}

/// How long a bzImage is by what it says (Documentation/arch/x86/boot.rst): the setup's sectors and the boot sector, and the kernel behind them. None if it
/// is no bzImage.
fn bzimage_len(header: &[u8]) -> Option<u64> {
    let (_, header) = header.split_at_checked(SETUP_HEADER)?;
    let (&sectors, syssize) = (header.first()?, header.get(3..7)?);
    if header.get(SETUP_MAGIC..SETUP_MAGIC + 4)? != b"HdrS" {
        return None;
    }
    let syssize = u32::from_le_bytes(syssize.try_into().ok()?);
    // For reasons of the past, 0 is 4.
    let sectors = if sectors == 0 { 4 } else { u64::from(sectors) };
    Some((sectors + 1) * 512 + u64::from(syssize) * 16)
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
#[path = "boot_test.rs"]
mod tests;
