//! Assembles the tiny guest.

#![allow(clippy::expect_used, reason = "a build script fails by a panic")]

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=guests/tiny.S");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let elf = out.join("tiny.elf");
    let status = Command::new("cc")
        .args([
            "-nostdlib",
            "-static",
            "-no-pie",
            "-Wl,--build-id=none",
            "-Wl,-z,noexecstack",
        ])
        .args(["-Wl,-Ttext-segment=0x100000", "-Wl,-z,max-page-size=4096"])
        .args([
            "-o",
            elf.to_str().expect("cargo's paths are text"),
            "guests/tiny.S",
        ])
        .status()
        .expect("could not run cc, the C compiler that Rust links with");
    assert!(status.success(), "could not assemble guests/tiny.S");
    println!("cargo::rustc-env=TINY_ELF={}", elf.display());
}
