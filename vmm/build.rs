//! How the release build is linked, so that a process is small.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=layout.ld");
    // Only where the profile asks for size; tests need no such thing.
    if env::var("OPT_LEVEL").as_deref() != Ok("z") {
        return;
    }
    // What is packed needs a dynamic linker, or a start-up code, that unpacks it: glibc has had that since 2.36.
    if env::var("CARGO_CFG_TARGET_ENV").as_deref() != Ok("gnu") {
        return;
    }
    let package = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rustc-link-arg-bin=vmgenie=-Wl,-T,{package}/layout.ld");
    // 130 KiB of relocations, all of them read at the start, become 3.
    println!("cargo:rustc-link-arg-bin=vmgenie=-Wl,-z,pack-relative-relocs");
}
