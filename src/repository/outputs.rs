//! What a head's graph must give, by task: the one table that the check at start and the page go by.

use super::{HeadManifest, Task};

/// An output of a head's graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// Its name in the graph.
    pub name: &'static str,
    /// Element type, by ONNX's name.
    pub element: &'static str,
    /// Shape of one call, without the batch: a number, [`LABELS`], or the name of a size that is equal wherever it stands.
    pub shape: &'static [&'static str],
    /// What the values are.
    pub values: &'static str,
}

/// The size that is the number of the manifest's labels.
pub const LABELS: &str = "labels";

const BOXES: Output = Output {
    name: "boxes",
    element: "float32",
    shape: &["K", "4"],
    values: "left, top, right, bottom in pixels of the input; finite",
};
const SCORES: Output = Output {
    name: "scores",
    element: "float32",
    shape: &["K"],
    values: "probabilities, 0 to 1; a row of score 0 only fills up, and its box and label mean nothing",
};
const INDICES: Output = Output {
    name: "labels",
    element: "int64",
    shape: &["K"],
    values: "indices into the manifest's labels",
};
const MASKS: Output = Output {
    name: "masks",
    element: "float32",
    shape: &["K", "h", "w"],
    values: "probabilities, 0 to 1, on a grid over what `postprocess.mask` says",
};
const MAP: Output = Output {
    name: "label_map",
    element: "int64",
    shape: &["h", "w"],
    values: "indices into the manifest's labels, on a grid over the whole input",
};
const DENSE: Output = Output {
    name: "logits",
    element: "float32",
    shape: &[LABELS, "h", "w"],
    values: "finite, on a grid over the whole input; the highest of a pixel is its label",
};
const LOGITS: Output = Output {
    name: "logits",
    element: "float32",
    shape: &[LABELS],
    values: "finite; their softmax is the probabilities",
};

impl Task {
    /// All tasks.
    pub const ALL: [Self; 6] = [
        Self::Detection,
        Self::Segmentation,
        Self::Action,
        Self::Classification,
        Self::Embedding,
        Self::Tensor,
    ];

    /// The sets of outputs that a head of this task may give, of which one must be whole. Outputs beyond it are not
    /// looked at. Nothing for tasks whose outputs are given to the caller as they are.
    #[must_use]
    pub fn outputs(self) -> &'static [&'static [Output]] {
        match self {
            // With masks first: which of the two holds is the manifest's to say.
            Self::Detection => &[&[BOXES, SCORES, INDICES, MASKS], &[BOXES, SCORES, INDICES]],
            Self::Segmentation => &[&[MAP], &[DENSE]],
            Self::Action | Self::Classification => &[&[LOGITS]],
            Self::Embedding | Self::Tensor => &[],
        }
    }

    /// Whether a head of this task names its labels.
    #[must_use]
    pub fn is_labelled(self) -> bool {
        !matches!(self, Self::Embedding | Self::Tensor)
    }
}

impl HeadManifest {
    /// The outputs that its graph must give if the graph's outputs are called `names`.
    #[must_use]
    pub fn outputs<'a>(&self, mut names: impl Iterator<Item = &'a str>) -> &'static [Output] {
        let sets = self.task.outputs();
        let set = match self.task {
            Task::Detection => usize::from(self.postprocess.mask.is_none()),
            // A graph that takes the highest logit itself needs not give the logits.
            Task::Segmentation => usize::from(!names.any(|name| name == MAP.name)),
            _ => 0,
        };
        sets.get(set).copied().unwrap_or_default()
    }
}
