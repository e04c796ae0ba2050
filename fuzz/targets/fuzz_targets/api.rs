#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmgenie_fuzz::api(data));
