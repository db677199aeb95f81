//! COCO's run-length encoding of binary masks, as pycocotools reads and writes it.
//!
//! Runs go down the columns, alternating between 0 and 1 and beginning with 0. The compressed form stores each count
//! from the third on as its difference to the count two before, in groups of 5 bits, the least significant first, with
//! a continuation bit, offset by 48 (`rleToString` in pycocotools' `maskApi.c`).

use thiserror::Error;

/// Why a compressed mask cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RleError {
    /// A byte outside the encoding's alphabet.
    #[error("byte {position} is outside the alphabet")]
    Alphabet {
        /// Where it stands.
        position: usize,
    },
    /// The last number does not end.
    #[error("the last number does not end")]
    Truncated,
    /// A number does not fit, or is negative.
    #[error("a count is negative or too large")]
    Range,
    /// The counts do not add up to height x width.
    #[error("the counts cover {covered} pixels, expected {expected}")]
    Coverage {
        /// Sum of the counts.
        covered: u64,
        /// Pixels of the mask.
        expected: u64,
    },
}

/// A binary mask as runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rle {
    height: u32,
    width: u32,
    counts: Vec<u32>,
}

impl Rle {
    /// A mask from pixels given column by column, from the top down; `pixels` must yield `height x width` of them.
    pub fn from_columns(height: u32, width: u32, pixels: impl IntoIterator<Item = bool>) -> Self {
        let mut runs = Runs::default();
        pixels.into_iter().for_each(|pixel| runs.push(pixel, 1));
        runs.finish(height, width)
    }

    /// A mask of these runs, the first of zeros, which cover `height x width` pixels.
    pub(super) fn from_counts(height: u32, width: u32, counts: Vec<u32>) -> Self {
        let area = u64::from(height) * u64::from(width);
        debug_assert_eq!(
            counts.iter().map(|count| u64::from(*count)).sum::<u64>(),
            area
        );
        Self {
            height,
            width,
            counts,
        }
    }

    /// A mask that is 0 outside the rectangle of columns and rows given. `fill(column, runs)` pushes the pixels of one
    /// column's rows, from the top down; it is asked column by column.
    pub(super) fn from_region(
        (height, width): (u32, u32),
        columns: std::ops::Range<u32>,
        rows: std::ops::Range<u32>,
        mut fill: impl FnMut(u32, &mut Runs),
    ) -> Self {
        let mut runs = Runs::default();
        runs.push_long(false, u64::from(columns.start) * u64::from(height));
        for column in columns.clone() {
            runs.push(false, rows.start);
            fill(column, &mut runs);
            runs.push(false, height - rows.end);
        }
        runs.push_long(false, u64::from(width - columns.end) * u64::from(height));
        runs.finish(height, width)
    }

    /// Height in pixels.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Width in pixels.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Lengths of the runs, the first of zeros.
    #[must_use]
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// Number of pixels that are 1.
    #[must_use]
    pub fn area(&self) -> u64 {
        self.counts
            .iter()
            .skip(1)
            .step_by(2)
            .map(|&count| u64::from(count))
            .sum()
    }

    /// Overlap over union with `other`, of the same picture, once this is moved by whole pixels (right, down). What a move
    /// down carries over the edge comes in again in the next column: enough to compare shapes by, and no more. 0 for
    /// masks of different pictures, and where both are empty.
    #[must_use]
    pub fn iou_moved(&self, other: &Self, [right, down]: [i64; 2]) -> f64 {
        if (self.height, self.width) != (other.height, other.width) {
            return 0.0;
        }
        let ahead = right
            .saturating_mul(i64::from(self.height))
            .saturating_add(down);
        let (mut mine, mut others) = (self.spans(ahead).peekable(), other.spans(0).peekable());
        let mut both = 0_u64;
        while let (Some(a), Some(b)) = (mine.peek(), others.peek()) {
            both += u64::try_from(a.end.min(b.end) - a.start.max(b.start)).unwrap_or(0);
            if a.end <= b.end {
                mine.next();
            } else {
                others.next();
            }
        }
        match self.area() + other.area() - both {
            0 => 0.0,
            either => both as f64 / either as f64,
        }
    }

    /// Where the runs of ones lie, column by column, moved ahead by so many pixels.
    fn spans(&self, ahead: i64) -> impl Iterator<Item = std::ops::Range<i64>> {
        let mut at = ahead;
        self.counts
            .iter()
            .enumerate()
            .filter_map(move |(index, &count)| {
                let start = at;
                at = at.saturating_add(i64::from(count));
                (index % 2 == 1).then_some(start..at)
            })
    }

    /// The pixels row by row.
    #[must_use]
    pub fn to_rows(&self) -> Vec<bool> {
        let (height, width) = (self.height as usize, self.width as usize);
        let mut rows = vec![false; height * width];
        let mut position = 0;
        for (index, &count) in self.counts.iter().enumerate() {
            if index % 2 == 1 {
                for pixel in position..position + count as usize {
                    rows[(pixel % height) * width + pixel / height] = true;
                }
            }
            position += count as usize;
        }
        rows
    }

    /// The compressed form.
    #[must_use]
    pub fn to_coco_string(&self) -> String {
        let mut text = String::with_capacity(self.counts.len() * 2);
        for (index, &count) in self.counts.iter().enumerate() {
            let mut value = i64::from(count);
            if index > 2 {
                value -= i64::from(self.counts[index - 2]);
            }
            loop {
                let group = (value & 0x1f) as u8;
                value >>= 5;
                let more = if group & 0x10 != 0 {
                    value != -1
                } else {
                    value != 0
                };
                text.push(char::from(group + if more { 0x20 } else { 0 } + 48));
                if !more {
                    break;
                }
            }
        }
        text
    }

    /// Reads the compressed form of a mask of `height x width` pixels.
    ///
    /// # Errors
    /// Anything that does not encode exactly that many pixels.
    pub fn from_coco_string(height: u32, width: u32, text: &[u8]) -> Result<Self, RleError> {
        let mut counts: Vec<u32> = Vec::new();
        let (mut value, mut shift) = (0_i64, 0_u32);
        let mut covered = 0_u64;
        for (position, &byte) in text.iter().enumerate() {
            let group = byte.checked_sub(48).filter(|group| *group < 64);
            let group = i64::from(group.ok_or(RleError::Alphabet { position })?);
            if shift > 35 {
                return Err(RleError::Range);
            }
            value |= (group & 0x1f) << shift;
            shift += 5;
            if group & 0x20 != 0 {
                continue;
            }
            if group & 0x10 != 0 {
                value |= -1 << shift;
            }
            if counts.len() > 2 {
                value += i64::from(counts[counts.len() - 2]);
            }
            let count = u32::try_from(value).map_err(|_| RleError::Range)?;
            covered += u64::from(count);
            counts.push(count);
            (value, shift) = (0, 0);
        }
        if shift != 0 {
            return Err(RleError::Truncated);
        }
        let expected = u64::from(height) * u64::from(width);
        if covered != expected {
            return Err(RleError::Coverage { covered, expected });
        }
        Ok(Self {
            height,
            width,
            counts,
        })
    }
}

/// Collects runs; neighbours of one value become one.
#[derive(Debug, Default)]
pub(super) struct Runs {
    counts: Vec<u32>,
    value: bool,
    length: u32,
}

impl Runs {
    pub(super) fn push(&mut self, value: bool, length: u32) {
        if length == 0 {
            return;
        }
        if value != self.value {
            self.counts.push(self.length);
            (self.value, self.length) = (value, 0);
        }
        self.length += length;
    }

    fn push_long(&mut self, value: bool, length: u64) {
        // A mask's pixels fit in 32 bits: the media limits are far below.
        self.push(value, u32::try_from(length).unwrap_or(u32::MAX));
    }

    fn finish(mut self, height: u32, width: u32) -> Rle {
        self.counts.push(self.length);
        Rle {
            height,
            width,
            counts: self.counts,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mask() -> impl Strategy<Value = (u32, u32, Vec<bool>)> {
        (1_u32..20, 1_u32..20).prop_flat_map(|(height, width)| {
            let pixels = proptest::collection::vec(any::<bool>(), (height * width) as usize);
            (Just(height), Just(width), pixels)
        })
    }

    proptest! {
        #[test]
        fn compressing_and_reading_gives_the_same_mask((height, width, pixels) in mask()) {
            let rle = Rle::from_columns(height, width, pixels.iter().copied());
            let text = rle.to_coco_string();
            prop_assert_eq!(Rle::from_coco_string(height, width, text.as_bytes()), Ok(rle.clone()));
            let rows = rle.to_rows();
            for (index, pixel) in pixels.iter().enumerate() {
                let (column, row) = (index / height as usize, index % height as usize);
                prop_assert_eq!(rows[row * width as usize + column], *pixel);
            }
            prop_assert_eq!(rle.area(), pixels.iter().filter(|pixel| **pixel).count() as u64);
        }

        #[test]
        fn a_region_equals_the_same_pixels_given_one_by_one(
            (height, width, pixels) in mask(),
            cut in (0_u32..20, 0_u32..20, 0_u32..20, 0_u32..20),
        ) {
            let columns = cut.0.min(width)..(cut.0.min(width) + cut.1).min(width);
            let rows = cut.2.min(height)..(cut.2.min(height) + cut.3).min(height);
            let at = |column: u32, row: u32| pixels[(column * height + row) as usize];
            let region = Rle::from_region((height, width), columns.clone(), rows.clone(), |column, runs| {
                rows.clone().for_each(|row| runs.push(at(column, row), 1));
            });
            let all = (0..width).flat_map(|column| (0..height).map(move |row| (column, row)));
            let plain = all.map(|(c, r)| columns.contains(&c) && rows.contains(&r) && at(c, r));
            prop_assert_eq!(region, Rle::from_columns(height, width, plain));
        }

        #[test]
        fn overlaps_are_those_of_the_pixels(
            (height, width, pixels) in mask(),
            other in proptest::collection::vec(any::<bool>(), 400),
            (right, down) in (-9..9_i64, -9..9_i64),
        ) {
            let area = pixels.len() as i64;
            let rle = Rle::from_columns(height, width, pixels.iter().copied());
            let second = Rle::from_columns(height, width, other[..area as usize].iter().copied());
            let ahead = right * i64::from(height) + down;
            let came_from = |at: i64| usize::try_from(at - ahead).ok().and_then(|at| pixels.get(at));
            let both = (0..area).filter(|&at| came_from(at) == Some(&true) && other[at as usize]).count() as u64;
            let either = rle.area() + second.area() - both;
            let expected = if either == 0 { 0.0 } else { both as f64 / either as f64 };
            prop_assert_eq!(rle.iou_moved(&second, [right, down]), expected);
        }

        #[test]
        fn any_bytes_are_a_mask_or_an_error(text in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(rle) = Rle::from_coco_string(5, 7, &text) {
                prop_assert_eq!(rle.counts().iter().sum::<u32>(), 35);
            }
        }
    }

    // From pycocotools 2.0.11: encode(np.asfortranarray(mask))["counts"].
    #[test]
    fn known_strings_of_pycocotools() {
        let zeros = Rle::from_columns(4, 5, std::iter::repeat_n(false, 20));
        assert_eq!(zeros.to_coco_string(), "d0");
        let ones = Rle::from_columns(4, 5, std::iter::repeat_n(true, 20));
        assert_eq!(ones.to_coco_string(), "0d0");
    }
}
