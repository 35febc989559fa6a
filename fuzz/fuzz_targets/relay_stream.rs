//! libFuzzer's way into the target `relay_stream`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| peerage_fuzz::run("relay_stream", data));
