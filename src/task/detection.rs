//! Detection: boxes, with or without instance masks.

use ndarray::{ArrayView1, ArrayView2, ArrayView3, Axis};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Found, MaskKind, Options, Postprocess, Problem, Rle, TaskError,
    error::{check_finite, check_probabilities},
    paste::paste,
    spec::{Ask, Call, Key, Output, Set, Spec},
};
use crate::media::Geometry;

/// Boxes, with or without instance masks.
pub(super) const SPEC: Spec = Spec {
    name: "detection",
    labelled: true,
    // With masks first: which of the two holds is the manifest's to say.
    outputs: &[&[BOXES, SCORES, INDICES, MASKS], &[BOXES, SCORES, INDICES]],
    set: |post, _| usize::from(post.detection.mask.is_none()),
    indices: Some(INDICES.name),
    keys: &[
        SCORE_THRESHOLD,
        NMS_IOU,
        MAX_DETECTIONS,
        MASK,
        MASK_THRESHOLD,
    ],
    asks: &[Ask::ScoreThreshold, Ask::MaxDetections],
    run: |call| {
        let params = params(call);
        let outputs = outputs(call, params.mask.is_some())?;
        let found = detect_while(&outputs, &params, call.geometry, call.labels, call.keep)?;
        Ok(found.map(Found::Detection))
    },
    check: |call| outputs(call, call.post.detection.mask.is_some())?.check_all(call.labels),
    size: |post, options, pixels| {
        let results = most(post, options).max(1) as u64;
        match post.detection.mask.is_some() && !options.omit_masks {
            true => results * pixels,
            false => results,
        }
    },
    bytes: |post, options, _, _| Some(most(post, options) as u64 * DETECTION_BYTES),
    ..Spec::PLAIN
};

const BOXES: Output = Output {
    name: "boxes",
    element: "float32",
    shape: &["K", "4"],
    values: "left, top, right, bottom in pixels of the input; finite",
    when: "",
};
const SCORES: Output = Output {
    name: "scores",
    element: "float32",
    shape: &["K"],
    values: "probabilities, 0 to 1; a row of score 0 only fills up, and its box and label mean nothing",
    when: "",
};
const INDICES: Output = Output {
    name: "labels",
    element: "int64",
    shape: &["K"],
    values: "indices into the manifest's labels",
    when: "",
};
const MASKS: Output = Output {
    name: "masks",
    element: "float32",
    shape: &["K", "h", "w"],
    values: "probabilities, 0 to 1, on a grid over what `postprocess.mask` says",
    when: ", where `postprocess.mask` is set",
};

/// Bytes of a detection without its mask, the size of which is known when it is made.
const DETECTION_BYTES: u64 = 128;

/// The manifest's keys.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
pub struct Keys {
    /// Least score of a detection or pose. A caller may ask for another.
    pub score_threshold: Option<f32>,
    /// Of two boxes of one label whose intersection is more than this share of their union, the one with the lower score
    /// goes. Unset: the graph has seen to it, and all boxes stay.
    pub nms_iou: Option<f32>,
    /// Most detections or poses in an answer. A caller may ask for fewer.
    pub max_detections: Option<usize>,
    /// What the grid of an instance mask covers. Unset: the head has no masks.
    pub mask: Option<MaskKind>,
    /// Least probability of a pixel that belongs to an instance mask.
    pub mask_threshold: Option<f32>,
}

impl Keys {
    const DEFAULT_MAX_DETECTIONS: usize = 100;
    const DEFAULT_MASK_THRESHOLD: f32 = 0.5;

    /// Least score of a detection.
    #[must_use]
    pub fn score_threshold(&self) -> f32 {
        self.score_threshold.unwrap_or(0.0)
    }

    /// Most detections in an answer.
    #[must_use]
    pub fn max_detections(&self) -> usize {
        self.max_detections.unwrap_or(Self::DEFAULT_MAX_DETECTIONS)
    }

    /// Least probability of a mask's pixel.
    #[must_use]
    pub fn mask_threshold(&self) -> f32 {
        self.mask_threshold.unwrap_or(Self::DEFAULT_MASK_THRESHOLD)
    }
}

pub(super) const SCORE_THRESHOLD: Key = Key {
    name: "score_threshold",
    range: Some(0.0..=1.0),
    default: Some(0.0),
    required: false,
    get: |post| post.detection.score_threshold.map(Set::Fraction),
};
const NMS_IOU: Key = Key {
    name: "nms_iou",
    range: Some(0.0..=1.0),
    default: None,
    required: false,
    get: |post| post.detection.nms_iou.map(Set::Fraction),
};
pub(super) const MAX_DETECTIONS: Key = Key {
    name: "max_detections",
    range: Some(1.0..=10_000.0),
    default: Some(Keys::DEFAULT_MAX_DETECTIONS as f64),
    required: false,
    get: |post| post.detection.max_detections.map(Set::Count),
};
const MASK: Key = Key {
    name: "mask",
    range: None,
    default: None,
    required: false,
    get: |post| post.detection.mask.map(|_| Set::Other),
};
const MASK_THRESHOLD: Key = Key {
    name: "mask_threshold",
    range: Some(0.0..=1.0),
    default: Some(Keys::DEFAULT_MASK_THRESHOLD as f64),
    required: false,
    get: |post| post.detection.mask_threshold.map(Set::Fraction),
};

/// Most detections in an answer. Who lets the call in has held what is asked for to the manifest's maximum.
fn most(post: &Postprocess, options: &Options) -> usize {
    let most = post.detection.max_detections();
    options.max_detections.map_or(most, |asked| asked.min(most))
}

fn params(call: &Call<'_>) -> DetectionParams {
    let (keys, options) = (&call.post.detection, call.options);
    let threshold = options.score_threshold;
    DetectionParams {
        score_threshold: threshold.unwrap_or_else(|| keys.score_threshold()),
        nms_iou: keys.nms_iou,
        max_detections: most(call.post, options),
        mask: keys.mask.filter(|_| !options.omit_masks),
        mask_threshold: keys.mask_threshold(),
    }
}

fn outputs<'a>(call: &Call<'a>, masks: bool) -> Result<DetectionOutputs<'a>, TaskError> {
    Ok(DetectionOutputs {
        boxes: call.f32(BOXES.name)?,
        scores: call.f32(SCORES.name)?,
        labels: call.i64(INDICES.name)?,
        masks: match masks {
            true => Some(call.f32(MASKS.name)?),
            false => None,
        },
    })
}

/// How a detection head's outputs become detections.
#[derive(Debug, Clone, Copy)]
pub struct DetectionParams {
    /// Least score, 0 to 1.
    pub score_threshold: f32,
    /// Boxes of one label with a higher IoU are one object; `None`: the graph has seen to it.
    pub nms_iou: Option<f32>,
    /// Most detections.
    pub max_detections: usize,
    /// What the masks' grid covers; `None`: no masks wanted.
    pub mask: Option<MaskKind>,
    /// Least probability of a mask's pixel.
    pub mask_threshold: f32,
}

/// A detection head's outputs for one image.
#[derive(Debug)]
pub struct DetectionOutputs<'a> {
    /// `[K, 4]`, xyxy in input pixels.
    pub boxes: ArrayView2<'a, f32>,
    /// `[K]`, 0 to 1.
    pub scores: ArrayView1<'a, f32>,
    /// `[K]`
    pub labels: ArrayView1<'a, i64>,
    /// `[K, h, w]` probabilities.
    pub masks: Option<ArrayView3<'a, f32>>,
}

/// One object in the original image.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    /// xyxy in the original image's pixels, clipped to it.
    pub bbox: [f32; 4],
    /// 0 to 1.
    pub score: f32,
    /// Index into the head's labels.
    pub label: u32,
    /// Its pixels, at the original image's size.
    pub mask: Option<Rle>,
}

/// The detections of one image, highest score first, equal ones in the graph's order.
///
/// The order of steps is torchvision's (`RoIHeads.postprocess_detections`): rows below the threshold go; boxes are
/// clipped to what the network saw of the picture; boxes without area there go; then, greedily, what overlaps a better
/// box of its label by more than `nms_iou`; then what is beyond the maximum. Overlaps are those of the boxes that are
/// returned, so no two of a label overlap by more than `nms_iou`, and what lies outside the picture neither suppresses
/// nor takes a place.
///
/// A row whose score is 0 is no object, whatever the threshold: graphs fill up with such rows, so that neither their
/// boxes nor their labels mean anything.
///
/// # Errors
/// Tensors that do not fit together; a score, or the mask of a returned detection, that is no probability; a box that
/// is not finite; a label outside `0..label_count`.
pub fn detect(
    outputs: &DetectionOutputs<'_>,
    params: &DetectionParams,
    geometry: &Geometry,
    label_count: usize,
) -> Result<Vec<Detection>, TaskError> {
    let found = detect_while(outputs, params, geometry, label_count, &|| true)?;
    Ok(found.unwrap_or_default())
}

/// As [`detect`], as long as `keep` says so, which is asked before each mask; nothing once it has said no.
///
/// # Errors
/// As [`detect`].
pub fn detect_while(
    outputs: &DetectionOutputs<'_>,
    params: &DetectionParams,
    geometry: &Geometry,
    label_count: usize,
    keep: &dyn Fn() -> bool,
) -> Result<Option<Vec<Detection>>, TaskError> {
    outputs.check(label_count)?;
    let mut order: Vec<usize> = (0..outputs.scores.len())
        .filter(|&row| outputs.is_object(row) && outputs.scores[row] >= params.score_threshold)
        .collect();
    order.sort_by(|&a, &b| outputs.scores[b].total_cmp(&outputs.scores[a]));
    let seen = seen(geometry);
    let mut kept: Vec<Placed> = Vec::new();
    for row in order {
        if kept.len() == params.max_detections {
            break;
        }
        let Some(placed) = outputs.place(row, geometry, seen) else {
            continue;
        };
        let suppressed = params.nms_iou.is_some_and(|most| {
            let mut rivals = kept.iter().filter(|rival| rival.label == placed.label);
            rivals.any(|rival| iou(&rival.bbox, &placed.bbox) > f64::from(most))
        });
        if !suppressed {
            kept.push(placed);
        }
    }
    let detection = |placed: Placed| {
        if params.mask.is_some() && !keep() {
            return Ok(None);
        }
        let mask = match (params.mask, &outputs.masks) {
            (Some(kind), Some(masks)) => {
                let map = masks.index_axis(Axis(0), placed.row);
                check_probabilities("masks", map.iter())?;
                let place = (placed.whole, placed.clipped);
                Some(paste(map, kind, place, params.mask_threshold, geometry))
            }
            _ => None,
        };
        Ok(Some(Detection {
            bbox: placed.bbox,
            score: outputs.scores[placed.row].min(1.0),
            label: placed.label,
            mask,
        }))
    };
    kept.into_iter().map(detection).collect()
}

impl DetectionOutputs<'_> {
    /// Checks all that [`detect`] may come to read, the masks of every row included.
    ///
    /// # Errors
    /// As [`detect`].
    pub fn check_all(&self, label_count: usize) -> Result<(), TaskError> {
        self.check(label_count)?;
        let Some(masks) = &self.masks else {
            return Ok(());
        };
        for row in (0..self.scores.len()).filter(|&row| self.is_object(row)) {
            check_probabilities("masks", masks.index_axis(Axis(0), row).iter())?;
        }
        Ok(())
    }

    /// Whether `row` says anything: rows of score 0 fill up.
    fn is_object(&self, row: usize) -> bool {
        self.scores[row] > 0.0
    }

    /// Checks shapes, scores, boxes and labels; masks are checked where they are read.
    fn check(&self, label_count: usize) -> Result<(), TaskError> {
        let count = self.scores.len();
        if self.boxes.dim() != (count, 4) {
            let expected = format!("[{count}, 4], a box for each score");
            return Err(Problem::shape(expected, self.boxes.shape()).of("boxes"));
        }
        if self.labels.len() != count {
            let expected = format!("[{count}], a label for each score");
            return Err(Problem::shape(expected, self.labels.shape()).of("labels"));
        }
        if let Some(masks) = &self.masks
            && (masks.dim().0 != count || masks.dim().1 == 0 || masks.dim().2 == 0)
        {
            let expected = format!("[{count}, h, w], a mask for each score");
            return Err(Problem::shape(expected, masks.shape()).of("masks"));
        }
        check_probabilities("scores", self.scores.iter())?;
        for row in (0..count).filter(|&row| self.is_object(row)) {
            check_finite("boxes", self.boxes.index_axis(Axis(0), row).iter())?;
            let label = self.labels[row];
            if !(0..label_count as i64).contains(&label) {
                let count = label_count;
                return Err(Problem::LabelOutOfRange { label, count }.of("labels"));
            }
        }
        Ok(())
    }

    /// The box of `row` in the original picture; `None` where nothing of it was seen.
    fn place(&self, row: usize, geometry: &Geometry, seen: [f64; 4]) -> Option<Placed> {
        let input = self.boxes.index_axis(Axis(0), row);
        let whole = geometry.box_to_original([0, 1, 2, 3].map(|side| f64::from(input[side])));
        let clipped =
            [0, 1, 2, 3].map(|side| whole[side].clamp(seen[side % 2], seen[side % 2 + 2]));
        let bbox = clipped.map(|side| side as f32);
        (bbox[2] > bbox[0] && bbox[3] > bbox[1]).then(|| Placed {
            row,
            label: self.labels[row] as u32,
            whole,
            clipped,
            bbox,
        })
    }
}

/// A row of the outputs whose box shows something of the picture. Boxes are xyxy in the original's pixels.
struct Placed {
    row: usize,
    label: u32,
    /// As the head gave it, which is what a mask over the box covers.
    whole: [f64; 4],
    /// What of it was seen.
    clipped: [f64; 4],
    /// The same as it is returned.
    bbox: [f32; 4],
}

/// What the network saw of the original, xyxy in its pixels: a centre crop leaves the rest out.
fn seen(geometry: &Geometry) -> [f64; 4] {
    let valid = geometry.valid();
    let edges = [valid.left, valid.top, valid.right, valid.bottom].map(f64::from);
    let (width, height) = (geometry.original_width(), geometry.original_height());
    let most = [f64::from(width), f64::from(height)];
    let edges = geometry.box_to_original(edges);
    [0, 1, 2, 3].map(|side| edges[side].clamp(0.0, most[side % 2]))
}

/// Overlap of two xyxy boxes over their union.
fn iou(a: &[f32; 4], b: &[f32; 4]) -> f64 {
    let (a, b) = (a.map(f64::from), b.map(f64::from));
    let side = |low: usize| (a[low + 2].min(b[low + 2]) - a[low].max(b[low])).max(0.0);
    let overlap = side(0) * side(1);
    let area = |r: &[f64; 4]| (r[2] - r[0]) * (r[3] - r[1]);
    overlap / (area(&a) + area(&b) - overlap)
}

#[cfg(test)]
mod tests;
