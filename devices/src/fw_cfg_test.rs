//! Tests of the firmware configuration device.

use proptest::prelude::*;

use super::*;

const BASE: PioAddress = PioAddress(PORT_BASE);

fn device(text: &str) -> FwCfg {
    FwCfg::new(InstanceData::new(text).unwrap())
}

fn select(device: &mut FwCfg, key: u16) {
    device.pio_write(BASE, SELECTOR, &key.to_le_bytes());
}

fn read(device: &mut FwCfg, len: usize) -> Vec<u8> {
    let mut next = || {
        let mut byte = [0xa5];
        device.pio_read(BASE, DATA, &mut byte);
        byte[0]
    };
    (0..len).map(|_| next()).collect()
}

fn item(device: &mut FwCfg, key: u16, len: usize) -> Vec<u8> {
    select(device, key);
    read(device, len)
}

fn padded(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(FILE_LEN, 0);
    bytes
}

#[test]
fn a_driver_finds_signature_interface_and_the_file() {
    let mut device = device("web-1");
    assert_eq!(item(&mut device, 0x00, 4), b"QEMU");
    assert_eq!(item(&mut device, 0x01, 4), [1, 0, 0, 0], "no DMA");
    let directory = item(&mut device, 0x19, 4 + 64);
    assert_eq!(directory[..4], [0, 0, 0, 1], "one file");
    assert_eq!(directory[4..8], (FILE_LEN as u32).to_be_bytes());
    let key = u16::from_be_bytes([directory[8], directory[9]]);
    assert!((0x20..0x4000).contains(&key), "a file's key");
    assert_eq!(directory[10..12], [0, 0]);
    let name = &directory[12..];
    assert_eq!(name.len(), 56);
    assert_eq!(&name[..FILE_NAME.len()], FILE_NAME.as_bytes());
    assert!(name[FILE_NAME.len()..].iter().all(|byte| *byte == 0));
    assert_eq!(item(&mut device, key, FILE_LEN), padded("web-1"));
}

#[test]
fn what_is_behind_an_item_and_what_is_no_item_reads_as_zero() {
    let mut device = device("x");
    assert_eq!(item(&mut device, 0x00, 6), *b"QEMU\0\0");
    for key in [0x02, 0x05, 0x18, 0x1a, 0x21, 0x4020, 0x8020, 0xffff] {
        assert_eq!(item(&mut device, key, 3), [0; 3], "{key:#x}");
    }
}

#[test]
fn selecting_begins_anew_and_reading_goes_on() {
    let mut device = device("abc");
    assert_eq!(item(&mut device, 0x20, 2), b"ab");
    assert_eq!(read(&mut device, 1), b"c");
    assert_eq!(item(&mut device, 0x20, 1), b"a");
}

#[test]
fn the_next_read_has_another_string() {
    let mut device = device("the original");
    item(&mut device, 0x20, 3);
    device.set_data(InstanceData::new("web-2").unwrap());
    assert_eq!(item(&mut device, 0x20, FILE_LEN), padded("web-2"));
    device.set_data(InstanceData::default());
    assert_eq!(item(&mut device, 0x20, FILE_LEN), padded(""));
}

#[test]
fn a_string_is_short_and_has_no_zero() {
    assert!(InstanceData::new("x".repeat(FILE_LEN)).is_ok());
    assert_eq!(
        InstanceData::new("x".repeat(FILE_LEN + 1)),
        Err(InstanceDataError::TooLong(FILE_LEN + 1))
    );
    // Bytes count, not characters.
    assert!(InstanceData::new("ä".repeat(FILE_LEN / 2 + 1)).is_err());
    assert_eq!(InstanceData::new("a\0b"), Err(InstanceDataError::Zero(1)));
    assert!(InstanceData::try_from("x".repeat(FILE_LEN + 1)).is_err());
}

#[test]
fn accesses_of_another_width_or_direction_are_ignored() {
    let mut device = device("abc");
    select(&mut device, 0x20);
    for data in [&[0x00][..], &[0, 0, 0], &[0, 0, 0, 0]] {
        device.pio_write(BASE, SELECTOR, data);
    }
    device.pio_write(BASE, DATA, &[0]);
    device.pio_write(BASE, DATA, &[0, 0]);
    for (offset, len) in [(SELECTOR, 1), (SELECTOR, 2), (DATA, 2), (DATA, 4), (7, 1)] {
        let mut data = vec![0xa5; len];
        device.pio_read(BASE, offset, &mut data);
        assert_eq!(data, vec![0xff; len]);
    }
    assert_eq!(read(&mut device, 3), b"abc");
}

#[test]
fn a_restored_device_goes_on_reading_in_the_string_of_its_own_machine() {
    let mut original = device("original");
    item(&mut original, 0x20, 4);
    let state = original.save();
    assert_eq!(state.data.as_str(), "original");
    let mut clone = device("clone-12");
    let Ok(()) = clone.restore(&state);
    assert_eq!(read(&mut clone, 4), b"e-12");
    assert_eq!(clone.save().selector, 0x20);
    assert_eq!(read(&mut original, 4), b"inal");
}

#[derive(Clone, Debug)]
enum Step {
    Read(u16, usize),
    Write(u16, Vec<u8>),
    Restore(u16, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let key = prop_oneof![Just(0x20_u16), Just(0x19), Just(0), any::<u16>()];
    prop_oneof![
        (any::<u16>(), 0_usize..10).prop_map(|(offset, len)| Step::Read(offset, len)),
        (0_u16..3, 0_usize..5).prop_map(|(offset, len)| Step::Read(offset, len)),
        (any::<u16>(), proptest::collection::vec(any::<u8>(), 0..10))
            .prop_map(|(offset, data)| Step::Write(offset, data)),
        key.clone()
            .prop_map(|key| Step::Write(SELECTOR, key.to_le_bytes().to_vec())),
        (key, any::<u32>()).prop_map(|(key, offset)| Step::Restore(key, offset)),
    ]
}

proptest! {
    #[test]
    fn no_access_and_no_state_does_harm(steps in proptest::collection::vec(step(), 0..200)) {
        let mut device = device("some string");
        for step in steps {
            match step {
                Step::Read(offset, len) => {
                    let mut data = vec![0xa5; len];
                    device.pio_read(BASE, offset, &mut data);
                    if (offset, len) != (DATA, 1) {
                        prop_assert!(data.iter().all(|byte| *byte == 0xff));
                    }
                }
                Step::Write(offset, data) => device.pio_write(BASE, offset, &data),
                Step::Restore(selector, offset) => {
                    let Ok(()) = device.restore(&FwCfgState { selector, offset, ..FwCfgState::default() });
                }
            }
        }
        prop_assert_eq!(item(&mut device, 0x20, FILE_LEN), padded("some string"));
    }
}
