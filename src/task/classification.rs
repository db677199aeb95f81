//! Classification: probabilities over labels, for an image.

use ndarray::ArrayView1;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Found, TaskError,
    error::check_finite,
    spec::{Ask, Call, Key, LABELS, Output, Set, Spec},
};

/// Probabilities for an image.
pub(super) const SPEC: Spec = Spec {
    name: "classification",
    labelled: true,
    outputs: &[&[LOGITS]],
    keys: &[TOP_K],
    asks: &[Ask::TopK],
    run: |call| {
        let count = call.options.top_k;
        let count = count.unwrap_or_else(|| call.post.classification.top_k());
        Ok(Some(Found::Classification(top_k(
            &probabilities(call)?,
            count,
        ))))
    },
    check: |call| probabilities(call).map(|_| ()),
    bytes: |_, _, labels, _| Some(labels as u64 * LABEL_BYTES),
    ..Spec::PLAIN
};

const LOGITS: Output = Output {
    name: "logits",
    element: "float32",
    shape: &[LABELS],
    values: "finite; their softmax is the probabilities",
    when: "",
};

/// Bytes of a label for people, and the score beside it.
const LABEL_BYTES: u64 = 64;

/// The manifest's keys.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
pub struct Keys {
    /// Labels in an answer, the most probable first. A caller may ask for another number.
    pub top_k: Option<usize>,
}

impl Keys {
    const DEFAULT_TOP_K: usize = 5;

    /// Labels in an answer.
    #[must_use]
    pub fn top_k(&self) -> usize {
        self.top_k.unwrap_or(Self::DEFAULT_TOP_K)
    }
}

pub(super) const TOP_K: Key = Key {
    name: "top_k",
    range: Some(1.0..=100_000.0),
    default: Some(Keys::DEFAULT_TOP_K as f64),
    required: false,
    get: |post| post.classification.top_k.map(Set::Count),
};

fn probabilities(call: &Call<'_>) -> Result<Vec<f32>, TaskError> {
    softmax(call.f32(LOGITS.name)?)
}

/// A label with its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoredLabel {
    /// Index into the head's labels.
    pub label: u32,
    /// 0 to 1.
    pub probability: f32,
}

/// Softmax of `logits`, summed in double precision.
///
/// # Errors
/// [`Problem::NotFinite`](super::Problem::NotFinite) for a NaN or an infinity.
pub fn softmax(logits: ArrayView1<'_, f32>) -> Result<Vec<f32>, TaskError> {
    check_finite("logits", logits.iter())?;
    let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let powers: Vec<f64> = logits
        .iter()
        .map(|&value| (f64::from(value) - most).exp())
        .collect();
    let sum: f64 = powers.iter().sum();
    Ok(powers
        .into_iter()
        .map(|power| (power / sum) as f32)
        .collect())
}

/// The `count` most probable labels, most probable first; equal ones by index.
#[must_use]
pub fn top_k(probabilities: &[f32], count: usize) -> Vec<ScoredLabel> {
    let mut labels: Vec<_> = probabilities
        .iter()
        .enumerate()
        .map(|(label, &probability)| ScoredLabel {
            label: label as u32,
            probability,
        })
        .collect();
    labels.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    labels.truncate(count);
    labels
}

#[cfg(test)]
mod tests {
    use ndarray::arr1;

    use super::*;
    use crate::task::Problem;

    #[test]
    fn softmax_of_large_logits_is_a_distribution() {
        let p = softmax(arr1(&[1000.0, 1000.0, -1000.0]).view()).unwrap();
        assert_eq!(p, [0.5, 0.5, 0.0]);
    }

    #[test]
    fn softmax_refuses_what_is_not_finite() {
        let error = softmax(arr1(&[0.0, f32::NAN]).view()).unwrap_err();
        assert_eq!(error, Problem::NotFinite.of("logits"));
    }

    #[test]
    fn top_k_orders_by_probability_then_index() {
        let top = top_k(&[0.2, 0.3, 0.2, 0.3], 3);
        assert_eq!(top.iter().map(|t| t.label).collect::<Vec<_>>(), [1, 3, 0]);
    }
}
