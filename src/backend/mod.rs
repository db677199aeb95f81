//! Running graphs. The only module that sees ONNX Runtime, and the only one with `unsafe` code.
//!
//! A [`Backbone`] and each [`HeadModel`] hold a session for every lane, on one copy of their weights. The backbone's
//! outputs are a [`FeatureBatch`]; a [`FeatureRow`] is one image's share of it, and a head reads contiguous rows in
//! place, in host memory or in a [`Device`]'s.

mod backbone;
mod binding;
mod buffer;
mod contract;
mod cuda;
mod device;
mod fault;
mod features;
mod fixed;
mod head;
mod library;
mod openvino;
mod options;
mod placement;
mod runtime;
mod session;
mod weights;

use thiserror::Error;

pub use backbone::Backbone;
pub use device::{CopiedBytes, Device, Faults};
pub use fault::Fault;
pub use features::{FeatureBatch, FeatureRow, HeadBatch, HeadRow, TensorRow};
pub use head::HeadModel;
pub use library::LIBRARY_VERSION;
pub use options::{
    Arena, CachePolicy, ConvSearch, DeviceChoice, DeviceOptions, Precision, TensorRtOptions,
};
pub use placement::Placement;
pub use runtime::Runtime;
pub use session::SessionOptions;

/// Element type of a tensor that crosses the backend's border.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// IEEE 754 32-bit.
    F32,
    /// IEEE 754 16-bit.
    F16,
    /// Signed 64-bit.
    I64,
    /// Signed 32-bit.
    I32,
    /// Unsigned 8-bit.
    U8,
}

impl Element {
    /// Its name in manifests and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::I64 => "int64",
            Self::I32 => "int32",
            Self::U8 => "uint8",
        }
    }

    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 => 2,
            Self::U8 => 1,
        }
    }
}

/// What an output looks like for one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name of the graph's output.
    pub name: String,
    /// Element type.
    pub element: Element,
    /// Shape without the batch.
    pub shape: Vec<usize>,
}

/// Why a graph does not load or run.
#[derive(Debug, Error, Clone)]
pub enum BackendError {
    /// The ONNX Runtime library is missing or is another version.
    #[error("{0}")]
    Library(String),
    /// The device cannot be used.
    #[error("{0}")]
    Device(String),
    /// The graph is not what its manifest says.
    #[error("{graph}: {field}: {reason}")]
    Contract {
        /// The graph's file.
        graph: String,
        /// The input, output or manifest field at fault.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// ONNX Runtime refused to load or run the graph.
    #[error("{graph}: {detail}")]
    Run {
        /// The graph's file.
        graph: String,
        /// What ONNX Runtime said.
        detail: String,
    },
}

impl BackendError {
    /// What this says about the device.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Run { detail, .. } => fault::classify(detail),
            Self::Library(_) | Self::Device(_) | Self::Contract { .. } => Fault::Graph,
        }
    }

    /// Whether it is the graph that cannot be served, wherever it is tried, rather than the machine that cannot.
    #[must_use]
    pub fn refuses_graph(&self) -> bool {
        match self {
            Self::Contract { .. } => true,
            Self::Run { .. } => self.fault() == Fault::Graph,
            Self::Library(_) | Self::Device(_) => false,
        }
    }

    fn contract(graph: &str, field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Contract {
            graph: graph.to_owned(),
            field: field.into(),
            reason: reason.into(),
        }
    }

    fn run(graph: &str, error: impl std::fmt::Display) -> Self {
        Self::Run {
            graph: graph.to_owned(),
            detail: error.to_string(),
        }
    }
}
