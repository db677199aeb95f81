//! Any bytes as a WebP: pixels of the size that the header says, or an error.
#![no_main]

#[path = "decode.rs"]
mod decode;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decode::check(b"RIFF", bytes));
