//! Any bytes as an ONNX graph: an error, or a graph whose weights are where they may be.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| frostline::repository::fuzz_graph(bytes));
