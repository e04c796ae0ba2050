//! Overlays on file systems that make data of holes. Each test runs this program once more, as root of a mount namespace of its own.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::copy_file::copy_file;
use super::super::overlay;
use super::super::test::{Place, first_bytes};
use super::super::{Drive, DriveConfig, IoEngine};
use super::*;

/// Set in a process that is in its namespace already.
const INSIDE: &str = "VMGENIE_TEST_NAMESPACE";
const LEN: u64 = 4 << 20;

fn in_namespace(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let module = module_path!().split_once("::").unwrap().1;
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{test}"), "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare (package util-linux)");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("1 passed"), "no such test: {text}");
}

fn mount(kind: &str, options: &str, at: &Path) {
    let mut command = Command::new("mount");
    command.args(["-t", kind, "-o", options, kind]).arg(at);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn open(path: &Path) -> File {
    let mut options = File::options();
    options.read(true).write(true).create(true);
    options.truncate(false).open(path).unwrap()
}

/// A base of ones, and an overlay at `path` with a granule of twos, the third, and one at its end.
fn with_overlay(path: PathBuf) -> (Place, DriveConfig) {
    let place = Place::new(&[1; LEN as usize]);
    let file = open(&path);
    overlay::format(&file, LEN).unwrap();
    // Where the disk begins is the overlay's secret.
    let data_at = file.metadata().unwrap().len() - LEN;
    for granule in [2, LEN / GRANULE - 1] {
        let two = [2; GRANULE as usize];
        file.write_all_at(&two, data_at + granule * GRANULE)
            .unwrap();
    }
    let config = DriveConfig {
        overlay: Some(path),
        ..place.config(IoEngine::Sync)
    };
    (place, config)
}

fn check_disk(config: &DriveConfig) {
    let bytes = first_bytes(&mut Drive::open(config).unwrap(), 16 << 10);
    let granules: Vec<u8> = bytes.chunks(4096).map(|granule| granule[0]).collect();
    assert_eq!(granules, [1, 1, 2, 1]);
}

#[test]
fn an_overlay_is_not_copied_to_where_pages_are_huge_nor_used_there() {
    in_namespace(
        "an_overlay_is_not_copied_to_where_pages_are_huge_nor_used_there",
        || {
            for huge in ["always", "within_size"] {
                let dir = tempfile::tempdir().unwrap();
                let (_place, config) = with_overlay(dir.path().join("overlay"));
                check_disk(&config);
                let path = config.overlay.clone().unwrap();
                let there = dir.path().join("huge");
                std::fs::create_dir(&there).unwrap();
                mount("tmpfs", &format!("huge={huge},size=64m"), &there);
                let copy = there.join("copy");
                let refused = copy_file(File::open(&path).unwrap(), &copy, true);
                let refused = refused.unwrap_err().to_string();
                assert!(refused.contains("does not tell exactly"), "{refused}");
                assert!(!copy.exists());
                // Nor is one that another program has brought there.
                let config = DriveConfig {
                    overlay: Some(copy.clone()),
                    ..config
                };
                let mut program = Command::new("cp");
                program.arg("--sparse=always").args([&path, &copy]);
                assert!(program.status().unwrap().success());
                assert!(Drive::open(&config).is_err());
                let _ = Command::new("umount").arg(&there).status();
            }
        },
    );
}

#[test]
fn an_overlay_in_a_lower_layer_of_overlayfs_keeps_its_holes_and_its_time() {
    in_namespace(
        "an_overlay_in_a_lower_layer_of_overlayfs_keeps_its_holes_and_its_time",
        || {
            let dir = tempfile::tempdir().unwrap();
            let layers = dir.path().join("layers");
            std::fs::create_dir(&layers).unwrap();
            mount("tmpfs", "size=64m", &layers);
            for name in ["lower", "upper", "work", "all"] {
                std::fs::create_dir(layers.join(name)).unwrap();
            }
            let (_place, mut config) = with_overlay(layers.join("lower/overlay"));
            let of = |name: &str| layers.join(name).display().to_string();
            let options = format!(
                "lowerdir={},upperdir={},workdir={},userxattr",
                of("lower"),
                of("upper"),
                of("work")
            );
            mount("overlay", &options, &layers.join("all"));
            let path = layers.join("all/overlay");
            config.overlay = Some(path.clone());
            let modified = || std::fs::metadata(&path).unwrap().modified().unwrap();
            let before = modified();
            for _ in 0..2 {
                check_disk(&config);
                assert_eq!(modified(), before);
            }
            assert!(layers.join("upper/overlay").exists(), "it was not moved");
        },
    );
}
