//! `[postprocess]` of `head.toml`: how a head's outputs become results.

use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{RepositoryError, Task};

/// How a head's outputs become results. Which keys may be set depends on the task.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Postprocess {
    /// Least score of a detection. A caller may ask for another.
    pub score_threshold: Option<f32>,
    /// Of two boxes of one label whose intersection is more than this share of their union, the one with the lower score
    /// goes. Unset: the graph has seen to it, and all boxes stay.
    pub nms_iou: Option<f32>,
    /// Most detections in an answer. A caller may ask for fewer.
    pub max_detections: Option<usize>,
    /// What the grid of an instance mask covers. Unset: the head has no masks.
    pub mask: Option<MaskSpace>,
    /// Least probability of a pixel that belongs to an instance mask.
    pub mask_threshold: Option<f32>,
    /// Frames that one call reads. A clip of just as many is read as it is.
    pub frames: Option<usize>,
    /// Distance of the frames that one call reads, in frames of the clip: of a clip of n frames that has (`frames` - 1) *
    /// `frame_stride` + 1 of them, the span, those from floor((n - span + 1) / 2) on. Unset, or the clip too short for it:
    /// the middles of equal parts of the whole clip, for i from 0 to `frames` - 1 the frame floor((2 i + 1) n / (2
    /// `frames`)).
    pub frame_stride: Option<usize>,
    /// Labels in an answer, the most probable first. A caller may ask for another number.
    pub top_k: Option<usize>,
}

/// What an instance mask's grid covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MaskSpace {
    /// The whole input image.
    Image,
    /// The detection's box.
    Box,
}

/// What may be said of a key of [`Postprocess`].
#[derive(Debug)]
pub struct Key {
    /// The key.
    pub name: &'static str,
    /// Tasks for which it means something.
    pub tasks: &'static [Task],
    /// Least and greatest value of a number.
    pub range: Option<RangeInclusive<f64>>,
    /// What holds where it is not set, if that is a value.
    pub default: Option<f64>,
    /// Whether those tasks cannot do without it.
    pub required: bool,
    get: fn(&Postprocess) -> Option<Set>,
}

/// A value that is set.
enum Set {
    Fraction(f32),
    Count(usize),
    Word,
}

const DETECTION: &[Task] = &[Task::Detection];
const CLIP: &[Task] = &[Task::Action];
const TOP: &[Task] = &[Task::Action, Task::Classification];

impl Postprocess {
    /// Most detections in an answer where the manifest says nothing.
    pub const MAX_DETECTIONS: usize = 100;
    /// Least probability of a mask's pixel where the manifest says nothing.
    pub const MASK_THRESHOLD: f32 = 0.5;
    /// Labels in an answer where the manifest says nothing.
    pub const TOP_K: usize = 5;

    /// All keys, in the order of the struct.
    pub const KEYS: &[Key] = &[
        Key {
            name: "score_threshold",
            tasks: DETECTION,
            range: Some(0.0..=1.0),
            default: Some(0.0),
            required: false,
            get: |post| post.score_threshold.map(Set::Fraction),
        },
        Key {
            name: "nms_iou",
            tasks: DETECTION,
            range: Some(0.0..=1.0),
            default: None,
            required: false,
            get: |post| post.nms_iou.map(Set::Fraction),
        },
        Key {
            name: "max_detections",
            tasks: DETECTION,
            range: Some(1.0..=10_000.0),
            default: Some(Self::MAX_DETECTIONS as f64),
            required: false,
            get: |post| post.max_detections.map(Set::Count),
        },
        Key {
            name: "mask",
            tasks: DETECTION,
            range: None,
            default: None,
            required: false,
            get: |post| post.mask.map(|_| Set::Word),
        },
        Key {
            name: "mask_threshold",
            tasks: DETECTION,
            range: Some(0.0..=1.0),
            default: Some(Self::MASK_THRESHOLD as f64),
            required: false,
            get: |post| post.mask_threshold.map(Set::Fraction),
        },
        Key {
            name: "frames",
            tasks: CLIP,
            range: Some(1.0..=1024.0),
            default: None,
            required: true,
            get: |post| post.frames.map(Set::Count),
        },
        Key {
            name: "frame_stride",
            tasks: CLIP,
            range: Some(1.0..=1024.0),
            default: None,
            required: false,
            get: |post| post.frame_stride.map(Set::Count),
        },
        Key {
            name: "top_k",
            tasks: TOP,
            range: Some(1.0..=100_000.0),
            default: Some(Self::TOP_K as f64),
            required: false,
            get: |post| post.top_k.map(Set::Count),
        },
    ];

    /// Least score of a detection.
    #[must_use]
    pub fn score_threshold(&self) -> f32 {
        self.score_threshold.unwrap_or(0.0)
    }

    /// Most detections in an answer.
    #[must_use]
    pub fn max_detections(&self) -> usize {
        self.max_detections.unwrap_or(Self::MAX_DETECTIONS)
    }

    /// Least probability of a mask's pixel.
    #[must_use]
    pub fn mask_threshold(&self) -> f32 {
        self.mask_threshold.unwrap_or(Self::MASK_THRESHOLD)
    }

    /// Labels in an answer.
    #[must_use]
    pub fn top_k(&self) -> usize {
        self.top_k.unwrap_or(Self::TOP_K)
    }

    pub(super) fn check(&self, file: &str, task: Task) -> Result<(), RepositoryError> {
        for key in Self::KEYS {
            let fail = |reason: String| {
                let field = format!("postprocess.{}", key.name);
                Err(RepositoryError::field(file, field, reason))
            };
            let fits = key.tasks.contains(&task);
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
                Set::Word => continue,
            };
            if let Some(range) = &key.range
                && !range.contains(&number)
            {
                let (least, most) = (range.start(), range.end());
                return fail(format!("is {shown}, but must be from {least} to {most}"));
            }
        }
        Ok(())
    }
}
