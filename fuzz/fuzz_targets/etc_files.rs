//! libFuzzer's way into the target `etc_files`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| peerage_fuzz::run("etc_files", data));
