//! Vectors: finite floats of any shape and names, given as they are.

use super::{
    Found, Problem, TaskError,
    spec::{Call, Spec},
};

/// A vector for an image.
pub(super) const SPEC: Spec = Spec {
    name: "embedding",
    any: ("float32 or float16 `[N, ...]`", "finite"),
    floats: true,
    run: |call| check(call).map(|()| Some(Found::Raw)),
    check,
    ..Spec::PLAIN
};

fn check(call: &Call<'_>) -> Result<(), TaskError> {
    match call.tensors.not_finite() {
        Some(name) => Err(Problem::NotFinite.of(name)),
        None => Ok(()),
    }
}
