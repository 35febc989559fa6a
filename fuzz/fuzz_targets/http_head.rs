//! libFuzzer's way into the target `http_head`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| peerage_fuzz::run("http_head", data));
