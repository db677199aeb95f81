//! From a head's tensors to results in the original image's geometry. Pure and synchronous.
//!
//! A task is one file: the outputs that its graphs give, the manifest's keys, its result and their bounds stand in its
//! [`Spec`], and whoever loads, checks, documents, prices or runs heads goes by that. Here they are put together: the tasks,
//! their keys, and their results.

mod action;
mod classification;
mod detection;
mod embedding;
mod encoded;
mod error;
mod keypoints;
mod options;
mod outline;
mod paste;
mod rle;
mod segmentation;
mod spec;
mod tensor;

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::IgnoredAny};

use crate::error::Result;
use spec::Set;

pub use classification::{ScoredLabel, softmax, top_k};
pub use detection::{Detection, DetectionOutputs, DetectionParams, detect, detect_while};
pub use encoded::{Labels, Segmentation};
pub use error::{Problem, TaskError};
pub use keypoints::{Point, Pose, Poses};
pub use options::{LabelMapAs, Options};
pub use outline::Crop;
pub use paste::MaskKind;
pub use rle::{Rle, RleError};
pub use segmentation::{LabelMap, segment_labels, segment_logits};
pub use spec::{Ask, Call, Key, KeyError, LABELS, Output, Spec, Tensors};

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
    /// Named points of each body, or of whatever has such points.
    Keypoints,
}

impl Task {
    /// All tasks.
    pub const ALL: [Self; 7] = [
        Self::Detection,
        Self::Segmentation,
        Self::Action,
        Self::Classification,
        Self::Embedding,
        Self::Tensor,
        Self::Keypoints,
    ];

    /// What there is to know of it.
    #[must_use]
    pub fn spec(self) -> &'static Spec {
        match self {
            Self::Detection => &detection::SPEC,
            Self::Segmentation => &segmentation::SPEC,
            Self::Action => &action::SPEC,
            Self::Classification => &classification::SPEC,
            Self::Embedding => &embedding::SPEC,
            Self::Tensor => &tensor::SPEC,
            Self::Keypoints => &keypoints::SPEC,
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.spec().name)
    }
}

/// How a head's outputs become results. Which keys may be set depends on the task.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub struct Postprocess {
    /// Those of detection.
    #[serde(flatten)]
    pub detection: detection::Keys,
    /// Those of action.
    #[serde(flatten)]
    pub action: action::Keys,
    /// Those of classification.
    #[serde(flatten)]
    pub classification: classification::Keys,
    /// Those of keypoints.
    #[serde(flatten)]
    pub keypoints: keypoints::Keys,
    /// What is no key.
    #[serde(flatten)]
    #[schemars(skip)]
    unknown: Unknown,
}

/// Keys that are none.
#[derive(Debug, Clone, Default, Deserialize)]
struct Unknown(BTreeMap<String, IgnoredAny>);

impl PartialEq for Unknown {
    fn eq(&self, other: &Self) -> bool {
        self.0.keys().eq(other.0.keys())
    }
}

impl Postprocess {
    /// All keys, each once.
    #[must_use]
    pub fn keys() -> Vec<&'static Key> {
        let mut keys: Vec<&Key> = Vec::new();
        for key in Task::ALL.into_iter().flat_map(|task| task.spec().keys) {
            if !keys.iter().any(|other| other.name == key.name) {
                keys.push(key);
            }
        }
        keys
    }

    /// Checks them for a head that does `task` with so many `labels`.
    ///
    /// # Errors
    /// The first key that is unknown, missing, without meaning for the task or out of its range.
    pub fn check(&self, task: Task, labels: usize) -> std::result::Result<(), KeyError> {
        if let Some(key) = self.unknown.0.keys().next() {
            let shown: String = key.chars().take(64).collect();
            let known: Vec<_> = Self::keys().iter().map(|key| key.name).collect();
            return Err(KeyError {
                key: shown,
                reason: format!("is unknown; the keys are {}", known.join(", ")),
            });
        }
        let keys = task.spec().keys;
        for key in Self::keys() {
            let fail = |reason: String| {
                let key = key.name.to_owned();
                Err(KeyError { key, reason })
            };
            let fits = keys.iter().any(|own| own.name == key.name);
            let Some(value) = (key.get)(self) else {
                if key.required && fits {
                    return fail(format!("is missing, but the task {task} needs it"));
                }
                continue;
            };
            if !fits {
                return fail(format!("has no meaning for the task {task}"));
            }
            let (number, shown) = match value {
                Set::Fraction(value) => (f64::from(value), value.to_string()),
                Set::Count(value) => (value as f64, value.to_string()),
                Set::Other => continue,
            };
            if let Some(range) = &key.range
                && !range.contains(&number)
            {
                let (least, most) = (range.start(), range.end());
                return fail(format!("is {shown}, but must be from {least} to {most}"));
            }
        }
        (task.spec().sound)(self, labels)
    }
}

/// What a task found in a head's outputs.
#[derive(Debug)]
pub enum Found {
    /// Objects, highest score first.
    Detection(Vec<Detection>),
    /// A label for each pixel.
    LabelMap(LabelMap),
    /// The most probable labels.
    Classification(Vec<ScoredLabel>),
    /// Bodies, highest score first.
    Keypoints(Poses),
    /// The outputs as they are.
    Raw,
}

/// What a head found; `R` holds outputs that are given as they are.
#[derive(Debug)]
pub enum Outcome<R> {
    /// Objects, highest score first.
    Detection(Vec<Detection>),
    /// A label for each pixel of the original image.
    Segmentation(Segmentation),
    /// The most probable labels.
    Classification(Vec<ScoredLabel>),
    /// Bodies, highest score first.
    Keypoints(Poses),
    /// Raw outputs.
    Tensors(R),
    /// It went to who asked for it before the others were there.
    Sent,
}

impl Found {
    /// The result, of the `row` of outputs that it was made from; nothing once `keep` has said no.
    ///
    /// # Errors
    /// A label map that has too many runs to be given as masks.
    pub fn outcome<R>(
        self,
        row: R,
        options: &Options,
        keep: &dyn Fn() -> bool,
    ) -> Result<Option<Outcome<R>>> {
        Ok(Some(match self {
            Self::Detection(found) => Outcome::Detection(found),
            Self::LabelMap(map) => {
                // Room for what is made of the map.
                drop(row);
                if !keep() {
                    return Ok(None);
                }
                Outcome::Segmentation(Segmentation::new(map, options.label_map)?)
            }
            Self::Classification(top) => Outcome::Classification(top),
            Self::Keypoints(poses) => Outcome::Keypoints(poses),
            Self::Raw => Outcome::Tensors(row),
        }))
    }
}

impl<R> Outcome<R> {
    /// Bytes of what could not be told before it was made: the masks of detections, and their text.
    pub fn grown(&self) -> u64 {
        let Self::Detection(found) = self else {
            return 0;
        };
        let masks = found.iter().filter_map(|detection| detection.mask.as_ref());
        masks
            .map(|mask| mask.counts().len() as u64 * LabelMapAs::COUNT_BYTES)
            .sum()
    }
}
