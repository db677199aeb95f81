//! From a head's raw outputs to results in the original image's geometry.

use ndarray::{ArrayViewD, Ix1, Ix2, Ix3};

use crate::{
    backend::{HeadRow, TensorRow},
    error::{Error, Kind, Result},
    media::Geometry,
    repository::{HeadManifest, MaskSpace, Task},
    task::{
        self, Detection, DetectionOutputs, DetectionParams, LabelMap, MaskKind, Problem,
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
}

/// What a head found.
#[derive(Debug)]
pub enum Outcome {
    /// Objects, highest score first.
    Detection(Vec<Detection>),
    /// A label for each pixel of the original image.
    Segmentation(LabelMap),
    /// The most probable labels.
    Classification(Vec<ScoredLabel>),
    /// Raw outputs.
    Tensors(HeadRow),
}

/// Turns a head's output into its result.
pub(super) fn run(
    manifest: &HeadManifest,
    row: HeadRow,
    geometry: &Geometry,
    options: &Options,
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
            task::detect(&outputs, &params, geometry, manifest.labels.len())
                .map(Outcome::Detection)
                .map_err(failed)
        }
        Task::Segmentation => segment(manifest, &row, geometry)?
            .map(Outcome::Segmentation)
            .map_err(failed),
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
