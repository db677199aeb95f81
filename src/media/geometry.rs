//! Coordinates of an image and of the network's input made from it, there and back.
//!
//! All coordinates are continuous and count pixel edges: pixel `i` covers `[i, i + 1)` and its centre is
//! `i + 0.5`. The scales are those of the resized size after rounding, separate for x and y, so a box mapped
//! back lands on the pixels that it was computed from, not up to half a pixel beside them.

use super::fit::{Preprocess, ResizeMode};

/// A rectangle of whole pixels, `[left, right) x [top, bottom)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// One past the last column.
    pub right: u32,
    /// One past the last row.
    pub bottom: u32,
}

impl Region {
    /// Columns.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.right - self.left
    }

    /// Rows.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.bottom - self.top
    }
}

/// One axis of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Axis {
    original: u32,
    /// Length of the whole image after the resize; what overhangs the input is cropped away.
    resized: u32,
    input: u32,
    /// Where the resized image begins in the input: padding when positive, a crop when negative.
    offset: i64,
}

impl Axis {
    fn scale(&self) -> f64 {
        f64::from(self.resized) / f64::from(self.original)
    }

    #[expect(clippy::cast_precision_loss, reason = "offsets are within a few u32")]
    fn to_input(self, position: f64) -> f64 {
        position * self.scale() + self.offset as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "offsets are within a few u32")]
    fn to_original(self, position: f64) -> f64 {
        (position - self.offset as f64) / self.scale()
    }

    /// The first original pixel whose centre lies in the input, and one past the last.
    fn seen(self) -> (u32, u32) {
        // The centre of pixel i is at (2i + 1) * resized / (2 * original) of the resized image: those from `low` on,
        // and before `high`, in exact arithmetic.
        let (original, resized) = (i128::from(self.original), i128::from(self.resized));
        let first = |edge: i64| {
            let least = 2 * i128::from(edge) * original - resized;
            u32::try_from(
                least.div_euclid(2 * resized) + i128::from(least.rem_euclid(2 * resized) > 0),
            )
            .map_or(0, |pixel| pixel.min(self.original))
        };
        (
            first(-self.offset),
            first(i64::from(self.input) - self.offset),
        )
    }

    fn valid(self) -> (u32, u32) {
        let clamp =
            |edge: i64| u32::try_from(edge.max(0)).map_or(self.input, |edge| edge.min(self.input));
        (
            clamp(self.offset),
            clamp(self.offset + i64::from(self.resized)),
        )
    }
}

/// How an original image lies in a network's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    x: Axis,
    y: Axis,
}

impl Geometry {
    /// Columns of the original image.
    #[must_use]
    pub fn original_width(&self) -> u32 {
        self.x.original
    }

    /// Rows of the original image.
    #[must_use]
    pub fn original_height(&self) -> u32 {
        self.y.original
    }

    /// Columns of the input.
    #[must_use]
    pub fn input_width(&self) -> u32 {
        self.x.input
    }

    /// Rows of the input.
    #[must_use]
    pub fn input_height(&self) -> u32 {
        self.y.input
    }

    /// Size of the whole image after the resize, before padding or cropping.
    #[must_use]
    pub fn resized(&self) -> (u32, u32) {
        (self.x.resized, self.y.resized)
    }

    /// Where the resized image's top left corner lies in the input; negative where it was cropped.
    #[must_use]
    pub fn offset(&self) -> (i64, i64) {
        (self.x.offset, self.y.offset)
    }

    /// Input pixels per original pixel, along x and y.
    #[must_use]
    pub fn scale(&self) -> (f64, f64) {
        (self.x.scale(), self.y.scale())
    }

    /// Input pixels that show the image; the others are padding.
    #[must_use]
    pub fn valid(&self) -> Region {
        let (left, right) = self.x.valid();
        let (top, bottom) = self.y.valid();
        Region {
            left,
            top,
            right,
            bottom,
        }
    }

    /// Pixels of the original image whose centres lie in the input; a centre crop leaves the others out, and what a
    /// network says of them is a guess.
    #[must_use]
    pub fn seen(&self) -> Region {
        let (left, right) = self.x.seen();
        let (top, bottom) = self.y.seen();
        Region {
            left,
            top,
            right,
            bottom,
        }
    }

    /// Maps a point of the original image to the input.
    #[must_use]
    pub fn to_input(&self, x: f64, y: f64) -> (f64, f64) {
        (self.x.to_input(x), self.y.to_input(y))
    }

    /// Maps a point of the input to the original image; points on padding land outside it.
    #[must_use]
    pub fn to_original(&self, x: f64, y: f64) -> (f64, f64) {
        (self.x.to_original(x), self.y.to_original(y))
    }

    /// Maps an xyxy box of the input to the original image, not clipped.
    #[must_use]
    pub fn box_to_original(&self, bbox: [f64; 4]) -> [f64; 4] {
        let (x1, y1) = self.to_original(bbox[0], bbox[1]);
        let (x2, y2) = self.to_original(bbox[2], bbox[3]);
        [x1, y1, x2, y2]
    }
}

/// Where an image of `width` x `height` pixels goes in the input that `preprocess` describes; `models/GEOMETRY.md`
/// is the rule, and `models/geometry/cases.json` holds this and the models' code to it.
///
/// Every quotient is rounded to the nearest whole number, halves up, from the exact value: whole numbers are
/// multiplied and divided, so that no machine rounds one size up that another rounds down.
///
/// - Letterbox: `scale = min(W / w, H / h)`, each side `max(1, round(side * scale))`, centred, the odd pixel of
///   padding at the right or bottom.
/// - Stretch: both sides to the input's.
/// - Centre crop: `scale = max(W' / w, H' / h)` with `W' = floor(W / fraction)`, then the middle `W` x `H`, an odd
///   pixel more cut at the right or bottom.
///
/// Pure, and the same as what [`preprocess_into`](super::preprocess_into) returns. Sides of zero count as one.
#[must_use]
pub fn geometry(width: u32, height: u32, preprocess: &Preprocess) -> Geometry {
    let original = [width.max(1), height.max(1)];
    let input = [preprocess.width.max(1), preprocess.height.max(1)];
    let resized = match preprocess.mode {
        ResizeMode::Stretch => input,
        ResizeMode::Letterbox => {
            let ratio = if wider(input, original) { 1 } else { 0 };
            original.map(|side| scaled(side, input[ratio], original[ratio]))
        }
        ResizeMode::CenterCrop { fraction } => {
            let cover = input.map(|side| covering(side, fraction));
            let ratio = if wider(cover, original) { 0 } else { 1 };
            original.map(|side| scaled(side, cover[ratio], original[ratio]))
        }
    };
    let axis = |i: usize| Axis {
        original: original[i],
        resized: resized[i],
        input: input[i],
        offset: match preprocess.mode {
            // Floors of half the padding and of half the overhang: both leave the odd pixel at the far side.
            ResizeMode::CenterCrop { .. } => -i64::from((resized[i] - input[i]) / 2),
            ResizeMode::Letterbox | ResizeMode::Stretch => i64::from((input[i] - resized[i]) / 2),
        },
    };
    Geometry {
        x: axis(0),
        y: axis(1),
    }
}

/// Whether the box is wider for its height than the image: `W / w > H / h`.
fn wider(to: [u32; 2], image: [u32; 2]) -> bool {
    u64::from(to[0]) * u64::from(image[1]) > u64::from(to[1]) * u64::from(image[0])
}

/// `side * to / from`, rounded to the nearest, halves up; at least 1.
fn scaled(side: u32, to: u32, from: u32) -> u32 {
    let twice = 2 * u128::from(side) * u128::from(to) + u128::from(from);
    u32::try_from(twice / (2 * u128::from(from))).map_or(u32::MAX, |side| side.max(1))
}

/// The side of which `fraction` is `side`, rounded down as timm's `crop_pct` is.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, which is wanted"
)]
fn covering(side: u32, fraction: f64) -> u32 {
    ((f64::from(side) / fraction).floor() as u32).max(side)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::media::Filter;

    fn preprocess(mode: ResizeMode, width: u32, height: u32) -> Preprocess {
        Preprocess {
            mode,
            filter: Filter::Bilinear,
            pad: 114,
            height,
            width,
        }
    }

    #[test]
    fn letterbox_pads_the_short_side_evenly() {
        let g = geometry(640, 480, &preprocess(ResizeMode::Letterbox, 128, 128));
        assert_eq!((g.resized(), g.offset()), ((128, 96), (0, 16)));
        assert_eq!(
            g.valid(),
            Region {
                left: 0,
                top: 16,
                right: 128,
                bottom: 112
            }
        );
        assert_eq!(g.to_original(64.0, 64.0), (320.0, 240.0));
    }

    #[test]
    fn letterbox_keeps_a_pixel_of_a_sliver() {
        let g = geometry(10_000, 1, &preprocess(ResizeMode::Letterbox, 64, 64));
        assert_eq!((g.resized(), g.offset()), ((64, 1), (0, 31)));
    }

    #[test]
    fn centre_crop_cuts_the_long_side() {
        let g = geometry(
            640,
            480,
            &preprocess(ResizeMode::CenterCrop { fraction: 1.0 }, 128, 128),
        );
        assert_eq!((g.resized(), g.offset()), ((171, 128), (-21, 0)));
        assert_eq!(
            g.valid(),
            Region {
                left: 0,
                top: 0,
                right: 128,
                bottom: 128
            }
        );
    }

    fn any_mode() -> impl Strategy<Value = ResizeMode> {
        prop_oneof![
            Just(ResizeMode::Letterbox),
            Just(ResizeMode::Stretch),
            (0.1f64..=1.0).prop_map(|fraction| ResizeMode::CenterCrop { fraction })
        ]
    }

    proptest! {
        #[test]
        fn there_and_back(
            mode in any_mode(), w in 1u32..20_000, h in 1u32..20_000, iw in 1u32..2_000, ih in 1u32..2_000,
            fx in 0.0f64..1.0, fy in 0.0f64..1.0,
        ) {
            let g = geometry(w, h, &preprocess(mode, iw, ih));
            let (x, y) = (fx * f64::from(w), fy * f64::from(h));
            let (u, v) = g.to_input(x, y);
            let (x2, y2) = g.to_original(u, v);
            prop_assert!((x - x2).abs() < 1e-6 && (y - y2).abs() < 1e-6);
        }

        #[test]
        fn the_image_fills_its_valid_region(
            mode in any_mode(), w in 1u32..20_000, h in 1u32..20_000, iw in 1u32..2_000, ih in 1u32..2_000,
        ) {
            let g = geometry(w, h, &preprocess(mode, iw, ih));
            let valid = g.valid();
            prop_assert!(valid.left < valid.right && valid.right <= iw);
            prop_assert!(valid.top < valid.bottom && valid.bottom <= ih);
            let full_width = valid.width() == iw;
            let full_height = valid.height() == ih;
            match mode {
                ResizeMode::Letterbox => prop_assert!(full_width || full_height),
                ResizeMode::Stretch | ResizeMode::CenterCrop { .. } => prop_assert!(full_width && full_height),
            }
            let (left, top) = g.to_input(0.0, 0.0);
            prop_assert!(left <= f64::from(valid.left) && top <= f64::from(valid.top));
        }
    }
}
