//! Boxes and instance masks.

use multiversion::multiversion;
use ndarray::{ArrayView1, ArrayView2, ArrayView3, Axis};

use super::{
    Rle, TaskError,
    error::{check_finite, check_probabilities},
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

/// What an instance mask's grid covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskKind {
    /// The whole input image.
    Image,
    /// The detection's box.
    Box,
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
        let mask = match (params.mask, &outputs.masks) {
            (Some(kind), Some(masks)) => {
                let map = masks.index_axis(Axis(0), placed.row);
                check_probabilities("masks", map.iter())?;
                let place = (placed.whole, placed.clipped);
                Some(paste(map, kind, place, params.mask_threshold, geometry))
            }
            _ => None,
        };
        Ok(Detection {
            bbox: placed.bbox,
            score: outputs.scores[placed.row].min(1.0),
            label: placed.label,
            mask,
        })
    };
    kept.into_iter().map(detection).collect()
}

impl DetectionOutputs<'_> {
    /// Whether `row` says anything: rows of score 0 fill up.
    fn is_object(&self, row: usize) -> bool {
        self.scores[row] > 0.0
    }

    /// Checks shapes, scores, boxes and labels; masks are checked where they are read.
    fn check(&self, label_count: usize) -> Result<(), TaskError> {
        let count = self.scores.len();
        if self.boxes.dim() != (count, 4) {
            let expected = format!("[{count}, 4], a box for each score");
            return Err(TaskError::shape("boxes", expected, self.boxes.shape()));
        }
        if self.labels.len() != count {
            let expected = format!("[{count}], a label for each score");
            return Err(TaskError::shape("labels", expected, self.labels.shape()));
        }
        if let Some(masks) = &self.masks
            && (masks.dim().0 != count || masks.dim().1 == 0 || masks.dim().2 == 0)
        {
            let expected = format!("[{count}, h, w], a mask for each score");
            return Err(TaskError::shape("masks", expected, masks.shape()));
        }
        check_probabilities("scores", self.scores.iter())?;
        for row in (0..count).filter(|&row| self.is_object(row)) {
            check_finite("boxes", self.boxes.index_axis(Axis(0), row).iter())?;
            let label = self.labels[row];
            if !(0..label_count as i64).contains(&label) {
                return Err(TaskError::LabelOutOfRange {
                    tensor: "labels",
                    label,
                    count: label_count,
                });
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

/// The original pixels whose centre lies inside `clipped` and whose probability, interpolated bilinearly between cell
/// centres and held constant beyond them, reaches `threshold`. A grid over the box covers all of `bbox`.
fn paste(
    map: ArrayView2<'_, f32>,
    kind: MaskKind,
    (bbox, clipped): ([f64; 4], [f64; 4]),
    threshold: f32,
    geometry: &Geometry,
) -> Rle {
    let (width, height) = (geometry.original_width(), geometry.original_height());
    let (rows, columns) = map.dim();
    // Pixel p's centre p + 0.5 lies strictly inside (low, high).
    let range = |low: f64, high: f64, most: u32| {
        let first = ((low - 0.5).floor() + 1.0).clamp(0.0, f64::from(most)) as u32;
        let end = (high - 0.5).ceil().clamp(0.0, f64::from(most)) as u32;
        first..end.max(first)
    };
    let (xs, ys) = (
        range(clipped[0], clipped[2], width),
        range(clipped[1], clipped[3], height),
    );
    let cell_x = |x: f64| match kind {
        MaskKind::Image => {
            geometry.to_input(x, 0.0).0 * columns as f64 / f64::from(geometry.input_width())
        }
        MaskKind::Box => (x - bbox[0]) / (bbox[2] - bbox[0]) * columns as f64,
    };
    let cell_y = |y: f64| match kind {
        MaskKind::Image => {
            geometry.to_input(0.0, y).1 * rows as f64 / f64::from(geometry.input_height())
        }
        MaskKind::Box => (y - bbox[1]) / (bbox[3] - bbox[1]) * rows as f64,
    };
    let place = |at: f64, cells: usize| {
        let at = (at - 0.5).clamp(0.0, (cells - 1) as f64);
        let low = at.floor();
        (low as usize, (low as usize + 1).min(cells - 1), at - low)
    };
    let row_places: Vec<_> = ys
        .clone()
        .map(|y| place(cell_y(f64::from(y) + 0.5), rows))
        .collect();
    // Rows between the same two cells: along a column the probability is linear there.
    let spans: Vec<_> = row_places
        .chunk_by(|a, b| a.0 == b.0)
        .map(|span| (span[0].0, span[0].1, span))
        .collect();
    let threshold = f64::from(threshold);
    let lines: Vec<f64> = map.t().iter().map(|&cell| f64::from(cell)).collect();
    let line = |column: usize| &lines[column * rows..][..rows];
    let mut mixed = Mixed {
        values: vec![0.0; rows],
        inside: vec![false; rows],
    };
    Rle::from_region((height, width), xs, ys, |x, runs| {
        let (left, right, weight) = place(cell_x(f64::from(x) + 0.5), columns);
        mixed.mix(line(left), line(right), weight, threshold);
        let (mut state, mut length) = (false, 0);
        for &(top, bottom, span) in &spans {
            let (first, last) = (mixed.inside[top], mixed.inside[bottom]);
            if first != state {
                runs.push(state, std::mem::take(&mut length));
                state = first;
            }
            let all = span.len() as u32;
            if first == last {
                length += all;
                continue;
            }
            let (a, b) = (mixed.values[top], mixed.values[bottom]);
            let before = |&(_, _, weight): &(usize, usize, f64)| {
                (a + (b - a) * weight >= threshold) == first
            };
            let turn = span.partition_point(before) as u32;
            runs.push(first, std::mem::replace(&mut length, all - turn) + turn);
            state = last;
        }
        runs.push(state, length);
    })
}

/// A column of probabilities between two columns of cells.
struct Mixed {
    values: Vec<f64>,
    /// Whether each reaches the threshold.
    inside: Vec<bool>,
}

impl Mixed {
    fn mix(&mut self, left: &[f64], right: &[f64], weight: f64, threshold: f64) {
        mix(&mut self.values, left, right, weight);
        for (inside, value) in self.inside.iter_mut().zip(&self.values) {
            *inside = *value >= threshold;
        }
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn mix(values: &mut [f64], left: &[f64], right: &[f64], weight: f64) {
    for (value, (a, b)) in values.iter_mut().zip(left.iter().zip(right)) {
        *value = a + (b - a) * weight;
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use proptest::prelude::*;

    use super::*;
    use crate::media::{Filter, Preprocess, ResizeMode, geometry};

    proptest! {
        #[test]
        fn a_pasted_mask_is_what_each_pixels_probability_says(
            cells in proptest::collection::vec(0.0..1.0_f32, 35),
            (width, height) in (1..90_u32, 1..90_u32),
            corner in (-20.0..80.0_f64, -20.0..80.0_f64),
            extent in (0.5..90.0_f64, 0.5..90.0_f64),
            box_relative in any::<bool>(),
        ) {
            let map = Array2::from_shape_vec((5, 7), cells).expect("35 cells");
            let preprocess = Preprocess {
                mode: ResizeMode::Letterbox,
                filter: Filter::Bilinear,
                pad: 0,
                height: 40,
                width: 56,
            };
            let geometry = geometry(width, height, &preprocess);
            let bbox = [corner.0, corner.1, corner.0 + extent.0, corner.1 + extent.1];
            let kind = if box_relative { MaskKind::Box } else { MaskKind::Image };
            let got = paste(map.view(), kind, (bbox, bbox), 0.5, &geometry).to_rows();
            let probability = |x: f64, y: f64| {
                let (u, v) = match kind {
                    MaskKind::Box => {
                        let along = |at: f64, low: f64, high: f64| (at - low) / (high - low);
                        (along(x, bbox[0], bbox[2]) * 7.0, along(y, bbox[1], bbox[3]) * 5.0)
                    }
                    MaskKind::Image => {
                        let (u, v) = geometry.to_input(x, y);
                        (u * 7.0 / 56.0, v * 5.0 / 40.0)
                    }
                };
                let (u, v) = ((u - 0.5).clamp(0.0, 6.0), (v - 0.5).clamp(0.0, 4.0));
                let at = |row: f64, column: f64| f64::from(map[[row as usize, column as usize]]);
                let (low_u, low_v) = (u.floor(), v.floor());
                let (high_u, high_v) = ((low_u + 1.0).min(6.0), (low_v + 1.0).min(4.0));
                let mix = |a: f64, b: f64, weight: f64| a * (1.0 - weight) + b * weight;
                let top = mix(at(low_v, low_u), at(low_v, high_u), u - low_u);
                let bottom = mix(at(high_v, low_u), at(high_v, high_u), u - low_u);
                mix(top, bottom, v - low_v)
            };
            for y in 0..height {
                for x in 0..width {
                    let (cx, cy) = (f64::from(x) + 0.5, f64::from(y) + 0.5);
                    let inside = cx > bbox[0] && cx < bbox[2] && cy > bbox[1] && cy < bbox[3];
                    let value = if inside { probability(cx, cy) } else { 0.0 };
                    if (value - 0.5).abs() > 1e-9 {
                        prop_assert_eq!(got[(y * width + x) as usize], value >= 0.5, "({}, {}): {}", x, y, value);
                    }
                }
            }
        }
    }
}
