//! What a snapshot holds of a machine besides its memory: plain data, no ioctl.

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip,
    kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_pit_state2, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};
use serde::{Deserialize, Serialize};
use vmgenie_devices::bounded;
use vmgenie_devices::fw_cfg::FwCfgState;
use vmgenie_devices::pm::PowerManagementState;
use vmgenie_devices::serial::SerialPortState;
use vmgenie_devices::sgen::{SysGenState, SysGenStateV1, SysGenStateV2};
use vmgenie_devices::vmclock::VmClockState;
use vmgenie_devices::vmgenid::{VmGenIdState, VmGenIdStateV1};

use vmgenie_snapshot::Part;

/// More MSRs than any KVM lists: it knows some hundred.
const MAX_MSRS: usize = 1024;
/// More than any processor's XSAVE area has today, in bytes: with AMX about 11,000.
const MAX_XSAVE_LEN: usize = 64 << 10;

/// What the machine is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// The number of vCPUs.
    pub vcpus: u8,
    /// The size of guest memory in MiB.
    pub memory_mib: u64,
    /// Two vCPUs are the threads of a core; the guest's view of it is in the vCPUs' CPUID.
    pub smt: bool,
}

impl Part for MachineState {
    const TAG: &'static str = "machine";
    const VERSION: u16 = 2;
}

/// One vCPU.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VcpuState {
    /// The CPUID that the guest sees.
    #[serde(deserialize_with = "bounded::at_most::<_, _, KVM_MAX_CPUID_ENTRIES>")]
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// All MSRs that the KVM lists and lets be read.
    #[serde(deserialize_with = "bounded::at_most::<_, _, MAX_MSRS>")]
    pub msrs: Vec<kvm_msr_entry>,
    /// General-purpose registers.
    pub regs: kvm_regs,
    /// Segments and control registers.
    pub sregs: kvm_sregs,
    /// The PDPTEs of a guest in PAE mode, where the KVM tells them (`KVM_GET_SREGS2`).
    pub pdptrs: Option<[u64; 4]>,
    /// FPU and vector registers, in the layout of `XSAVE`.
    #[serde(deserialize_with = "bounded::at_most::<_, _, MAX_XSAVE_LEN>")]
    pub xsave: Vec<u8>,
    /// Extended control registers.
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    pub debug_regs: kvm_debugregs,
    /// The local APIC.
    pub lapic: kvm_lapic_state,
    /// Pending exceptions, interrupts, NMI.
    pub events: kvm_vcpu_events,
    /// Running, halted, waiting for its start.
    pub mp_state: kvm_mp_state,
    /// The frequency of the TSC in kHz; 0 where the KVM does not know it.
    pub tsc_khz: u32,
    /// The shadow stack pointer, where the guest has shadow stacks (it is in no MSR).
    pub shadow_stack_pointer: Option<u64>,
}

impl Part for VcpuState {
    const TAG: &'static str = "vcpu";
    const VERSION: u16 = 1;
}

/// The interrupt controllers, the guest's clock and the PIT if there is one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlatformState {
    /// PIC 1, PIC 2 and IOAPIC, in this order.
    pub irqchips: [kvm_irqchip; 3],
    /// kvm-clock.
    pub clock: kvm_clock_data,
    /// The PIT.
    pub pit: Option<kvm_pit_state2>,
}

impl Part for PlatformState {
    const TAG: &'static str = "platform";
    const VERSION: u16 = 1;
}

/// A device's state as a part of the file.
///
/// `older` is a version of the state that is still read, and its type.
macro_rules! device_part {
    ($name:ident, $state:ty, $tag:literal, $doc:literal $(, older $($version:literal: $older:ty),+)?) => {
        #[doc = $doc]
        #[derive(Debug, Clone, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $state);

        impl vmgenie_snapshot::Part for $name {
            const TAG: &'static str = $tag;
            const VERSION: u16 = <$state as vmgenie_devices::DeviceState>::VERSION;

            $(fn from_older(version: u16, body: &[u8]) -> Option<postcard::Result<(Self, &[u8])>> {
                match version {
                    $($version => Some(
                        postcard::take_from_bytes::<$older>(body)
                            .map(|(old, rest)| (Self(old.into()), rest)),
                    ),)+
                    _ => None,
                }
            })?
        }
    };
}
pub(super) use device_part;

device_part!(
    PmPart,
    PowerManagementState,
    "pm",
    "PM1, GPE0 and the PM timer."
);
device_part!(SerialPart, SerialPortState, "com1", "The serial port.");
device_part!(
    VmGenIdPart,
    VmGenIdState,
    "vmgenid",
    "The generation ID, and those before it.",
    older 1: VmGenIdStateV1
);
device_part!(
    SysGenPart,
    SysGenState,
    "sgen",
    "What is expected of the guest's driver, and what it told; the counter is in guest memory.",
    older 1: SysGenStateV1, 2: SysGenStateV2
);
device_part!(VmClockPart, VmClockState, "vmclock", "VMClock.");
device_part!(
    FwCfgPart,
    FwCfgState,
    "fw-cfg",
    "The firmware configuration device, with the string that tells the guest who it is."
);

#[cfg(test)]
mod tests {
    use super::*;
    use vmgenie_devices::fw_cfg::{FILE_LEN, FwCfg, InstanceData};
    use vmgenie_devices::sgen::{ForkState, LaterRegisters};
    use vmgenie_snapshot::{SnapshotId, StateError, StateReader, StateWriter};

    /// The part as it was written before SGEN had more than four registers.
    #[derive(Serialize, Deserialize)]
    struct OldSysGenPart(SysGenStateV1);

    impl Part for OldSysGenPart {
        const TAG: &'static str = SysGenPart::TAG;
        const VERSION: u16 = 1;
    }

    /// Too long for one.
    #[derive(Serialize, Deserialize)]
    struct OldSysGen(SysGenStateV1, Vec<u8>);

    impl Part for OldSysGen {
        const TAG: &'static str = SysGenPart::TAG;
        const VERSION: u16 = 1;
    }

    fn read_as<T: Part>(part: &impl Part) -> Result<T, StateError> {
        let mut writer = StateWriter::new(SnapshotId::generate().unwrap(), 32 << 20);
        writer.part(part).unwrap();
        StateReader::from_bytes(writer.finish().unwrap())
            .unwrap()
            .take()
    }

    #[test]
    fn a_state_file_of_the_first_generation_counter_is_still_read() {
        let old = SysGenStateV1 {
            gpa: 0x9_f000,
            base: 7,
            step: 1,
            registers: [8, 8, 2, 1],
            reached: true,
            reseeded: true,
        };
        // The vector's length is a byte too many.
        assert!(read_as::<SysGenPart>(&OldSysGen(old.clone(), vec![])).is_err());
        let read = read_as::<SysGenPart>(&OldSysGenPart(old.clone()))
            .unwrap()
            .0;
        assert_eq!(read, old.clone().into());
        assert_eq!(
            read_as::<SysGenPart>(&SysGenPart(read.clone())).unwrap().0,
            read
        );
    }

    /// The part as it was written before SGEN had fork points.
    #[derive(Serialize, Deserialize)]
    struct SecondSysGenPart(SysGenStateV2);

    impl Part for SecondSysGenPart {
        const TAG: &'static str = SysGenPart::TAG;
        const VERSION: u16 = 2;
    }

    #[test]
    fn a_state_file_of_a_machine_without_fork_points_is_still_read() {
        let first = SysGenStateV1 {
            gpa: 0x9_f000,
            base: 7,
            step: 1,
            registers: [8, 8, 2, 1],
            reached: true,
            reseeded: true,
        };
        let later = LaterRegisters {
            features: 8,
            agents: 2,
            ..LaterRegisters::default()
        };
        let old = SysGenStateV2 { first, later };
        let read = read_as::<SysGenPart>(&SecondSysGenPart(old.clone()))
            .unwrap()
            .0;
        assert_eq!(read, old.clone().into());
        assert_eq!((read.base, read.later), (7, old.later));
        assert_eq!(read.fork, ForkState::default());
    }

    /// The part as it was written before it knew earlier IDs, and as a hostile one may be.
    #[derive(Serialize, Deserialize)]
    struct AnyVmGenId<const VERSION: u16>(VmGenIdStateV1, Vec<[u8; 16]>);

    impl<const VERSION: u16> Part for AnyVmGenId<VERSION> {
        const TAG: &'static str = VmGenIdPart::TAG;
        const VERSION: u16 = VERSION;
    }

    /// The same without a list.
    #[derive(Serialize, Deserialize)]
    struct OldVmGenId(VmGenIdStateV1);

    impl Part for OldVmGenId {
        const TAG: &'static str = VmGenIdPart::TAG;
        const VERSION: u16 = 1;
    }

    #[test]
    fn a_state_file_without_earlier_ids_is_read_and_one_with_too_many_is_refused() {
        use vmgenie_devices::vmgenid::MAX_ANCESTORS;
        let first = VmGenIdStateV1 {
            gpa: 0x9_f000,
            id: [1; 16],
            changes: 3,
            changed_at_secs: 4,
            changed_at_nanos: 5,
        };
        let ids = |count: usize| (0..count).map(|n| [n as u8; 16]).collect::<Vec<_>>();
        let old = read_as::<VmGenIdPart>(&OldVmGenId(first.clone()))
            .unwrap()
            .0;
        assert_eq!(old, first.clone().into());
        assert_eq!((old.changes, old.ancestors.len()), (3, 0));
        // Version 1 has no list.
        assert!(read_as::<VmGenIdPart>(&AnyVmGenId::<1>(first.clone(), ids(0))).is_err());
        let most =
            read_as::<VmGenIdPart>(&AnyVmGenId::<2>(first.clone(), ids(MAX_ANCESTORS))).unwrap();
        assert_eq!(most.0.ancestors, ids(MAX_ANCESTORS));
        assert!(read_as::<VmGenIdPart>(&AnyVmGenId::<2>(first, ids(MAX_ANCESTORS + 1))).is_err());
    }

    /// Encodes as a state whose string has not been checked.
    #[derive(Serialize, Deserialize)]
    struct Forged(u16, u32, String);

    impl Part for Forged {
        const TAG: &'static str = FwCfgPart::TAG;
        const VERSION: u16 = FwCfgPart::VERSION;
    }

    /// Encodes as a vCPU's state up to a list that has so many entries, of one byte each, which take 40 bytes in memory.
    #[derive(Serialize, Deserialize)]
    struct Long(Vec<[u8; 1]>);

    impl Part for Long {
        const TAG: &'static str = VcpuState::TAG;
        const VERSION: u16 = VcpuState::VERSION;
    }

    #[test]
    fn a_list_that_no_processor_has_is_refused_while_it_is_decoded() {
        let refused = |len| {
            let mut writer = StateWriter::new(SnapshotId::generate().unwrap(), 32 << 20);
            writer.part(&Long(vec![[0]; len])).unwrap();
            let mut reader = StateReader::from_bytes(writer.finish().unwrap()).unwrap();
            match reader.take::<VcpuState>().unwrap_err() {
                StateError::Decode { source, .. } => source,
                other => panic!("{other}"),
            }
        };
        // This many are read, and then something is missing.
        let ended = postcard::Error::DeserializeUnexpectedEnd;
        assert_eq!(refused(KVM_MAX_CPUID_ENTRIES), ended);
        for len in [KVM_MAX_CPUID_ENTRIES + 1, 10_000_000] {
            assert_eq!(refused(len), postcard::Error::SerdeDeCustom, "{len}");
        }
    }

    #[test]
    fn every_part_is_in_the_document_of_the_format_with_its_version() {
        fn row<P: Part>() -> (&'static str, u16) {
            (P::TAG, P::VERSION)
        }
        let document = include_str!("../../../docs/snapshot-format.md");
        let document = document
            .replace("` |", "`|")
            .replace("`, one for each vCPU |", "`|");
        for row in [
            row::<MachineState>(),
            row::<VcpuState>(),
            row::<PlatformState>(),
            row::<PmPart>(),
            row::<SerialPart>(),
            row::<VmGenIdPart>(),
            row::<SysGenPart>(),
            row::<VmClockPart>(),
            row::<FwCfgPart>(),
        ]
        .into_iter()
        .chain(crate::virtio::kinds::PARTS)
        {
            let (tag, version) = row;
            let row = format!("| `{tag}`| {version} |");
            assert!(document.contains(&row), "{row}");
        }
    }

    #[test]
    fn a_state_file_gives_back_the_instance_data_and_no_string_that_is_none() {
        use vmgenie_devices::Persist;
        let device = FwCfg::new(InstanceData::new("web-1").unwrap());
        assert_eq!(
            read_as::<FwCfgPart>(&FwCfgPart(device.save())).unwrap().0,
            device.save()
        );
        assert!(read_as::<FwCfgPart>(&Forged(0, 0, "x".repeat(FILE_LEN))).is_ok());
        for wrong in ["x".repeat(FILE_LEN + 1), "a\0b".to_owned()] {
            assert!(read_as::<FwCfgPart>(&Forged(0, 0, wrong)).is_err());
        }
    }
}
