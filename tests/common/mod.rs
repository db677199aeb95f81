//! What the tests and the benchmark share.

pub(crate) mod framing;
pub(crate) mod graphs;
pub(crate) mod onnx;
pub(crate) mod openvino;
pub(crate) mod process;
