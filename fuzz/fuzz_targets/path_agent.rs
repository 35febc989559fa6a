//! libFuzzer's way into the target `path_agent`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| peerage_fuzz::run("path_agent", data));
