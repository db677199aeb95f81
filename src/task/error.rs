//! Why a head's output cannot be used.

use thiserror::Error;

/// A head gave something that its task cannot be made from.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TaskError {
    /// Tensors do not fit together.
    #[error("{tensor} has the shape {actual:?}, expected {expected}")]
    Shape {
        /// Name of the tensor.
        tensor: &'static str,
        /// What would fit.
        expected: String,
        /// What there is.
        actual: Vec<usize>,
    },
    /// A NaN or an infinity.
    #[error("{tensor} holds a value that is not finite")]
    NotFinite {
        /// Name of the tensor.
        tensor: &'static str,
    },
    /// A label outside the manifest's.
    #[error("label {label} is not among the head's {count}")]
    LabelOutOfRange {
        /// The label.
        label: i64,
        /// Number of labels.
        count: usize,
    },
}

impl TaskError {
    pub(super) fn shape(
        tensor: &'static str,
        expected: impl Into<String>,
        actual: &[usize],
    ) -> Self {
        Self::Shape {
            tensor,
            expected: expected.into(),
            actual: actual.to_vec(),
        }
    }
}
