//! State files of each version of the list of virtio devices that there ever was, as the programs of that time wrote them (`golden/`). Each loads,
//! or is refused by name.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use vmgenie_machine::virtio::kinds::DevicesPart;
use vmgenie_snapshot::Part;

use super::*;

fn path(version: u16) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("golden/virtio-{version}.state"))
}

fn golden(version: u16) -> Vec<u8> {
    fs::read(path(version)).unwrap()
}

/// The devices that a file lists, or why it is refused, with all causes.
fn read(bytes: Vec<u8>) -> Result<DevicesConfig, String> {
    let saved = StateReader::from_bytes(bytes).map_err(|error| chain(&error))?;
    let saved = SavedMachine::read(saved).map_err(|error| chain(&error))?;
    saved
        .check_virtio(saved.devices(), &memory(MEMORY_MIB << 20))
        .map_err(|error| chain(&error))?;
    Ok(saved.devices().clone())
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// With `VMGENIE_UPDATE=1` in the environment the file of a version that is new is written. One that is there stays as it is.
#[test]
fn what_is_written_today_is_the_file_of_the_newest_version() {
    let version = DevicesPart::VERSION;
    let today = file(&records());
    if std::env::var_os("VMGENIE_UPDATE").is_some() && !path(version).exists() {
        fs::write(path(version), &today).unwrap();
    }
    let missing = missing(&golden(version), &records());
    assert!(
        missing.is_empty(),
        "the bytes of {missing:?} have changed: give them another version, and keep a file of it \
         (VMGENIE_UPDATE=1 cargo test -p vmgenie-fuzz)"
    );
}

/// The parts that are not in a file, of those that are the same each time: in others there are random numbers and times.
fn missing(file: &[u8], parts: &[Record]) -> Vec<&'static str> {
    let bytes = |part: &Record| encoded(&(part.tag, part.index, part.version, &part.body));
    let others: Vec<_> = records().iter().map(bytes).collect();
    let same: Vec<_> = parts
        .iter()
        .filter(|part| part.tag == "virtio" || others.contains(&bytes(part)))
        .collect();
    assert!(same.len() > 10, "{}", same.len());
    let is_in = |part: &Record| {
        let bytes = bytes(part);
        file.windows(bytes.len()).any(|window| window == bytes)
    };
    let missing = same.into_iter().filter(|part| !is_in(part));
    missing.map(|part| part.tag).collect()
}

#[test]
fn a_file_of_each_version_loads_or_is_refused_by_name() {
    for version in 1..=DevicesPart::VERSION {
        let found = read(golden(version));
        let mut expected = devices();
        match version {
            1 => {
                let refused = found.unwrap_err();
                assert!(refused.contains("virtio"), "{refused}");
                continue;
            }
            2 => {
                // As it was then: the guest reaches whoever listens.
                let mut vsock = expected.vsock().unwrap().clone();
                vsock.peers = VsockPeers::Any;
                expected.set_vsock(vsock);
            }
            _ => {}
        }
        assert_eq!(found, Ok(expected), "version {version}");
    }
}

#[test]
fn a_field_more_in_the_list_of_devices_is_seen() {
    let mut records = records();
    for record in records.iter_mut().filter(|record| record.tag == "virtio") {
        record.body.push(0);
    }
    assert_eq!(missing(&golden(DevicesPart::VERSION), &records), ["virtio"]);
    read(file(&records)).unwrap_err();
}
