//! State files with each version of each part that there ever was, as the programs of that time wrote them (`golden/`). Each loads, or is refused by
//! name.
//!
//! A file is called after the part and the version for which it is kept. `machine-1.state` alone was put together from the parts of `virtio-1.state`
//! and a part `machine` as it was then.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use super::*;

fn path(name: &str) -> PathBuf {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden");
    golden.join(format!("{name}.state"))
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(path(name)).unwrap()
}

/// The names of all files.
fn names() -> Vec<String> {
    let files = fs::read_dir(path("any").parent().unwrap()).unwrap();
    let name = |file: fs::DirEntry| file.path().file_stem()?.to_str().map(str::to_owned);
    let mut names: Vec<_> = files.filter_map(|file| name(file.unwrap())).collect();
    names.sort();
    names
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

/// With `VMGENIE_UPDATE=1` in the environment a file is written for each version that is new. One that is there stays as it is.
#[test]
fn what_is_written_today_is_in_a_file() {
    let files = || names().iter().map(|name| golden(name)).collect::<Vec<_>>();
    if std::env::var_os("VMGENIE_UPDATE").is_some() {
        for part in missing(&files(), &records()) {
            let name = path(&format!("{}-{}", part.tag, part.version));
            if !name.exists() {
                fs::write(name, file(&records())).unwrap();
            }
        }
    }
    let missing = tags(&missing(&files(), &records()));
    assert!(
        missing.is_empty(),
        "the bytes of {missing:?} have changed: give them another version, and keep a file of it \
         (VMGENIE_UPDATE=1 cargo test -p vmgenie-fuzz)"
    );
}

/// The parts that are in none of the files, of those that are the same each time: in others there are random numbers and times.
fn missing(files: &[Vec<u8>], parts: &[Record]) -> Vec<Record> {
    let others: Vec<_> = records().iter().map(bytes).collect();
    let same = |part: &&Record| part.tag == "virtio" || others.contains(&bytes(part));
    let same: Vec<_> = parts.iter().filter(same).cloned().collect();
    assert!(same.len() > 10, "{}", same.len());
    let is_in = |part: &Record| files.iter().any(|file| has(file, &bytes(part)));
    same.into_iter().filter(|part| !is_in(part)).collect()
}

fn bytes(part: &Record) -> Vec<u8> {
    encoded(&(part.tag, part.index, part.version, &part.body))
}

fn has(file: &[u8], bytes: &[u8]) -> bool {
    file.windows(bytes.len()).any(|window| window == bytes)
}

fn tags(parts: &[Record]) -> Vec<&'static str> {
    parts.iter().map(|part| part.tag).collect()
}

#[test]
fn there_is_a_file_with_each_version_of_each_part() {
    let files: Vec<_> = names().iter().map(|name| golden(name)).collect();
    for part in records() {
        for version in 1..=part.version {
            let head = encoded(&(part.tag, part.index, version));
            let found = files.iter().any(|file| has(file, &head));
            assert!(found, "no file has {} {version}", part.tag);
        }
    }
}

#[test]
fn a_file_of_each_version_loads_or_is_refused_by_name() {
    for name in names() {
        let found = read(golden(&name));
        let mut expected = devices();
        match name.as_str() {
            "machine-1" | "virtio-1" => {
                let refused = found.unwrap_err();
                let (tag, _) = name.split_once('-').unwrap();
                assert!(refused.contains(tag), "{name}: {refused}");
                continue;
            }
            "virtio-2" => {
                // As it was then: the guest reaches whoever listens.
                let mut vsock = expected.vsock().unwrap().clone();
                vsock.peers = VsockPeers::Any;
                expected.set_vsock(vsock);
            }
            _ => {}
        }
        assert_eq!(found, Ok(expected), "{name}");
    }
}

#[test]
fn a_field_more_in_the_list_of_devices_is_seen() {
    let mut records = records();
    for record in records.iter_mut().filter(|record| record.tag == "virtio") {
        record.body.push(0);
    }
    let files: Vec<_> = names().iter().map(|name| golden(name)).collect();
    assert_eq!(tags(&missing(&files, &records)), ["virtio"]);
    read(file(&records)).unwrap_err();
}
