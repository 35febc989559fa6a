//! libFuzzer's way into the target `knock`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| peerage_fuzz::run("knock", data));
