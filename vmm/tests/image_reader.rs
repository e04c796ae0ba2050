//! The process that reads images, with images that are made to do it harm: it ends, says so, and takes no more than it may.
//!
//! Each of these images made the reader of file systems that is used crash, take all memory, or never come back.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

const TOOLS: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
const BLOCK: u64 = 4096;
const BLOCKS: u64 = 1024;

/// An image with a kernel, and the bytes of its metadata without checksums.
fn image() -> NamedTempFile {
    image_with(b"kernel", BLOCKS)
}

/// The same with another kernel, of so many blocks.
fn image_with(kernel: &[u8], blocks: u64) -> NamedTempFile {
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join("vmlinux"), kernel).unwrap();
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(blocks * BLOCK).unwrap();
    let made = Command::new("mke2fs")
        .env("PATH", TOOLS)
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-O",
            "^metadata_csum",
            "-d",
        ])
        .args([tree.path(), image.path()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    image
}

/// Has debugfs change the image or tell something of it.
fn debugfs(image: &NamedTempFile, request: &str) -> String {
    let done = Command::new("debugfs")
        .env("PATH", TOOLS)
        .args(["-w", "-R", request])
        .arg(image.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    String::from_utf8(done.stdout).unwrap()
}

fn read(image: &NamedTempFile, limit: u64) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmgenie"))
        .args(["--read-image", &limit.to_string()])
        .stdin(Stdio::from(File::open(image.path()).unwrap()))
        .output()
        .unwrap()
}

#[test]
fn a_good_image_is_read() {
    let image = image();
    let done = read(&image, 6);
    assert!(done.status.success(), "{done:?}");
    assert_eq!((done.stdout, done.stderr), (b"kernel".to_vec(), Vec::new()));
    let done = read(&image, 0);
    assert!(done.status.success() && done.stdout.is_empty(), "{done:?}");
}

#[test]
fn without_a_limit_nothing_is_read() {
    for limit in [&["--read-image"][..], &["--read-image", "much"]] {
        let done = Command::new(env!("CARGO_BIN_EXE_vmgenie"))
            .args(limit)
            .output();
        assert_eq!(done.unwrap().status.code(), Some(2));
    }
}

#[test]
fn an_index_of_a_directory_that_is_none_ends_the_reader_only() {
    let image = image();
    debugfs(&image, "sif / flags 0x81000");
    assert!(!read(&image, 1 << 20).status.success());
}

#[test]
fn a_link_that_says_it_is_large_takes_no_memory() {
    for size in ["0x30000000000", "0x1000000000", "0x40000000"] {
        let image = image();
        debugfs(&image, "symlink vmlinuz-6 /vmlinux");
        debugfs(&image, "rm vmlinux");
        debugfs(
            &image,
            "symlink vmlinux a-long-name-that-does-not-fit-into-an-inode-because-it-has-more-than-sixty-bytes",
        );
        debugfs(&image, &format!("sif vmlinux size {size}"));
        let begun = Instant::now();
        assert!(!read(&image, 1 << 20).status.success(), "{size}");
        assert!(begun.elapsed() < Duration::from_secs(60), "{size}");
    }
}

/// A node of an extent tree: the header, and entries that are all the same.
fn node(depth: u16, entries: u16, entry: [u8; 12]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [0xf30a, entries, entries.max(4), depth, 0, 0] {
        bytes.extend(u16::to_le_bytes(word));
    }
    (0..entries).for_each(|_| bytes.extend(entry));
    bytes
}

/// The index entry that leads to a block.
fn to_block(block: u64) -> [u8; 12] {
    let mut entry = [0; 12];
    entry[4..8].copy_from_slice(&u32::try_from(block).unwrap().to_le_bytes());
    entry
}

#[test]
fn a_tree_that_leads_to_the_same_blocks_again_and_again_ends_with_the_time_that_there_is() {
    let image = image();
    let place = debugfs(&image, "imap /");
    let place = place.split_once("located at block ").unwrap().1.trim();
    let (block, offset) = place.split_once(", offset 0x").unwrap();
    let block: u64 = block.parse().unwrap();
    let offset = u64::from_str_radix(offset, 16).unwrap();
    let file = image.reopen().unwrap();
    // The last blocks are free.
    let first = BLOCKS - 6;
    file.write_all_at(&node(5, 1, to_block(first)), block * BLOCK + offset + 0x28)
        .unwrap();
    for step in 0..4_u16 {
        let entry = to_block(first + u64::from(step) + 1);
        let bytes = node(4 - step, 340, entry);
        file.write_all_at(&bytes, (first + u64::from(step)) * BLOCK)
            .unwrap();
    }
    file.write_all_at(&node(0, 340, [0; 12]), (first + 4) * BLOCK)
        .unwrap();
    // A narrower bound than its own, because it takes all that there is.
    let done = Command::new("prlimit")
        .args([
            "--cpu=2:3",
            env!("CARGO_BIN_EXE_vmgenie"),
            "--read-image",
            "1000000",
        ])
        .stdin(Stdio::from(File::open(image.path()).unwrap()))
        .output()
        .unwrap();
    assert_eq!(done.status.signal(), Some(libc::SIGXCPU), "{done:?}");
}

/// What the descriptors of a process lead to; none if it has ended, or is no reader (yet).
fn descriptors(process: &Path) -> Option<Vec<PathBuf>> {
    let named = || {
        let line = fs::read(process.join("cmdline")).ok()?;
        line.windows(12)
            .any(|part| part == b"--read-image")
            .then_some(())
    };
    named()?;
    // One that was closed in between is no reason to look away: the next look has the others.
    links(&process.join("fd")).filter(|paths| !paths.is_empty())
}

fn links(dir: &Path) -> Option<Vec<PathBuf>> {
    let entries: Vec<_> = fs::read_dir(dir).ok()?.collect();
    // The listing's own descriptor may be among them, and is closed by now.
    let paths = entries
        .into_iter()
        .map(|entry| fs::read_link(entry.ok()?.path()).ok());
    Some(paths.flatten().collect())
}

/// The processes that `parent` has started.
fn children(parent: u32) -> Vec<PathBuf> {
    let of_parent = |process: &PathBuf| {
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        status.contains(&format!("\nPPid:\t{parent}\n"))
    };
    let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    all.map(|entry| entry.path()).filter(of_parent).collect()
}

/// Looks at readers, which `start` starts, until one was seen at work: each has its image, the two files to write to and copies of those three.
fn nothing_else_is_open(
    image: &Path,
    start: impl Fn() -> Child,
    readers: impl Fn(u32) -> Vec<PathBuf>,
) {
    // What this test got from who runs it is everybody's until the reader closes it.
    let mut inherited = links(Path::new("/proc/self/fd")).unwrap();
    inherited.retain(|path| path != image);
    for _ in 0..50 {
        let mut started = start();
        let mut at_work = false;
        while started.try_wait().unwrap().is_none() {
            for found in readers(started.id())
                .iter()
                .filter_map(|reader| descriptors(reader))
            {
                let own = |path: &PathBuf| !inherited.contains(path);
                let found: Vec<_> = found.into_iter().filter(own).collect();
                let to = |end: &str| {
                    let ends = |path: &&PathBuf| path.to_string_lossy().ends_with(end);
                    found.iter().filter(ends).count()
                };
                let to_image = found.iter().filter(|path| *path == image).count();
                let (to_kernel, to_initrd) = (to("kernel (deleted)"), to("initrd (deleted)"));
                assert_eq!(to_image + to_kernel + to_initrd, found.len(), "{found:?}");
                assert!(found.len() <= 5, "{found:?}");
                at_work |= to_kernel == 2;
            }
        }
        if at_work {
            return;
        }
    }
    panic!("no reader was seen at work");
}

const LARGE: usize = 32 << 20;

#[test]
fn a_reader_has_its_image_and_what_it_writes_to_and_nothing_else() {
    let image = image_with(&vec![0xff; LARGE], 16 << 10);
    // The VMM keeps its own descriptors to itself.
    let start = || {
        Command::new(env!("CARGO_BIN_EXE_vmgenie"))
            .args(["run", "--kernel"])
            .arg(image.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    nothing_else_is_open(image.path(), start, children);
}

#[test]
fn a_reader_closes_what_its_parent_left_open() {
    let image = image_with(&vec![0xff; LARGE], 16 << 10);
    let dir = tempfile::tempdir().unwrap();
    let opened = |name: &str| {
        let path = dir.path().join(name);
        let file = File::create(&path).unwrap();
        fs::remove_file(path).unwrap();
        file
    };
    // Only at work: it is given a moment to close it.
    let start = || {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "exec 9<. && exec \"$@\"", "sh"])
            .args([env!("CARGO_BIN_EXE_vmgenie"), "--read-image", "100000000"])
            .current_dir(dir.path())
            .stdin(Stdio::from(File::open(image.path()).unwrap()))
            .stdout(opened("kernel"))
            .stderr(opened("initrd"));
        command.spawn().unwrap()
    };
    let readers = |pid| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let limits = fs::read_to_string(process.join("limits")).unwrap_or_default();
        // It bounds itself right after it has closed them.
        let bound =
            |line: &str| line.starts_with("Max address space") && line.contains(" 536870912 ");
        let confined = limits.lines().any(bound);
        confined.then_some(process).into_iter().collect()
    };
    nothing_else_is_open(image.path(), start, readers);
}
