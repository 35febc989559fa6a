//! libFuzzer's way into the target `model_operator`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| peerage_fuzz::run("model_operator", data));
