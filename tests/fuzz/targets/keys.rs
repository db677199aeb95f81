//! Any text as a key file, a key set and a token: an error, and never an identity.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| frostline::server::fuzzing::keys(bytes));
