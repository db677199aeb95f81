//! Why a head's output cannot be used.

use thiserror::Error;

/// A head gave something that its task cannot be made from.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{tensor}: {problem}")]
pub struct TaskError {
    /// Name of the graph's output.
    pub tensor: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with an output.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// Tensors do not fit together.
    #[error("has the shape {actual:?}, but must have {expected}")]
    Shape {
        /// What would fit.
        expected: String,
        /// What there is.
        actual: Vec<usize>,
    },
    /// There is none of this name and type.
    #[error("is missing or of another type")]
    Missing,
    /// A NaN or an infinity.
    #[error("holds a value that is not finite")]
    NotFinite,
    /// No probability.
    #[error("holds {value}, but must be probabilities, from 0 to 1")]
    NotProbability {
        /// The value, as text.
        value: String,
    },
    /// A label outside the manifest's.
    #[error("holds the label {label}, but the manifest has {count} labels, numbered from 0")]
    LabelOutOfRange {
        /// The label.
        label: i64,
        /// Number of labels.
        count: usize,
    },
}

/// How far rounding may carry a probability outside 0 to 1, in the graph's precision.
const TOLERANCE: f32 = 1e-3;

impl Problem {
    /// This, of `tensor`.
    #[must_use]
    pub fn of(self, tensor: &str) -> TaskError {
        TaskError {
            tensor: tensor.to_owned(),
            problem: self,
        }
    }

    pub(super) fn shape(expected: impl Into<String>, actual: &[usize]) -> Self {
        Self::Shape {
            expected: expected.into(),
            actual: actual.to_vec(),
        }
    }
}

/// Checks that `values` of `tensor` are probabilities.
pub(super) fn check_probabilities<'a>(
    tensor: &str,
    values: impl Iterator<Item = &'a f32> + Clone,
) -> Result<(), TaskError> {
    let range = -TOLERANCE..=1.0 + TOLERANCE;
    // Without a way out in the loop it runs over many values at once; a NaN is in no range.
    if (values.clone()).fold(true, |all, value| all & range.contains(value)) {
        return Ok(());
    }
    let mut values = values;
    let value = values.find(|value| !range.contains(value));
    let value = value.map_or_else(String::new, ToString::to_string);
    Err(Problem::NotProbability { value }.of(tensor))
}

/// Checks that `values` of `tensor` are finite.
pub(super) fn check_finite<'a>(
    tensor: &str,
    values: impl Iterator<Item = &'a f32>,
) -> Result<(), TaskError> {
    match values.fold(true, |all, value| all & value.is_finite()) {
        true => Ok(()),
        false => Err(Problem::NotFinite.of(tensor)),
    }
}
