//! Boxes and instance masks.

use ndarray::{ArrayView1, ArrayView2, ArrayView3, Axis};

use super::{
    MaskKind, Problem, Rle, TaskError,
    error::{check_finite, check_probabilities},
    paste::paste,
};
use crate::media::Geometry;

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
mod tests {
    use ndarray::{Array1, Array2};
    use proptest::prelude::*;

    use super::*;
    use crate::media::{Filter, Preprocess, ResizeMode, geometry};

    fn preprocess(mode: ResizeMode) -> Preprocess {
        Preprocess {
            mode,
            filter: Filter::Bilinear,
            pad: 0,
            height: 40,
            width: 56,
        }
    }

    /// What a head gives: boxes by corner and extent, a few of which are inside out; scores with ties; three labels.
    type Row = ((f32, f32), (f32, f32), u8, i64);

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let corner = (-30.0..60.0_f32, -30.0..60.0_f32);
        let extent = (-2.0..50.0_f32, -2.0..50.0_f32);
        proptest::collection::vec((corner, extent, 0..20_u8, 0..3_i64), 0..40)
    }

    struct Given {
        boxes: Array2<f32>,
        scores: Array1<f32>,
        labels: Array1<i64>,
    }

    impl Given {
        fn new(rows: &[Row]) -> Self {
            let sides = rows
                .iter()
                .flat_map(|((x, y), (w, h), ..)| [*x, *y, x + w, y + h]);
            Self {
                boxes: Array2::from_shape_vec((rows.len(), 4), sides.collect()).expect("4 sides"),
                scores: rows.iter().map(|row| f32::from(row.2) / 20.0).collect(),
                labels: rows.iter().map(|row| row.3).collect(),
            }
        }

        fn detect(
            &self,
            threshold: f32,
            nms_iou: Option<f32>,
            most: usize,
            place: &Geometry,
        ) -> Vec<Detection> {
            let outputs = DetectionOutputs {
                boxes: self.boxes.view(),
                scores: self.scores.view(),
                labels: self.labels.view(),
                masks: None,
            };
            let params = DetectionParams {
                score_threshold: threshold,
                nms_iou,
                max_detections: most,
                mask: None,
                mask_threshold: 0.5,
            };
            detect(&outputs, &params, place, 3).expect("the outputs keep the contract")
        }
    }

    fn overlap(a: &Detection, b: &Detection) -> f64 {
        let corner = |d: &Detection, low: usize| f64::from(d.bbox[low]);
        let along = |low: usize| {
            let end = corner(a, low + 2).min(corner(b, low + 2));
            (end - corner(a, low).max(corner(b, low))).max(0.0)
        };
        let area = |d: &Detection| (corner(d, 2) - corner(d, 0)) * (corner(d, 3) - corner(d, 1));
        let both = along(0) * along(1);
        both / (area(a) + area(b) - both)
    }

    proptest! {
        /// By what a caller can see: of all that the picture shows, exactly what a better one does not stand for is left
        /// out.
        #[test]
        fn answers_are_the_best_that_the_picture_shows(
            rows in rows(),
            (width, height) in (1..90_u32, 1..90_u32),
            mode in prop_oneof![Just(ResizeMode::Letterbox), Just(ResizeMode::Stretch), Just(ResizeMode::CenterCrop { fraction: 0.8 })],
            threshold in 0.0..0.6_f32,
            nms_iou in 0.0..1.0_f32,
        ) {
            let place = geometry(width, height, &preprocess(mode));
            let given = Given::new(&rows);
            let shown = given.detect(threshold, None, usize::MAX, &place);
            let found = given.detect(threshold, Some(nms_iou), usize::MAX, &place);
            let most = [width as f32, height as f32];
            for d in &shown {
                prop_assert!(d.score >= threshold && d.score > 0.0);
                prop_assert!(0.0 <= d.bbox[0] && d.bbox[0] < d.bbox[2] && d.bbox[2] <= most[0]);
                prop_assert!(0.0 <= d.bbox[1] && d.bbox[1] < d.bbox[3] && d.bbox[3] <= most[1]);
            }
            prop_assert!(shown.is_sorted_by(|a, b| a.score >= b.score));
            // Greedily, from what is shown alone.
            let mut expected: Vec<Detection> = Vec::new();
            for d in shown {
                let rival = |better: &Detection| better.label == d.label && overlap(better, &d) > f64::from(nms_iou);
                if !expected.iter().any(rival) {
                    expected.push(d);
                }
            }
            prop_assert_eq!(&found, &expected);
            for most in [1, 2, 5, 11] {
                let fewer = given.detect(threshold, Some(nms_iou), most, &place);
                prop_assert_eq!(&fewer[..], &found[..most.min(found.len())]);
            }
        }
    }

    #[test]
    fn what_breaks_the_contract_is_named() {
        let place = geometry(56, 40, &preprocess(ResizeMode::Stretch));
        let complaint = |change: fn(&mut Given)| {
            let mut given = Given::new(&[
                ((1.0, 1.0), (9.0, 9.0), 10, 2),
                ((0.0, 0.0), (1.0, 1.0), 0, 0),
            ]);
            change(&mut given);
            let outputs = DetectionOutputs {
                boxes: given.boxes.view(),
                scores: given.scores.view(),
                labels: given.labels.view(),
                masks: None,
            };
            let params = DetectionParams {
                score_threshold: 0.9,
                nms_iou: None,
                max_detections: 1,
                mask: None,
                mask_threshold: 0.5,
            };
            detect(&outputs, &params, &place, 3)
                .map_or_else(|error| error.to_string(), |_| String::new())
        };
        assert_eq!(complaint(|_| {}), "");
        assert_eq!(
            complaint(|given| given.scores[1] = 1.5),
            "scores: holds 1.5, but must be probabilities, from 0 to 1"
        );
        assert_eq!(
            complaint(|given| given.scores[1] = f32::NAN),
            "scores: holds NaN, but must be probabilities, from 0 to 1"
        );
        assert_eq!(
            complaint(|given| given.boxes[[0, 3]] = f32::INFINITY),
            "boxes: holds a value that is not finite"
        );
        assert_eq!(
            complaint(|given| given.labels[0] = 3),
            "labels: holds the label 3, but the manifest has 3 labels, numbered from 0"
        );
        // A row of score 0 fills up: whatever it says, it says nothing.
        assert_eq!(complaint(|given| given.labels[1] = -1), "");
        assert_eq!(complaint(|given| given.boxes[[1, 0]] = f32::NAN), "");
    }
}
