//! Actions: probabilities over labels, for a clip.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    classification,
    spec::{Key, Set, Spec},
};

/// Actions: [`classification`] of a clip.
pub(super) const SPEC: Spec = Spec {
    name: "action",
    clip: true,
    keys: &[FRAMES, FRAME_STRIDE, classification::TOP_K],
    ..classification::SPEC
};

/// The manifest's keys.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
pub struct Keys {
    /// Frames that one call reads. A clip of just as many is read as it is.
    pub frames: Option<usize>,
    /// Distance of the frames that one call reads, in frames of the clip: of a clip of n frames that has (`frames` - 1) *
    /// `frame_stride` + 1 of them, the span, those from floor((n - span + 1) / 2) on. Unset, or the clip too short for it:
    /// the middles of equal parts of the whole clip, for i from 0 to `frames` - 1 the frame floor((2 i + 1) n / (2
    /// `frames`)).
    pub frame_stride: Option<usize>,
}

const FRAMES: Key = Key {
    name: "frames",
    range: Some(1.0..=1024.0),
    default: None,
    required: true,
    get: |post| post.action.frames.map(Set::Count),
};
const FRAME_STRIDE: Key = Key {
    name: "frame_stride",
    range: Some(1.0..=1024.0),
    default: None,
    required: false,
    get: |post| post.action.frame_stride.map(Set::Count),
};
