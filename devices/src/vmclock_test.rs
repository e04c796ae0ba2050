//! Tests of the VMClock device.

use proptest::prelude::*;
use vm_memory::GuestMemoryMmap;

use super::*;

const GPA: u64 = 0x9_f000;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap()
}

fn page(memory: &GuestMemoryMmap) -> [u8; 4096] {
    let mut page = [0; 4096];
    memory.read_slice(&mut page, GuestAddress(GPA)).unwrap();
    page
}

#[test]
fn the_page_says_what_it_is_and_that_it_offers_no_time() {
    let memory = memory();
    VmClock::new(&memory, GPA).unwrap();
    let page = page(&memory);
    assert_eq!(page[..4], *b"VCLK");
    assert_eq!(page[4..8], 4096_u32.to_le_bytes());
    assert_eq!(page[8..12], [1, 0, 0xff, 0]);
    assert_eq!(page[0x0c..0x18], [0; 12]);
    assert_eq!(page[0x18..0x20], 0x300_u64.to_le_bytes());
    assert_eq!(page[0x20..], [0; 4096 - 0x20]);
}

#[test]
fn a_generation_changes_counter_marker_and_sequence_and_nothing_else() {
    let memory = memory();
    let mut device = VmClock::new(&memory, GPA).unwrap();
    let mut expected = page(&memory);
    for round in 1..=3_u8 {
        device.begin(&memory).unwrap();
        expected[0x0c] = 2 * round;
        expected[0x10] = round;
        expected[0x68] = round;
        assert_eq!(page(&memory), expected);
    }
    assert_eq!(device.generation(), 3);
    device.disrupt(&memory).unwrap();
    (expected[0x0c], expected[0x10]) = (8, 4);
    assert_eq!(page(&memory), expected);
}

#[test]
fn what_the_guest_wrote_to_the_page_does_not_change_what_comes_next() {
    let memory = memory();
    let mut device = VmClock::new(&memory, GPA).unwrap();
    memory
        .write_slice(&[0xff; 4096], GuestAddress(GPA))
        .unwrap();
    device.begin(&memory).unwrap();
    let page = page(&memory);
    assert_eq!(page[0x0c..0x10], 2_u32.to_le_bytes());
    assert_eq!(page[0x68..0x70], 1_u64.to_le_bytes());
}

#[test]
fn a_restored_device_goes_on_from_the_saved_one() {
    let memory = memory();
    let mut saved = VmClock::new(&memory, GPA).unwrap();
    saved.begin(&memory).unwrap();
    let state = saved.save();
    let mut restored = VmClock::from_state(&state).unwrap();
    assert_eq!(restored.save(), state);
    restored.begin(&memory).unwrap();
    assert_eq!((restored.generation(), page(&memory)[0x68]), (2, 2));
}

#[test]
fn bad_addresses_are_refused() {
    assert!(VmClock::new(&memory(), GPA + 8).is_err());
    let error = VmClock::new(&memory(), 0x10_0000).unwrap_err();
    assert!(error.to_string().contains("0x100000"), "{error}");
}

proptest! {
    #[test]
    fn any_state_leads_to_an_even_sequence_count(
        seq in any::<u32>(), disruption_marker in any::<u64>(), generation in any::<u64>(),
    ) {
        let memory = memory();
        let state = VmClockState { gpa: GPA, seq, disruption_marker, generation };
        let mut device = VmClock::from_state(&state).unwrap();
        device.begin(&memory).unwrap();
        prop_assert_eq!(page(&memory)[0x0c] % 2, 0);
        prop_assert_eq!(device.generation(), generation.wrapping_add(1));
    }
}
