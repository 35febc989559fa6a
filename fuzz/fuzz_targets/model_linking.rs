//! libFuzzer's way into the target `model_linking`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| peerage_fuzz::run("model_linking", data));
