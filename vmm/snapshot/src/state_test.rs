use proptest::prelude::*;

use super::super::test_support::process;
use super::*;

const ID: SnapshotId = SnapshotId::from_bytes([3; 16]);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Vcpu {
    registers: Vec<u64>,
    name: String,
    halted: Option<bool>,
}

impl Part for Vcpu {
    const TAG: &'static str = "vcpu";
    const VERSION: u16 = 4;
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Clock(u64);

impl Part for Clock {
    const TAG: &'static str = "clock";
    const VERSION: u16 = 1;
}

fn vcpu(seed: u64) -> Vcpu {
    let registers = (0..100)
        .map(|n| (n + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .collect();
    Vcpu {
        registers,
        name: format!("vcpu {seed}"),
        halted: Some(seed == 1),
    }
}

/// A state file of about 10 KB.
fn sample() -> Vec<u8> {
    let mut writer = StateWriter::new(ID, 1 << 30);
    let vcpus: Vec<_> = (0..10).map(vcpu).collect();
    writer.part(&Clock(77)).unwrap().parts(&vcpus).unwrap();
    writer.finish().unwrap()
}

/// Takes everything that [`sample`] has, as a restore does.
fn read_sample(bytes: Vec<u8>) -> Result<(Clock, Vec<Vcpu>), StateError> {
    let mut reader = StateReader::from_bytes(bytes)?;
    let taken = (reader.take()?, reader.take_all()?);
    reader.finish()?;
    Ok(taken)
}

/// A file with these records and a good header.
fn forged(records: &[(&str, Option<u32>, u16, &[u8])]) -> Vec<u8> {
    let mut payload = postcard::to_stdvec(&(records.len() as u32)).unwrap();
    for &(tag, index, version, body) in records {
        let record = Record {
            tag,
            index,
            version,
            body: Body(body),
        };
        payload = postcard::to_extend(&record, payload).unwrap();
    }
    Header::seal(ID, 0, &payload)
}

#[test]
fn parts_come_back_by_type_and_in_order() {
    let (clock, vcpus) = read_sample(sample()).unwrap();
    assert_eq!(clock, Clock(77));
    assert_eq!(vcpus, (0..10).map(vcpu).collect::<Vec<_>>());
}

#[test]
fn the_header_names_the_snapshot_and_its_memory() {
    let reader = StateReader::from_bytes(sample()).unwrap();
    assert_eq!(
        (reader.header().id, reader.header().memory_length),
        (ID, 1 << 30)
    );
}

#[test]
fn every_single_byte_flip_is_refused() {
    let sample = sample();
    assert!(sample.len() > 8_000);
    let mut bytes = sample.clone();
    for index in 0..bytes.len() {
        for flip in [0x01, 0x10, 0x80, 0xff] {
            bytes[index] ^= flip;
            StateReader::from_bytes(bytes.clone()).expect_err("a flip");
            bytes[index] ^= flip;
        }
    }
    assert_eq!(bytes, sample);
}

#[test]
fn every_truncation_and_extension_is_refused() {
    let sample = sample();
    for length in 0..sample.len() {
        StateReader::from_bytes(sample[..length].to_vec()).expect_err("a truncation");
    }
    for extra in [1, 7, 4096] {
        let bytes = [sample.clone(), vec![0; extra]].concat();
        StateReader::from_bytes(bytes).expect_err("an extension");
    }
}

#[test]
fn a_part_that_is_missing_or_taken_before_is_named() {
    let mut reader = StateReader::from_bytes(forged(&[])).unwrap();
    assert!(reader.take_optional::<Clock>().unwrap().is_none());
    assert!(reader.take_all::<Vcpu>().unwrap().is_empty());
    assert_eq!(
        reader.take::<Clock>().unwrap_err().to_string(),
        "part `clock` is missing"
    );
    let mut reader = StateReader::from_bytes(sample()).unwrap();
    reader.take::<Clock>().unwrap();
    assert!(matches!(
        reader.take::<Clock>(),
        Err(StateError::Missing("clock"))
    ));
}

#[test]
fn parts_that_nobody_takes_are_named() {
    let reader = StateReader::from_bytes(sample()).unwrap();
    assert_eq!(
        reader.finish().unwrap_err().to_string(),
        "it has parts that this program does not know: `clock`, `vcpu`; restore it with the \
         vmgenie that made it"
    );
}

#[test]
fn another_version_of_a_part_is_refused_with_what_to_do() {
    let bytes = forged(&[("clock", None, 2, &[7])]);
    let error = StateReader::from_bytes(bytes)
        .unwrap()
        .take::<Clock>()
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "part `clock` has version 2, this program reads version 1; restore it with the vmgenie \
         that made it"
    );
}

#[test]
fn a_body_that_is_too_short_or_too_long_is_refused() {
    let take = |body: &[u8]| {
        let bytes = forged(&[("clock", None, 1, body)]);
        StateReader::from_bytes(bytes).unwrap().take::<Clock>()
    };
    assert_eq!(take(&[7]).unwrap(), Clock(7));
    assert!(matches!(
        take(&[]),
        Err(StateError::Decode { tag: "clock", .. })
    ));
    assert!(matches!(
        take(&[0x80]),
        Err(StateError::Decode { tag: "clock", .. })
    ));
    assert!(matches!(
        take(&[7, 0]),
        Err(StateError::TrailingBytes {
            tag: "clock",
            length: 1
        })
    ));
}

#[test]
fn a_part_that_comes_twice_or_out_of_order_is_refused() {
    let part = |index| ("clock", index, 1, &[7][..]);
    for records in [
        vec![part(None), part(None)],
        vec![part(None), part(Some(0))],
        vec![part(Some(0)), part(None)],
        vec![part(Some(1))],
        vec![part(Some(0)), part(Some(0))],
        vec![part(Some(0)), part(Some(2))],
        vec![part(Some(0)), part(Some(1)), part(Some(0))],
        vec![part(Some(0)), part(Some(1)), part(Some(1))],
    ] {
        let error = StateReader::from_bytes(forged(&records)).unwrap_err();
        assert!(
            matches!(error, StateError::Duplicate(ref tag) if tag == "clock"),
            "{error}"
        );
    }
    StateReader::from_bytes(forged(&[part(Some(0)), ("x", None, 1, &[]), part(Some(1))])).unwrap();
}

#[test]
fn a_single_part_is_not_taken_for_one_of_many() {
    let mut reader = StateReader::from_bytes(forged(&[("clock", Some(0), 1, &[7])])).unwrap();
    assert!(matches!(
        reader.take::<Clock>(),
        Err(StateError::Missing("clock"))
    ));
    assert_eq!(reader.take_all::<Clock>().unwrap(), [Clock(7)]);
}

#[test]
fn names_that_are_no_tags_are_refused() {
    for tag in [
        "",
        "Clock",
        "cl ock",
        "clock\x1b[31m",
        &"x".repeat(MAX_TAG_LENGTH + 1),
    ] {
        let error = StateReader::from_bytes(forged(&[(tag, None, 1, &[])])).unwrap_err();
        assert!(
            matches!(error, StateError::Malformed { index: 0, .. }),
            "{error}"
        );
    }
}

#[test]
fn a_part_is_written_once() {
    let mut writer = StateWriter::new(ID, 0);
    writer.part(&Clock(1)).unwrap();
    assert!(matches!(
        writer.part(&Clock(2)),
        Err(WriteStateError::Duplicate("clock"))
    ));
    assert!(matches!(
        writer.parts(&[Clock(2)]),
        Err(WriteStateError::Duplicate("clock"))
    ));
}

#[test]
fn a_state_that_no_reader_would_take_is_not_written() {
    let mut writer = StateWriter::new(ID, 0);
    let many = vec![Clock(1); MAX_PARTS + 1];
    assert!(matches!(
        writer.parts(&many),
        Err(WriteStateError::TooManyParts)
    ));
    let mut writer = StateWriter::new(ID, 0);
    let long = Vcpu {
        name: "x".repeat(MAX_PAYLOAD_LENGTH),
        ..vcpu(0)
    };
    writer.part(&long).unwrap();
    assert!(matches!(writer.finish(), Err(WriteStateError::TooLong(_))));
}

#[test]
fn a_file_larger_than_any_state_is_refused_before_it_is_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 40).unwrap();
    let error = StateReader::open(file.path()).unwrap_err();
    assert!(matches!(error, StateError::TooLarge(_)), "{error}");
}

#[test]
fn a_directory_or_a_device_is_not_a_state_file() {
    for path in ["/", "/dev/zero"] {
        let error = StateReader::open(Path::new(path)).unwrap_err();
        assert!(matches!(error, StateError::NotAFile), "{path}: {error}");
    }
}

proptest! {
    #[test]
    fn whatever_is_written_is_read(
        clock: u64,
        vcpus in prop::collection::vec(
            (prop::collection::vec(any::<u64>(), 0..20), ".*", any::<Option<bool>>()), 0..5),
    ) {
        let vcpus: Vec<_> = vcpus
            .into_iter()
            .map(|(registers, name, halted)| Vcpu { registers, name, halted })
            .collect();
        let mut writer = StateWriter::new(ID, 0);
        writer.part(&Clock(clock)).unwrap().parts(&vcpus).unwrap();
        let read = read_sample(writer.finish().unwrap()).unwrap();
        prop_assert_eq!(read, (Clock(clock), vcpus));
    }

    #[test]
    fn a_forged_payload_with_a_good_checksum_does_no_harm(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut payload = sample()[HEADER_LENGTH..].to_vec();
        for (index, value) in flips {
            let index = index.index(payload.len());
            payload[index] = value;
        }
        let whole = payload.clone();
        payload.truncate(cut.index(payload.len()));
        // Refused or not: it must not panic.
        let _ = read_sample(Header::seal(ID, 0, &whole));
        let _ = read_sample(Header::seal(ID, 0, &payload));
    }

    #[test]
    fn noise_with_a_good_checksum_does_no_harm(payload: Vec<u8>) {
        let _ = read_sample(Header::seal(ID, 0, &payload));
    }
}

#[test]
fn lengths_that_lie_do_not_make_the_reader_allocate() {
    let output = process("state::tests::child_reads_lies_with_little_memory")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_reads_lies_with_little_memory() {
    use rustix::process::{Resource, Rlimit, setrlimit};

    let huge = postcard::to_stdvec(&u64::MAX).unwrap();
    let half = postcard::to_stdvec(&(1_u64 << 40)).unwrap();
    let lies: Vec<_> = [&huge, &half]
        .into_iter()
        .flat_map(|length| {
            let body = [length.as_slice(), &[0; 64]].concat();
            let count = Header::seal(ID, 0, length);
            let tag = Header::seal(ID, 0, &[&[1], length.as_slice()].concat());
            let record = Header::seal(ID, 0, &[&[1, 1, b'a', 0, 1], length.as_slice()].concat());
            [forged(&[("vcpu", Some(0), 4, &body)]), count, tag, record]
        })
        .collect();
    // Pages of the process now, and 8 MiB: an allocation that believes a lie ends the process.
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    let limit = Some(pages * 4096 + (8 << 20));
    setrlimit(
        Resource::As,
        Rlimit {
            current: limit,
            maximum: limit,
        },
    )
    .unwrap();
    for lie in lies {
        let refused = StateReader::from_bytes(lie).and_then(|mut reader| reader.take_all::<Vcpu>());
        refused.expect_err("a lie");
    }
}
