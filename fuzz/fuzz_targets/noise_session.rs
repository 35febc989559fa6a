//! libFuzzer's way into the target `noise_session`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| peerage_fuzz::run("noise_session", data));
