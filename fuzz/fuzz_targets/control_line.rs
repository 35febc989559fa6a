//! libFuzzer's way into the target `control_line`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| peerage_fuzz::run("control_line", data));
