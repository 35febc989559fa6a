//! libFuzzer's way into the target `dns_message`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| peerage_fuzz::run("dns_message", data));
