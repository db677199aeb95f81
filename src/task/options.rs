//! What callers may ask for.

/// What a caller asks for beyond the manifest; checked before it gets here.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Least score of a detection or pose.
    pub score_threshold: Option<f32>,
    /// Most detections or poses.
    pub max_detections: Option<usize>,
    /// Leave instance masks out.
    pub omit_masks: bool,
    /// Labels in a classification.
    pub top_k: Option<usize>,
    /// How a label map is given.
    pub label_map: LabelMapAs,
}

/// How a label map is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LabelMapAs {
    /// As it is.
    #[default]
    Labels,
    /// As a PNG file.
    Png,
    /// As a mask for each label.
    Rle,
}

/// Runs of a label map that are always given as masks, however small it is.
const RUNS: u64 = 1 << 20;
/// And pixels for each of a larger one.
const PIXELS_PER_RUN: u64 = 6;
/// Bytes of a run of a label: the length before it, and its own.
const RUN_BYTES: u64 = 2 * LabelMapAs::COUNT_BYTES;

impl LabelMapAs {
    /// Bytes of a run's length, and of its text.
    pub(super) const COUNT_BYTES: u64 = 6;

    /// Most bytes that a map of so many pixels takes, from the labels to the message; `wide` if labels do not fit a byte.
    pub(super) fn bytes(self, pixels: u64, wide: bool) -> u64 {
        match (self, wide) {
            // The map, the batch's array, and the message.
            (Self::Labels, _) => 6 * pixels,
            // The map, its bytes, what they are packed to, and the file.
            (Self::Png, false) => 5 * pixels,
            (Self::Png, true) => 8 * pixels,
            (Self::Rle, _) => 2 * pixels + RUN_BYTES * Self::most_runs(pixels),
        }
    }

    /// Most runs of all masks together.
    pub(super) fn most_runs(pixels: u64) -> u64 {
        pixels.min(RUNS.max(pixels / PIXELS_PER_RUN))
    }
}
