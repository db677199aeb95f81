//! Boxes and instance masks.

use multiversion::multiversion;
use ndarray::{ArrayView1, ArrayView2, ArrayView3, Axis};

use super::{Rle, TaskError};
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
/// Scores below the threshold go, then greedily what overlaps a better box of its label (in the input, where the head
/// was trained), then what is beyond the maximum, then what has no area inside the image.
///
/// # Errors
/// Tensors that do not fit together, a score or a kept box that is not finite, an unknown label.
pub fn detect(
    outputs: &DetectionOutputs<'_>,
    params: &DetectionParams,
    geometry: &Geometry,
    label_count: usize,
) -> Result<Vec<Detection>, TaskError> {
    let count = outputs.scores.len();
    if outputs.boxes.dim() != (count, 4) {
        let expected = format!("[{count}, 4]");
        return Err(TaskError::shape("boxes", expected, outputs.boxes.shape()));
    }
    if outputs.labels.len() != count {
        return Err(TaskError::shape(
            "labels",
            format!("[{count}]"),
            outputs.labels.shape(),
        ));
    }
    if let Some(masks) = &outputs.masks
        && (masks.dim().0 != count || masks.dim().1 == 0 || masks.dim().2 == 0)
    {
        return Err(TaskError::shape(
            "masks",
            format!("[{count}, h, w]"),
            masks.shape(),
        ));
    }
    if outputs.scores.iter().any(|score| !score.is_finite()) {
        return Err(TaskError::NotFinite { tensor: "scores" });
    }
    let mut order: Vec<usize> = (0..count)
        .filter(|&index| outputs.scores[index] >= params.score_threshold)
        .collect();
    order.sort_by(|&a, &b| outputs.scores[b].total_cmp(&outputs.scores[a]));
    let mut boxes = vec![[0.0_f32; 4]; count];
    for &index in &order {
        let row = outputs.boxes.index_axis(Axis(0), index);
        boxes[index] = [row[0], row[1], row[2], row[3]];
        if boxes[index].iter().any(|side| !side.is_finite()) {
            return Err(TaskError::NotFinite { tensor: "boxes" });
        }
        let label = outputs.labels[index];
        if !(0..label_count as i64).contains(&label) {
            return Err(TaskError::LabelOutOfRange {
                label,
                count: label_count,
            });
        }
    }
    let mut kept: Vec<usize> = Vec::new();
    for index in order {
        if kept.len() == params.max_detections {
            break;
        }
        let suppressed = params.nms_iou.is_some_and(|most| {
            let rivals = kept
                .iter()
                .filter(|&&k| outputs.labels[k] == outputs.labels[index]);
            rivals
                .into_iter()
                .any(|&rival| iou(&boxes[rival], &boxes[index]) > most)
        });
        if !suppressed {
            kept.push(index);
        }
    }
    let detections = kept.into_iter().filter_map(|index| {
        let input = boxes[index].map(f64::from);
        let (x0, y0) = geometry.to_original(input[0], input[1]);
        let (x1, y1) = geometry.to_original(input[2], input[3]);
        let original = [x0, y0, x1, y1];
        let (width, height) = (
            f64::from(geometry.original_width()),
            f64::from(geometry.original_height()),
        );
        let bbox = [
            x0.clamp(0.0, width) as f32,
            y0.clamp(0.0, height) as f32,
            x1.clamp(0.0, width) as f32,
            y1.clamp(0.0, height) as f32,
        ];
        if bbox[2] <= bbox[0] || bbox[3] <= bbox[1] {
            return None;
        }
        let mask = match (params.mask, &outputs.masks) {
            (Some(kind), Some(masks)) => {
                let map = masks.index_axis(Axis(0), index);
                Some(paste(map, kind, original, params.mask_threshold, geometry))
            }
            _ => None,
        };
        let label = outputs.labels[index] as u32;
        Some(Detection {
            bbox,
            score: outputs.scores[index],
            label,
            mask,
        })
    });
    Ok(detections.collect())
}

/// Overlap of two xyxy boxes over their union.
fn iou(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let side = |low: usize| (a[low + 2].min(b[low + 2]) - a[low].max(b[low])).max(0.0);
    let overlap = side(0) * side(1);
    let area = |r: &[f32; 4]| (r[2] - r[0]) * (r[3] - r[1]);
    overlap / (area(a) + area(b) - overlap).max(1e-12)
}

/// The original pixels whose centre lies inside `bbox` and whose probability, interpolated bilinearly between cell
/// centres and held constant beyond them, reaches `threshold`.
fn paste(
    map: ArrayView2<'_, f32>,
    kind: MaskKind,
    bbox: [f64; 4],
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
        range(bbox[0], bbox[2], width),
        range(bbox[1], bbox[3], height),
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
            let got = paste(map.view(), kind, bbox, 0.5, &geometry).to_rows();
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
