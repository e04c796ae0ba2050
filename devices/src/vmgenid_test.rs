//! Tests of the VMGENID device.

use std::collections::HashSet;

use proptest::prelude::*;
use vm_memory::GuestMemoryMmap;

use super::*;

const GPA: u64 = 0x9_f000;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap()
}

fn in_memory(memory: &GuestMemoryMmap) -> [u8; ID_LEN] {
    memory.read_obj(GuestAddress(GPA)).unwrap()
}

#[test]
fn a_new_device_writes_its_id_to_guest_memory_and_nothing_around_it() {
    let memory = memory();
    let device = VmGenId::new(&memory, GPA).unwrap();
    assert_eq!(in_memory(&memory), device.id().to_bytes());
    assert_ne!(device.id().to_bytes(), [0; ID_LEN]);
    assert_eq!(memory.read_obj::<u64>(GuestAddress(GPA - 8)).unwrap(), 0);
    assert_eq!(memory.read_obj::<u64>(GuestAddress(GPA + 16)).unwrap(), 0);
    assert_eq!((device.gpa(), device.changes()), (GPA, 0));
}

#[test]
fn a_thousand_generations_have_a_thousand_ids() {
    let memory = memory();
    let mut device = VmGenId::new(&memory, GPA).unwrap();
    let mut seen = HashSet::from([device.id()]);
    for change in 1..=1000 {
        let id = device.regenerate(&memory).unwrap();
        assert_eq!((id, id.to_bytes()), (device.id(), in_memory(&memory)));
        assert_eq!(device.changes(), change);
        assert!(seen.insert(id));
    }
}

#[test]
fn a_generation_knows_the_last_of_those_before_it() {
    let memory = memory();
    let mut device = VmGenId::new(&memory, GPA).unwrap();
    assert_eq!(device.ancestors(), []);
    let mut ids = vec![device.id()];
    for _ in 0..MAX_ANCESTORS + 5 {
        ids.push(device.regenerate(&memory).unwrap());
        let (id, before) = ids.split_last().unwrap();
        let last = before.len().saturating_sub(MAX_ANCESTORS);
        assert_eq!((device.id(), device.ancestors()), (*id, &before[last..]));
    }
    // As a clone of a clone has them, which other processes were.
    let clone = VmGenId::from_state(&device.save()).unwrap();
    assert_eq!(clone.ancestors(), device.ancestors());
}

#[test]
fn the_time_of_a_change_is_the_hosts() {
    let before = now();
    let memory = memory();
    let mut device = VmGenId::new(&memory, GPA).unwrap();
    let made = device.changed_at();
    device.regenerate(&memory).unwrap();
    assert!(before <= made && made <= device.changed_at() && device.changed_at() <= now());
}

#[test]
fn addresses_that_the_specification_forbids_are_refused() {
    let memory = memory();
    for gpa in [GPA + 1, GPA + 4, GPA + 0xff8, u64::MAX] {
        let error = VmGenId::new(&memory, gpa).unwrap_err();
        assert!(
            matches!(error, VmGenIdError::Address { gpa: g } if g == gpa),
            "{error}"
        );
    }
    for gpa in [GPA + 8, GPA + 0xff0] {
        assert!(VmGenId::new(&memory, gpa).is_ok());
    }
}

#[test]
fn an_address_without_memory_is_refused_with_its_number() {
    for gpa in [0x10_0000, !0xf] {
        let error = VmGenId::new(&memory(), gpa).unwrap_err();
        assert!(error.to_string().contains(&format!("{gpa:#x}")), "{error}");
    }
}

#[test]
fn a_change_that_cannot_be_written_leaves_the_device_as_it_was() {
    let mut device = VmGenId::new(&memory(), GPA).unwrap();
    let before = device.save();
    let elsewhere = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    assert!(matches!(
        device.regenerate(&elsewhere),
        Err(VmGenIdError::Memory { gpa: GPA, .. })
    ));
    assert_eq!(device.save(), before);
}

#[test]
fn an_id_is_carried_over_a_reboot() {
    let memory = memory();
    let id = VmGenId::new(&memory, GPA).unwrap().id();
    memory.write_slice(&[0; ID_LEN], GuestAddress(GPA)).unwrap();
    let rebooted = VmGenId::with_id(&memory, GPA, id).unwrap();
    assert_eq!((rebooted.id(), in_memory(&memory)), (id, id.to_bytes()));
}

#[test]
fn a_restored_device_is_the_saved_one_and_leaves_memory_alone() {
    let memory = memory();
    let mut saved = VmGenId::new(&memory, GPA).unwrap();
    saved.regenerate(&memory).unwrap();
    let state = saved.save();

    let restored = VmGenId::from_state(&state).unwrap();
    assert_eq!(restored.save(), state);
    VmGenId::new(&memory, GPA).unwrap();
    let held = in_memory(&memory);
    let other = VmGenId::from_state(&state).unwrap();
    assert_eq!((other.save(), in_memory(&memory)), (state, held));
    other.write_to(&memory).unwrap();
    assert_eq!(in_memory(&memory), saved.id().to_bytes());
}

proptest! {
    #[test]
    fn any_state_is_restored_or_refused_without_a_panic(
        gpa in any::<u64>(), id in any::<[u8; ID_LEN]>(), changes in any::<u64>(),
        changed_at_secs in prop_oneof![any::<u64>(), Just(u64::MAX)],
        changed_at_nanos in prop_oneof![any::<u32>(), Just(u32::MAX)],
        ancestors in prop::collection::vec(any::<[u8; ID_LEN]>(), 0..=MAX_ANCESTORS),
    ) {
        let gpas = [gpa, gpa & !0xfff];
        for gpa in gpas {
            let ancestors = ancestors.clone();
            let state = VmGenIdState { gpa, id, changes, changed_at_secs, changed_at_nanos, ancestors };
            if let Ok(mut device) = VmGenId::from_state(&state) {
                prop_assert_eq!(device.id().to_bytes(), id);
                let _ = device.regenerate(&memory());
            }
        }
    }
}

#[test]
fn an_id_prints_as_the_guid_that_other_tools_print() {
    let bytes = *b"\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee\x0f";
    let id = GenerationId::from_bytes(bytes);
    assert_eq!(id.to_guid(), "00112233-4455-6677-8899-aabbccddee0f");
    assert_eq!(id.to_hex(), "33221100554477668899aabbccddee0f");
    assert_eq!(GenerationId::from_bytes([0; 16]).to_hex(), "0".repeat(32));
    assert_eq!(
        format!("{id:?}"),
        "GenerationId(00112233-4455-6677-8899-aabbccddee0f)"
    );
}

#[test]
fn the_guest_reads_both_halves_of_the_address_from_addr() {
    let state = VmGenIdState {
        gpa: 0x1_2345_6000,
        id: [1; ID_LEN],
        changes: 0,
        changed_at_secs: 0,
        changed_at_nanos: 0,
        ancestors: Vec::new(),
    };
    let mut aml = Vec::new();
    VmGenId::from_state(&state).unwrap().to_aml_bytes(&mut aml);
    let addr = b"\x08ADDR\x12\x08\x02\x0c\x00\x60\x45\x23\x01";
    assert!(
        aml.windows(addr.len()).any(|window| window == addr),
        "{aml:02x?}"
    );
}
