//! Any bytes as an image of whatever format they begin like, or of none.
#![no_main]

#[path = "decode.rs"]
mod decode;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decode::check(b"", bytes));
