//! Any bytes as a JPEG: pixels of the size that the header says, or an error.
#![no_main]

#[path = "decode.rs"]
mod decode;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decode::check(&[0xff, 0xd8, 0xff], bytes));
