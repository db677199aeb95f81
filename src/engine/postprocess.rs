//! From a head's raw outputs to results in the original image's geometry.

use ndarray::{ArrayViewD, Ix1, Ix2, Ix3};

use crate::{
    backend::{HeadRow, TensorRow},
    error::{Error, Kind, Result},
    media::Geometry,
    repository::{HeadManifest, MaskSpace, Task},
    task::{
        self, Detection, DetectionOutputs, DetectionParams, LabelMap, MaskKind, Problem, Rle,
        ScoredLabel, TaskError,
    },
};

/// What a caller asks for beyond the manifest; checked before it gets here.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Least score of a detection.
    pub score_threshold: Option<f32>,
    /// Most detections.
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
/// Bytes of a length, and of its text.
const COUNT_BYTES: u64 = 6;
/// Bytes of a run of a label: the length before it, and its own.
const RUN_BYTES: u64 = 2 * COUNT_BYTES;

impl LabelMapAs {
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
    fn most_runs(pixels: u64) -> u64 {
        pixels.min(RUNS.max(pixels / PIXELS_PER_RUN))
    }
}

/// A label for each pixel of the original image.
#[derive(Debug)]
pub struct Segmentation {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Labels that occur, each with its number of pixels.
    pub counts: Vec<(u32, u64)>,
    /// Where they are, as was asked for.
    pub labels: Labels,
}

/// Where labels are.
#[derive(Debug)]
pub enum Labels {
    /// One for each pixel.
    Map(LabelMap),
    /// A grayscale PNG.
    Png(Vec<u8>),
    /// A mask for each label that occurs.
    Masks(Vec<(u32, Rle)>),
}

impl Outcome {
    /// Bytes of what could not be told before it was made: the masks of detections, and their text.
    pub(super) fn grown(&self) -> u64 {
        let Self::Detection(found) = self else {
            return 0;
        };
        let masks = found.iter().filter_map(|detection| detection.mask.as_ref());
        masks
            .map(|mask| mask.counts().len() as u64 * COUNT_BYTES)
            .sum()
    }
}

impl Labels {
    /// The labels, if they were not made into something else.
    #[must_use]
    pub fn map(&self) -> Option<&LabelMap> {
        match self {
            Self::Map(map) => Some(map),
            Self::Png(_) | Self::Masks(_) => None,
        }
    }
}

impl Segmentation {
    fn new(map: LabelMap, given: LabelMapAs) -> Result<Self> {
        let (width, height, counts) = (map.width(), map.height(), map.counts());
        let labels = match given {
            LabelMapAs::Labels => Labels::Map(map),
            LabelMapAs::Png => Labels::Png(map.into_png()?),
            LabelMapAs::Rle => {
                let most = LabelMapAs::most_runs(u64::from(width) * u64::from(height));
                let masks = map.to_rle(usize::try_from(most).unwrap_or(usize::MAX));
                Labels::Masks(masks.ok_or_else(|| {
                    let message = format!("the label map has more than {most} runs: ask for PNG");
                    Error::new(Kind::LimitExceeded, message)
                })?)
            }
        };
        Ok(Self {
            width,
            height,
            counts,
            labels,
        })
    }
}

/// What a head found.
#[derive(Debug)]
pub enum Outcome {
    /// Objects, highest score first.
    Detection(Vec<Detection>),
    /// A label for each pixel of the original image.
    Segmentation(Segmentation),
    /// The most probable labels.
    Classification(Vec<ScoredLabel>),
    /// Raw outputs.
    Tensors(HeadRow),
    /// It went to who asked for it before the others were there.
    Sent,
}

/// Turns a head's output into its result, as long as `keep` says so: it is asked between a call's masks, and between a
/// label map and what is made of it.
pub(super) fn run(
    manifest: &HeadManifest,
    row: HeadRow,
    geometry: &Geometry,
    options: &Options,
    keep: &dyn Fn() -> bool,
) -> Result<Outcome> {
    let failed = |error: TaskError| {
        let message = format!(
            "the head {:?} gave an unusable output: {error}",
            manifest.name
        );
        Error::new(Kind::HeadFailed, message)
    };
    let post = &manifest.postprocess;
    match manifest.task {
        Task::Detection => {
            let masks = (!options.omit_masks).then_some(post.mask).flatten();
            let params = DetectionParams {
                score_threshold: options
                    .score_threshold
                    .unwrap_or_else(|| post.score_threshold()),
                nms_iou: post.nms_iou,
                // Who lets the call in has held it to the manifest's maximum.
                max_detections: options
                    .max_detections
                    .unwrap_or_else(|| post.max_detections()),
                mask: masks.map(|space| match space {
                    MaskSpace::Image => MaskKind::Image,
                    MaskSpace::Box => MaskKind::Box,
                }),
                mask_threshold: post.mask_threshold(),
            };
            let outputs = detection_outputs(&row, masks.is_some())?;
            let found =
                task::detect_while(&outputs, &params, geometry, manifest.labels.len(), keep);
            let found = found.map_err(failed)?;
            found.map(Outcome::Detection).ok_or_else(unwanted)
        }
        Task::Segmentation => {
            let map = segment(manifest, &row, geometry)?.map_err(failed)?;
            drop(row);
            if !keep() {
                return Err(unwanted());
            }
            Segmentation::new(map, options.label_map).map(Outcome::Segmentation)
        }
        Task::Action | Task::Classification => {
            let logits = tensor(&row, "logits", |t| t.f32())?;
            let probabilities = task::softmax(dims::<_, Ix1>(logits)?).map_err(failed)?;
            let count = options.top_k.unwrap_or_else(|| post.top_k());
            Ok(Outcome::Classification(task::top_k(&probabilities, count)))
        }
        Task::Embedding => {
            finite(&row).map_err(failed)?;
            Ok(Outcome::Tensors(row))
        }
        Task::Tensor => Ok(Outcome::Tensors(row)),
    }
}

/// Nobody waits for the result any more: its caller knows.
fn unwanted() -> Error {
    Error::new(Kind::Cancelled, "nobody waits for this result")
}

/// Checks a dry run's values, all of those that a call may come to read; names and types have been checked.
///
/// # Errors
/// The output and what is wrong with it.
pub(super) fn check(
    manifest: &HeadManifest,
    row: &HeadRow,
    geometry: &Geometry,
) -> std::result::Result<(), (String, String)> {
    let checked = check_values(manifest, row, geometry);
    let checked = checked.map_err(|error| ("outputs".to_owned(), error.to_string()))?;
    checked.map_err(|error| {
        let reason = format!("{}, in a run on sample images", error.problem);
        (format!("output {:?}", error.tensor), reason)
    })
}

fn check_values(
    manifest: &HeadManifest,
    row: &HeadRow,
    geometry: &Geometry,
) -> Result<std::result::Result<(), TaskError>> {
    Ok(match manifest.task {
        Task::Detection => {
            let outputs = detection_outputs(row, manifest.postprocess.mask.is_some())?;
            outputs.check_all(manifest.labels.len())
        }
        Task::Segmentation => segment(manifest, row, geometry)?.map(|_| ()),
        Task::Action | Task::Classification => {
            let logits = tensor(row, "logits", |t| t.f32())?;
            task::softmax(dims::<_, Ix1>(logits)?).map(|_| ())
        }
        Task::Embedding => finite(row),
        Task::Tensor => Ok(()),
    })
}

fn detection_outputs(row: &HeadRow, masks: bool) -> Result<DetectionOutputs<'_>> {
    Ok(DetectionOutputs {
        boxes: dims::<_, Ix2>(tensor(row, "boxes", |t| t.f32())?)?,
        scores: dims::<_, Ix1>(tensor(row, "scores", |t| t.f32())?)?,
        labels: dims::<_, Ix1>(tensor(row, "labels", |t| t.i64())?)?,
        masks: match masks {
            true => Some(dims::<_, Ix3>(tensor(row, "masks", |t| t.f32())?)?),
            false => None,
        },
    })
}

fn segment(
    manifest: &HeadManifest,
    row: &HeadRow,
    geometry: &Geometry,
) -> Result<std::result::Result<LabelMap, TaskError>> {
    Ok(match row.tensor("label_map") {
        Some(map) => {
            let map = map.i64().ok_or_else(|| missing("label_map"))?;
            task::segment_labels(dims::<_, Ix2>(map)?, geometry, manifest.labels.len())
        }
        None => {
            let logits = tensor(row, "logits", |t| t.f32())?;
            task::segment_logits(dims::<_, Ix3>(logits)?, geometry)
        }
    })
}

/// Checks that every output is finite.
fn finite(row: &HeadRow) -> std::result::Result<(), TaskError> {
    match row.tensors().find(|tensor| !tensor.is_finite()) {
        Some(tensor) => Err(Problem::NotFinite.of(tensor.name)),
        None => Ok(()),
    }
}

/// The output `name`, of the type that `read` takes. The contract check saw to both; a failure is a defect.
fn tensor<'a, T>(
    row: &'a HeadRow,
    name: &str,
    read: impl Fn(&TensorRow<'a>) -> Option<ArrayViewD<'a, T>>,
) -> Result<ArrayViewD<'a, T>> {
    row.tensor(name)
        .as_ref()
        .and_then(read)
        .ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Error {
    Error::new(
        Kind::Internal,
        format!("the head's output {name:?} is missing or of another type"),
    )
}

fn dims<T, D: ndarray::Dimension>(view: ArrayViewD<'_, T>) -> Result<ndarray::ArrayView<'_, T, D>> {
    view.into_dimensionality()
        .map_err(|error| Error::new(Kind::Internal, format!("a head's output has {error}")))
}
