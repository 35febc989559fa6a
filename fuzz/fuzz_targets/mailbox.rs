//! libFuzzer's way into the target `mailbox`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| peerage_fuzz::run("mailbox", data));
