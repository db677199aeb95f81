//! One copy of a graph's weights for several sessions.
//!
//! A session keeps its own copy of every initializer unless it is handed one from outside. So the large ones are taken
//! out of the graph once and handed to every session, and what kernels make of them (packed matrices) is shared too.

use std::sync::Arc;

use ort::{
    session::builder::{PrepackedWeights, SessionBuilder},
    value::DynValue,
};
use prost::Message;

use super::{BackendError, Element, features::host_tensor};
use crate::repository::Graph;

/// Smaller initializers are not worth a handle of their own.
const LEAST_BYTES: usize = 4096;

/// The part of ONNX's `ModelProto` that leads to the initializers; field numbers from `onnx.proto3`.
#[derive(Message)]
struct ModelProto {
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
}

#[derive(Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
}

#[derive(Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "bytes", tag = "9")]
    raw_data: bytes::Bytes,
    #[prost(int32, tag = "14")]
    data_location: i32,
}

/// Initializers that several sessions of one graph share.
pub(super) struct SharedWeights {
    initializers: Vec<(String, Arc<DynValue>)>,
    packed: PrepackedWeights,
}

impl SharedWeights {
    /// The large initializers of `graph`. Those outside the file, or of a type that does not cross the border, stay
    /// with each session.
    ///
    /// # Errors
    /// The file is not an ONNX model.
    pub(super) fn of(graph: &Graph) -> Result<Self, BackendError> {
        let bad = |detail: String| BackendError::run(&graph.name, detail);
        let model = ModelProto::decode(&graph.bytes[..])
            .map_err(|error| bad(format!("is not an ONNX model ({error})")))?;
        let tensors = model.graph.map(|graph| graph.initializer);
        let mut initializers = Vec::new();
        for tensor in tensors.into_iter().flatten() {
            let Some(element) = element(tensor.data_type) else {
                continue;
            };
            let shape: Option<Vec<usize>> = tensor
                .dims
                .iter()
                .map(|&d| usize::try_from(d).ok())
                .collect();
            let Some(shape) = shape else { continue };
            let bytes = shape
                .iter()
                .try_fold(element.size(), |all, &d| all.checked_mul(d));
            let whole = tensor.data_location == 0 && bytes == Some(tensor.raw_data.len());
            if !whole || tensor.raw_data.len() < LEAST_BYTES {
                continue;
            }
            let value = host_tensor(element, &shape, |out| out.copy_from_slice(&tensor.raw_data))
                .map_err(|error| bad(error.to_string()))?;
            initializers.push((tensor.name, Arc::new(value.into_dyn())));
        }
        Ok(Self {
            initializers,
            packed: PrepackedWeights::new(),
        })
    }

    /// Hands the shared weights to a session about to be made.
    pub(super) fn give(&self, mut builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        for (name, value) in &self.initializers {
            builder = builder.with_initializer(name, Arc::clone(value))?;
        }
        Ok(builder.with_prepacked_weights(&self.packed)?)
    }
}

/// `TensorProto.DataType` of the elements that weights come in.
fn element(kind: i32) -> Option<Element> {
    match kind {
        1 => Some(Element::F32),
        2 => Some(Element::U8),
        6 => Some(Element::I32),
        7 => Some(Element::I64),
        10 => Some(Element::F16),
        _ => None,
    }
}
