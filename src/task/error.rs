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
        tensor: String,
    },
    /// No probability.
    #[error("{tensor} holds {value}, but must be probabilities, from 0 to 1")]
    NotProbability {
        /// Name of the tensor.
        tensor: &'static str,
        /// The value, as text.
        value: String,
    },
    /// A label outside the manifest's.
    #[error("{tensor} holds {label}, but the head has {count} labels, from 0 on")]
    LabelOutOfRange {
        /// Name of the tensor.
        tensor: &'static str,
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

/// How far rounding may carry a probability outside 0 to 1, in the graph's precision.
pub const PROBABILITY_TOLERANCE: f32 = 1e-3;

/// Checks that `values` of `tensor` are probabilities.
pub(super) fn check_probabilities<'a>(
    tensor: &'static str,
    values: impl Iterator<Item = &'a f32> + Clone,
) -> Result<(), TaskError> {
    let range = -PROBABILITY_TOLERANCE..=1.0 + PROBABILITY_TOLERANCE;
    // Without a way out in the loop it runs over many values at once; a NaN is in no range.
    if (values.clone()).fold(true, |all, value| all & range.contains(value)) {
        return Ok(());
    }
    let mut values = values;
    let value = values.find(|value| !range.contains(value));
    Err(TaskError::NotProbability {
        tensor,
        value: value.map_or_else(String::new, ToString::to_string),
    })
}

/// Checks that `values` of `tensor` are finite.
pub(super) fn check_finite<'a>(
    tensor: &str,
    mut values: impl Iterator<Item = &'a f32>,
) -> Result<(), TaskError> {
    match values.all(|value| value.is_finite()) {
        true => Ok(()),
        false => Err(TaskError::NotFinite {
            tensor: tensor.to_owned(),
        }),
    }
}
