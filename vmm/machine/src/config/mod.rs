//! What a microVM is made of, after everything that arrived from outside has been checked.

mod devices;
mod names;

use std::path::PathBuf;

use thiserror::Error;

pub use devices::{
    CacheMode, DeviceOverrides, DriveConfig, DriveOverride, DriveSource, IoEngine, NetConfig,
    NetOverride, PartUuid, VsockConfig, VsockOverride, VsockPeers,
};
pub use vmgenie_devices::fw_cfg::{
    FILE_LEN as MAX_INSTANCE_DATA_LEN, InstanceData, InstanceDataError,
};

pub use names::{
    Cid, DeviceId, InterfaceName, MAX_CID, MAX_DEVICE_ID_LEN, MAX_INTERFACE_LEN, MIN_CID, MIN_MTU,
    MacAddress, Mtu,
};

/// The smallest guest memory, in MiB.
pub const MIN_MEMORY_MIB: u64 = 32;
/// The largest guest memory, in MiB: 4 TiB. One KVM memory slot holds less than 8 TiB.
pub const MAX_MEMORY_MIB: u64 = 4 << 20;
/// The largest number of vCPUs.
pub const MAX_VCPUS: u8 = 32;
/// The longest kernel command line, in bytes, without its terminating zero (Linux's `COMMAND_LINE_SIZE` on x86).
pub const MAX_CMDLINE_LEN: usize = 2047;
/// The kernel command line that is used when none is given.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0";

/// A machine configuration that is out of range.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The number of vCPUs is out of range.
    #[error("{0} vCPUs asked for: a microVM has 1 to {MAX_VCPUS}")]
    Vcpus(u64),
    /// The size of the memory is out of range.
    #[error("{0} MiB of memory asked for: a microVM has {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB")]
    Memory(u64),
    /// Two threads a core, and an odd number of vCPUs.
    #[error(
        "{0} vCPUs with smt asked for: with two threads on each core there is 1, or an even number"
    )]
    OddThreads(u8),
    /// Memory that huge pages cannot hold.
    #[error("{0} MiB of memory in huge pages of 2 MiB asked for: the size must be even")]
    OddHugePages(u64),
    /// The kernel command line is too long.
    #[error("the kernel command line has {0} bytes: it may have {MAX_CMDLINE_LEN} at most")]
    CmdlineTooLong(usize),
    /// The kernel command line holds a byte that cannot be passed on.
    #[error(
        "the kernel command line holds a zero byte or a byte outside of printable ASCII at offset {0}"
    )]
    CmdlineByte(usize),
    /// A device without a name.
    #[error("The ID cannot be empty.")]
    EmptyId,
    /// A device's name is too long.
    #[error("the ID has {0} bytes: it may have {MAX_DEVICE_ID_LEN} at most")]
    IdTooLong(usize),
    /// A device's name has a character that is not allowed.
    #[error("API Resource IDs can only contain alphanumeric characters and underscores.")]
    IdCharacter,
    /// No interface of the host can have this name.
    #[error(
        "{0:?} is no name of a network interface: 1 to {MAX_INTERFACE_LEN} bytes without white space and / : %"
    )]
    InterfaceName(String),
    /// A malformed MAC address.
    #[error("{0:?} is no MAC address: write six pairs of hexadecimal digits, 06:00:ac:10:00:02")]
    Mac(String),
    /// The MTU is out of range.
    #[error("an MTU of {0} was asked for: it may be {MIN_MTU} to 65535")]
    Mtu(u64),
    /// The CID is out of range.
    #[error("the guest CID {0} was asked for: it may be {MIN_CID} to {MAX_CID}")]
    Cid(u64),
    /// A malformed partition UUID.
    #[error("partuuid may have 1 to 64 letters, digits and the characters - / =")]
    PartUuid,
    /// Two root drives.
    #[error("there is a root drive already: at most one drive has is_root_device")]
    SecondRoot,
    /// Two interfaces with one MAC address.
    #[error("The MAC address is already in use: {0}")]
    MacInUse(MacAddress),
    /// Two interfaces on one tap.
    #[error("the tap {0} is used by another network interface of this microVM")]
    TapInUse(InterfaceName),
    /// A drive that is not there.
    #[error("there is no drive {0}")]
    NoSuchDrive(DeviceId),
    /// An overlay to which nobody may write.
    #[error("the drive {0} is read-only: it needs no overlay")]
    ReadOnlyOverlay(DeviceId),
    /// A copy of a drive that is two files.
    #[error(
        "the drive {0} has an overlay on another file: ask for an overlay, which will be a copy of that one, in place of a copy"
    )]
    CopyOfOverlay(DeviceId),
    /// Two overrides of one drive.
    #[error("another file is named twice for the drive {0} (--drive; drive_overrides in the API)")]
    OverriddenTwice(DeviceId),
    /// An interface that is not there.
    #[error("there is no network interface {0}")]
    NoSuchNet(DeviceId),
    /// A vsock override without a vsock device.
    #[error("there is no vsock device")]
    NoVsock,
    /// A string that cannot be given to a guest.
    #[error(transparent)]
    InstanceData(#[from] InstanceDataError),
    /// A list of devices that contradicts itself.
    #[error(
        "the list of devices contradicts itself: a name appears twice, or the root drive is not the first"
    )]
    Contradiction,
}

/// vCPUs and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineConfig {
    vcpus: u8,
    memory_mib: u64,
    smt: bool,
    huge_pages: HugePages,
}

/// The pages behind the memory of a machine that boots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HugePages {
    /// The host's usual ones.
    #[default]
    None,
    /// Usual ones, which the host's kernel joins where it can (`MADV_HUGEPAGE`).
    Transparent,
    /// 2 MiB each, which the host's administrator has set aside (`vm.nr_hugepages`).
    TwoMib,
}

impl Default for MachineConfig {
    /// 1 vCPU and 128 MiB, as Firecracker has it.
    fn default() -> Self {
        Self {
            vcpus: 1,
            memory_mib: 128,
            smt: false,
            huge_pages: HugePages::None,
        }
    }
}

impl MachineConfig {
    /// Checks the ranges: 1 to [`MAX_VCPUS`] vCPUs, [`MIN_MEMORY_MIB`] to [`MAX_MEMORY_MIB`] MiB.
    pub fn new(vcpus: u64, memory_mib: u64) -> Result<Self, ConfigError> {
        let checked = u8::try_from(vcpus)
            .ok()
            .filter(|n| (1..=MAX_VCPUS).contains(n))
            .ok_or(ConfigError::Vcpus(vcpus))?;
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&memory_mib) {
            return Err(ConfigError::Memory(memory_mib));
        }
        Ok(Self {
            vcpus: checked,
            memory_mib,
            ..Self::default()
        })
    }

    /// The same with two vCPUs as the threads of each core, or without.
    ///
    /// # Errors
    /// Where one core would have one thread: more than one vCPU, and an odd number.
    pub fn with_smt(self, smt: bool) -> Result<Self, ConfigError> {
        if smt && self.vcpus > 1 && !self.vcpus.is_multiple_of(2) {
            return Err(ConfigError::OddThreads(self.vcpus));
        }
        Ok(Self { smt, ..self })
    }

    /// The same with memory in such pages.
    ///
    /// # Errors
    /// They are of 2 MiB, and the memory is no multiple of that.
    pub fn with_huge_pages(self, huge_pages: HugePages) -> Result<Self, ConfigError> {
        if huge_pages == HugePages::TwoMib && !self.memory_mib.is_multiple_of(2) {
            return Err(ConfigError::OddHugePages(self.memory_mib));
        }
        Ok(Self { huge_pages, ..self })
    }

    /// Are two vCPUs the threads of a core? A single vCPU is a core of its own nevertheless.
    pub fn smt(&self) -> bool {
        self.smt
    }

    /// The pages behind the memory, when the machine boots.
    pub fn huge_pages(&self) -> HugePages {
        self.huge_pages
    }

    /// The number of vCPUs.
    pub fn vcpus(&self) -> u8 {
        self.vcpus
    }

    /// The size of the guest's memory in MiB.
    pub fn memory_mib(&self) -> u64 {
        self.memory_mib
    }

    /// The size of the guest's memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_mib << 20
    }
}

/// What the guest boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootSource {
    /// An ELF `vmlinux` or a bzImage; or the image of a root file system, in which the kernel and its initial RAM disk are.
    pub kernel: PathBuf,
    /// An initial RAM disk, other than the image's.
    pub initrd: Option<PathBuf>,
    /// The kernel command line.
    pub cmdline: Cmdline,
}

/// A kernel command line: printable ASCII of at most [`MAX_CMDLINE_LEN`] bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cmdline(String);

impl Default for Cmdline {
    fn default() -> Self {
        Self(DEFAULT_CMDLINE.to_owned())
    }
}

impl Cmdline {
    /// Checks length and characters.
    pub fn new(text: &str) -> Result<Self, ConfigError> {
        if text.len() > MAX_CMDLINE_LEN {
            return Err(ConfigError::CmdlineTooLong(text.len()));
        }
        match text.bytes().position(|b| !(0x20..0x7f).contains(&b)) {
            Some(offset) => Err(ConfigError::CmdlineByte(offset)),
            None => Ok(Self(text.to_owned())),
        }
    }

    /// This command line with what tells the kernel of the root drive at its end: `root=`, and `ro` or `rw`. The kernel takes the
    /// last of several, so this one wins.
    pub fn with_root(&self, drive: &DriveConfig) -> Result<Self, ConfigError> {
        let root = match &drive.partuuid {
            Some(uuid) => format!("PARTUUID={}", uuid.as_str()),
            None => "/dev/vda".to_owned(),
        };
        let mode = if drive.read_only { "ro" } else { "rw" };
        // What follows a `--` is for the first program, not for the kernel.
        let (kernel, init) = match self.first_argument_of_init() {
            Some(at) => (self.0[..at].trim_end(), format!(" {}", &self.0[at..])),
            None => (self.0.as_str(), String::new()),
        };
        Self::new(format!("{kernel} root={root} {mode}{init}").trim_start())
    }

    /// Where the word `--` is.
    fn first_argument_of_init(&self) -> Option<usize> {
        let mut at = 0;
        for word in self.0.split(' ') {
            if word == "--" {
                return Some(at);
            }
            at += word.len() + 1;
        }
        None
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a `reboot` in the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnReboot {
    /// The machine starts again from its boot source; its generation ID stays.
    Restart,
    /// The process ends with status 0.
    #[default]
    Exit,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_1_to_32_vcpus() {
        assert_eq!(MachineConfig::new(0, 128), Err(ConfigError::Vcpus(0)));
        assert_eq!(MachineConfig::new(33, 128), Err(ConfigError::Vcpus(33)));
        assert_eq!(
            MachineConfig::new(u64::MAX, 128),
            Err(ConfigError::Vcpus(u64::MAX))
        );
        assert_eq!(MachineConfig::new(32, 128).unwrap().vcpus(), 32);
        for (vcpus, fits) in [(1, true), (2, true), (3, false), (31, false), (32, true)] {
            let config = MachineConfig::new(vcpus, 128).unwrap();
            assert!(config.with_smt(false).is_ok());
            assert_eq!(config.with_smt(true).is_ok(), fits, "{vcpus}");
        }
    }

    #[test]
    fn a_machine_has_at_least_32_mib_and_fits_the_address_space() {
        assert_eq!(MachineConfig::new(1, 31), Err(ConfigError::Memory(31)));
        assert!(MachineConfig::new(1, MAX_MEMORY_MIB + 1).is_err());
        assert_eq!(MachineConfig::new(1, 32).unwrap().memory_bytes(), 32 << 20);
        let odd = MachineConfig::new(1, 33).unwrap();
        assert!(odd.with_huge_pages(HugePages::Transparent).is_ok());
        assert_eq!(
            odd.with_huge_pages(HugePages::TwoMib),
            Err(ConfigError::OddHugePages(33))
        );
    }

    #[test]
    fn a_command_line_is_printable_and_short() {
        assert_eq!(Cmdline::new("a\0b"), Err(ConfigError::CmdlineByte(1)));
        assert!(Cmdline::new(&"x".repeat(MAX_CMDLINE_LEN)).is_ok());
        assert!(Cmdline::new(&"x".repeat(MAX_CMDLINE_LEN + 1)).is_err());
    }

    #[test]
    fn a_root_drive_is_told_to_the_kernel_and_not_to_the_first_program() {
        let mut drive = DriveConfig {
            overlay: None,
            id: DeviceId::new("root").unwrap(),
            path: PathBuf::new(),
            read_only: true,
            is_root: true,
            cache: CacheMode::Unsafe,
            io_engine: IoEngine::Sync,
            partuuid: None,
        };
        let with_root = |cmdline: &str, drive: &DriveConfig| {
            let made = Cmdline::new(cmdline).unwrap().with_root(drive).unwrap();
            made.as_str().to_owned()
        };
        assert_eq!(with_root("quiet", &drive), "quiet root=/dev/vda ro");
        assert_eq!(with_root("", &drive), "root=/dev/vda ro");
        assert_eq!(with_root("quiet --", &drive), "quiet root=/dev/vda ro --");
        assert_eq!(with_root("-- x", &drive), "root=/dev/vda ro -- x");
        assert_eq!(
            with_root("quiet -- single", &drive),
            "quiet root=/dev/vda ro -- single"
        );
        drive.read_only = false;
        drive.partuuid = Some(PartUuid::new("0eaa91a0-01").unwrap());
        assert_eq!(
            with_root("quiet", &drive),
            "quiet root=PARTUUID=0eaa91a0-01 rw"
        );
        let full = Cmdline::new(&"x".repeat(MAX_CMDLINE_LEN)).unwrap();
        assert!(full.with_root(&drive).is_err());
    }
}
