//! Separable resampling of 8-bit RGB, equal to Pillow's to the last bit.
//!
//! Networks are trained on what Pillow makes, and a network can tell: levels off by one move a score by several
//! thousandths. So this follows Pillow 13: kernels widened when shrinking, weights of 22 fractional bits, each pass
//! rounded to 8 bits, the passes in the order in which Pillow takes them. The inner loops are compiled for several
//! instruction sets and chosen at run time.

use std::ops::Range;

use multiversion::multiversion;

use super::{
    fit::Filter,
    watch::{Keep, rows_of},
};

const FRACTION_BITS: u32 = 32 - 8 - 2;

/// The weights of one axis: for each output position the first input position and its weights.
pub(super) struct Weights {
    first: Vec<usize>,
    /// `taps` for each output position, filled with zeros.
    values: Vec<i32>,
    taps: usize,
}

impl Weights {
    /// For the output positions `window` of an axis of `input` positions resized to `output`.
    pub(super) fn new(input: u32, output: u32, window: Range<u32>, filter: Filter) -> Self {
        let scale = f64::from(input) / f64::from(output);
        let widened = scale.max(1.0);
        let support = filter.support() * widened;
        let taps = support.ceil() as usize * 2 + 1;
        let mut first = Vec::with_capacity(window.len());
        let mut values = Vec::with_capacity(window.len() * taps);
        for position in window {
            let center = (f64::from(position) + 0.5) * scale;
            let low = (center - support + 0.5).max(0.0) as usize;
            let high = ((center + support + 0.5).max(0.0) as usize).min(input as usize);
            let weight = |at: usize| filter.at((at as f64 - center + 0.5) / widened);
            let raw: Vec<f64> = (low..high).map(weight).collect();
            let sum: f64 = raw.iter().sum();
            let unit = f64::from(1_u32 << FRACTION_BITS);
            let fixed = |value: &f64| {
                let scaled = if sum == 0.0 { 0.0 } else { value / sum * unit };
                (scaled + 0.5_f64.copysign(scaled)) as i32
            };
            first.push(low);
            values.extend(raw.iter().map(fixed));
            values.resize(first.len() * taps, 0);
        }
        Self {
            first,
            values,
            taps,
        }
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.first.len()
    }

    /// First input position and weights of the output position `index`.
    #[inline(always)]
    fn at(&self, index: usize, input: usize) -> (usize, &[i32]) {
        let first = self.first[index];
        let taps = self.taps.min(input - first);
        (first, &self.values[index * self.taps..][..taps])
    }

    /// Input positions that any output position reads.
    fn reach(&self, input: usize) -> Range<usize> {
        let low = self.first.iter().copied().min().unwrap_or(0);
        let high = self
            .first
            .iter()
            .map(|first| first + self.taps)
            .max()
            .unwrap_or(0);
        low..high.min(input)
    }
}

/// Whether Pillow resizes down before across: where the height shrinks by more than twice what the width does
/// (Pillow 12.4 and later, pull request 9549; measured on Pillow 13). The passes round, so their order shows.
pub(super) fn down_first(input: (u32, u32), output: (u32, u32)) -> bool {
    let narrowed = i64::from(input.0) - i64::from(output.0);
    let shortened = i64::from(input.1) - i64::from(output.1);
    shortened > 2 * narrowed.max(0)
}

/// Resamples interleaved RGB of `width` x `height` pixels and hands each output row to `emit`, from the top, as long as
/// `keep` says so; whether it did to the end.
pub(super) fn resample(
    pixels: &[u8],
    (width, height): (usize, usize),
    across: &Weights,
    down: &Weights,
    down_first: bool,
    keep: Keep<'_>,
    mut emit: impl FnMut(usize, &[u8]),
) -> bool {
    let slice = rows_of(width);
    let mut row = vec![0_u8; across.len() * 3];
    if down_first {
        let columns = across.reach(width);
        let line = columns.len() * 3;
        let mut sums = vec![0_i32; line];
        // One pixel more than the line: a weighted pixel is read as four bytes.
        let mut short = vec![0_u8; line + 1];
        for index in 0..down.len() {
            let (first, weights) = down.at(index, height);
            // Each output row is made of several.
            if index % (slice / weights.len().max(1)).max(1) == 0 && !keep() {
                return false;
            }
            let source = &pixels[(first * width + columns.start) * 3..];
            weigh_lines(source, width * 3, weights, &mut sums, &mut short[..line]);
            weigh_pixels(&short, columns.start, across, width, &mut row);
            emit(index, &row);
        }
        return true;
    }
    let line = across.len() * 3;
    let rows = down.reach(height);
    let mut narrow = vec![0_u8; rows.len() * line];
    let mut padded = vec![0_u8; width * 3 + 1];
    for (index, (source, target)) in pixels
        .chunks_exact(width * 3)
        .skip(rows.start)
        .zip(narrow.chunks_exact_mut(line))
        .enumerate()
    {
        if index % slice == 0 && !keep() {
            return false;
        }
        padded[..width * 3].copy_from_slice(source);
        weigh_pixels(&padded, 0, across, width, target);
    }
    let mut sums = vec![0_i32; line];
    for index in 0..down.len() {
        let (first, weights) = down.at(index, height);
        weigh_lines(
            &narrow[(first - rows.start) * line..],
            line,
            weights,
            &mut sums,
            &mut row,
        );
        emit(index, &row);
    }
    true
}

/// One output row of the pass across: `source` begins at column `start`, and one byte follows its last pixel.
#[multiversion(targets("x86_64+avx2", "x86_64+sse4.1"))]
fn weigh_pixels(source: &[u8], start: usize, across: &Weights, width: usize, target: &mut [u8]) {
    for (index, out) in target.chunks_exact_mut(3).enumerate() {
        let (first, weights) = across.at(index, width);
        let mut sums = [HALF; 4];
        let mut rest = &source[(first - start) * 3..];
        for &weight in weights {
            // The fourth byte is the next pixel's; its sum is dropped. Four lanes are one vector, three are none.
            let Some(pixel) = rest.first_chunk::<4>() else {
                break;
            };
            for (sum, &level) in sums.iter_mut().zip(pixel) {
                *sum += i32::from(level) * weight;
            }
            rest = &rest[3..];
        }
        for (level, sum) in out.iter_mut().zip(sums) {
            *level = round(sum);
        }
    }
}

/// One output row of the pass down: weighted lines, `stride` bytes apart, each as long as `target`.
#[multiversion(targets("x86_64+avx2", "x86_64+sse4.1"))]
fn weigh_lines(source: &[u8], stride: usize, weights: &[i32], sums: &mut [i32], target: &mut [u8]) {
    sums.fill(HALF);
    let length = target.len();
    for (line, &weight) in weights
        .iter()
        .enumerate()
        .filter(|&(_, &weight)| weight != 0)
    {
        for (sum, &level) in sums.iter_mut().zip(&source[line * stride..][..length]) {
            *sum += i32::from(level) * weight;
        }
    }
    for (level, &sum) in target.iter_mut().zip(sums.iter()) {
        *level = round(sum);
    }
}

/// What makes the shift of [`round`] round to nearest.
const HALF: i32 = 1 << (FRACTION_BITS - 1);

#[inline(always)]
fn round(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic => {
                const A: f64 = -0.5;
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_picture_stays_flat() {
        for (input, output) in [(640, 128), (3, 128), (128, 127), (1, 7)] {
            for filter in [Filter::Bilinear, Filter::Bicubic] {
                let weights = Weights::new(input, output, 0..output, filter);
                let side = input as usize;
                let flat = vec![201; side * side * 3];
                for down_first in [false, true] {
                    let mut rows = 0;
                    resample(
                        &flat,
                        (side, side),
                        &weights,
                        &weights,
                        down_first,
                        &|| true,
                        |_, row| {
                            assert!(row.iter().all(|&level| level == 201));
                            rows += 1;
                        },
                    );
                    assert_eq!(rows, output);
                }
            }
        }
    }

    // Pillow 13: Image.fromarray(levels).resize((3, 1), BILINEAR) of [0, 50, 100, 150, 200, 250] in one row.
    #[test]
    fn halving_a_ramp_equals_pillow() {
        let pixels: Vec<u8> = (0..6).flat_map(|i| [i * 50; 3]).collect();
        let across = Weights::new(6, 3, 0..3, Filter::Bilinear);
        let down = Weights::new(1, 1, 0..1, Filter::Bilinear);
        let mut got = Vec::new();
        resample(
            &pixels,
            (6, 1),
            &across,
            &down,
            false,
            &|| true,
            |_, row| got.extend_from_slice(row),
        );
        assert_eq!(got.iter().step_by(3).copied().collect::<Vec<_>>(), PILLOW);
    }

    #[test]
    fn passes_are_taken_in_pillows_order() {
        // Measured: the first height of which Pillow 13 takes the pass down first.
        for (width, output, height) in [
            (20, (10, 5), 26),
            (50, (30, 80), 121),
            (100, (60, 160), 241),
        ] {
            assert!(!down_first((width, height - 1), output));
            assert!(down_first((width, height), output));
        }
        assert!(!down_first((100, 160), (150, 160)));
        assert!(down_first((100, 161), (150, 160)));
    }

    const PILLOW: [u8; 3] = [36, 125, 214];
}
