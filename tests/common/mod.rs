//! What the tests and the benchmark share.

pub(crate) mod framing;
pub(crate) mod graphs;
mod onnx;
pub(crate) mod process;
