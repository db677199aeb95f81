//! Kinds of answers.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Kind of answer that a head gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Boxes, with or without instance masks.
    Detection,
    /// A label for each pixel.
    Segmentation,
    /// Probabilities for a clip.
    Action,
    /// Probabilities for an image.
    Classification,
    /// A vector for an image.
    Embedding,
    /// Raw outputs.
    Tensor,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Detection => "detection",
            Self::Segmentation => "segmentation",
            Self::Action => "action",
            Self::Classification => "classification",
            Self::Embedding => "embedding",
            Self::Tensor => "tensor",
        })
    }
}
