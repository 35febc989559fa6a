//! libFuzzer's way into the target `state`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| peerage_fuzz::run("state", data));
