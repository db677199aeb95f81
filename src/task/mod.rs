//! From a head's tensors to results in the original image's geometry. Pure and synchronous.

mod classify;
mod detection;
mod error;
mod outline;
mod paste;
mod rle;
mod segmentation;

pub use classify::{ScoredLabel, softmax, top_k};
pub use detection::{Detection, DetectionOutputs, DetectionParams, detect, detect_while};
pub use error::{Problem, TaskError};
pub use outline::Crop;
pub use paste::MaskKind;
pub use rle::{Rle, RleError};
pub use segmentation::{LabelMap, segment_labels, segment_logits};
