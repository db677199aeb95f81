//! Any bytes as a request, its header and its framing: an error, or something that the engine may be asked.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| frostline::server::fuzzing::request(bytes));
