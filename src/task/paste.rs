//! Instance masks at the original image's size.

use multiversion::multiversion;
use ndarray::ArrayView2;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Rle;
use crate::media::Geometry;

/// What an instance mask's grid covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MaskKind {
    /// The whole input image.
    Image,
    /// The detection's box.
    Box,
}

/// The original pixels whose centre lies inside `clipped` and whose probability, interpolated bilinearly between cell
/// centres and held constant beyond them, reaches `threshold`. A grid over the box covers all of `bbox`.
pub(super) fn paste(
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
