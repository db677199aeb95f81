//! Results drawn for people: masks, boxes, labels, label maps.

use std::collections::BTreeMap;

use ab_glyph::{Font, FontRef, PxScale, ScaleFont};

use super::Image;

/// Printable ASCII of DejaVu Sans Bold; its licence lies beside it.
const FONT: &[u8] = include_bytes!("font/DejaVuSans-Bold-ascii.ttf");

/// Colours that stay apart beside each other (Tableau 10, and lighter ones of the same hues).
const PALETTE: [[u8; 3]; 20] = [
    [31, 119, 180],
    [255, 127, 14],
    [44, 160, 44],
    [214, 39, 40],
    [148, 103, 189],
    [140, 86, 75],
    [227, 119, 194],
    [188, 189, 34],
    [23, 190, 207],
    [127, 127, 127],
    [255, 187, 120],
    [152, 223, 138],
    [255, 152, 150],
    [197, 176, 213],
    [196, 156, 148],
    [247, 182, 210],
    [219, 219, 141],
    [158, 218, 229],
    [174, 199, 232],
    [199, 199, 199],
];

/// The colour at `index`; the first twenty differ.
#[must_use]
pub fn color(index: usize) -> [u8; 3] {
    PALETTE[index % PALETTE.len()]
}

/// Tints the pixels of `mask` (row by row, `width x height` of them).
pub fn tint(image: &mut Image, mask: &[bool], color: [u8; 3], opacity: f32) {
    for (pixel, _) in image
        .data_mut()
        .chunks_exact_mut(3)
        .zip(mask)
        .filter(|(_, set)| **set)
    {
        blend(pixel, color, opacity);
    }
}

/// Tints every pixel whose label has a colour; `labels` lie row by row.
pub fn tint_labels(
    image: &mut Image,
    labels: &[u16],
    colors: &BTreeMap<u16, [u8; 3]>,
    opacity: f32,
) {
    for (pixel, label) in image.data_mut().chunks_exact_mut(3).zip(labels) {
        if let Some(&color) = colors.get(label) {
            blend(pixel, color, opacity);
        }
    }
}

/// Fills the rectangle from (`left`, `top`) of `width` x `height` pixels; what is outside the image is left out.
pub fn fill(
    image: &mut Image,
    (left, top): (i64, i64),
    (width, height): (i64, i64),
    color: [u8; 3],
    opacity: f32,
) {
    let (w, h) = (i64::from(image.width()), i64::from(image.height()));
    for y in top.max(0)..(top + height).min(h) {
        for x in left.max(0)..(left + width).min(w) {
            let at = ((y * w + x) * 3) as usize;
            blend(&mut image.data_mut()[at..at + 3], color, opacity);
        }
    }
}

/// The outline of an xyxy box, `stroke` pixels wide, inside it.
pub fn outline(image: &mut Image, bbox: [f32; 4], stroke: i64, color: [u8; 3]) {
    let [left, top, right, bottom] = bbox.map(|side| side.round() as i64);
    let (width, height) = (right - left, bottom - top);
    fill(image, (left, top), (width, stroke), color, 1.0);
    fill(image, (left, bottom - stroke), (width, stroke), color, 1.0);
    fill(image, (left, top), (stroke, height), color, 1.0);
    fill(image, (right - stroke, top), (stroke, height), color, 1.0);
}

/// A line from `from` to `to`, `stroke` pixels wide; what is outside the image is left out.
pub fn line(image: &mut Image, from: [f32; 2], to: [f32; 2], stroke: i64, color: [u8; 3]) {
    let (width, height) = (image.width() as f32, image.height() as f32);
    let Some((from, to)) = within(from, to, [width, height]) else {
        return;
    };
    let steps = (to[0] - from[0])
        .abs()
        .max((to[1] - from[1]).abs())
        .ceil()
        .max(1.0);
    for step in 0..=steps as u32 {
        let share = step as f32 / steps;
        let at = [0, 1].map(|axis| (from[axis] + share * (to[axis] - from[axis])).round() as i64);
        let corner = (at[0] - stroke / 2, at[1] - stroke / 2);
        fill(image, corner, (stroke, stroke), color, 1.0);
    }
}

/// The part of a line that lies within 0 to `size` (Liang and Barsky): however far away an end is, a line takes no longer
/// than the image is wide.
fn within(from: [f32; 2], to: [f32; 2], size: [f32; 2]) -> Option<([f32; 2], [f32; 2])> {
    if !from.iter().chain(&to).all(|side| side.is_finite()) {
        return None;
    }
    // Where along the line its part begins and ends, and on which side of the image, if on one.
    let (mut first, mut last) = ((0.0_f32, None), (1.0_f32, None));
    for axis in [0, 1] {
        let way = to[axis] - from[axis];
        if way == 0.0 {
            if !(0.0..=size[axis]).contains(&from[axis]) {
                return None;
            }
            continue;
        }
        let sides = [0.0, size[axis]].map(|side| ((side - from[axis]) / way, Some((axis, side))));
        let (enters, leaves) = match way > 0.0 {
            true => (sides[0], sides[1]),
            false => (sides[1], sides[0]),
        };
        if enters.0 > first.0 {
            first = enters;
        }
        if leaves.0 < last.0 {
            last = leaves;
        }
    }
    // Of an end that is far away rounding would leave nothing: ends, and where sides are met, are as they are.
    let on = |axis: usize, share: f32| from[axis] + share * (to[axis] - from[axis]);
    let at = |(share, side): (f32, Option<(usize, f32)>), end: [f32; 2]| {
        let Some((met, side)) = side else { return end };
        let mut at = [0, 1].map(|axis| on(axis, share).clamp(0.0, size[axis]));
        at[met] = side;
        at
    };
    (first.0 <= last.0).then(|| (at(first, from), at(last, to)))
}

/// Text on a ground of `color`, white or black, whichever is easier to read; its top left corner at (`left`, `top`), moved to stay inside the image.
/// Characters outside printable ASCII are left out.
pub fn tag(image: &mut Image, (left, top): (i64, i64), text: &str, size: f32, color: [u8; 3]) {
    let (advance, line) = extent(text, size);
    let pad = (size / 5.0).ceil();
    let (width, height) = ((advance + 2.0 * pad) as i64, (line + pad) as i64);
    let left = left.min(i64::from(image.width()) - width).max(0);
    let top = top.min(i64::from(image.height()) - height).max(0);
    fill(image, (left, top), (width, height), color, 0.85);
    let at = (left + pad as i64, top + (pad / 2.0) as i64);
    self::text(image, at, text, size, ink(color));
}

/// Text without a ground, its top left corner at (`left`, `top`); what is outside the image is left out, and so are
/// characters outside printable ASCII.
pub fn text(image: &mut Image, (left, top): (i64, i64), text: &str, size: f32, color: [u8; 3]) {
    // The font is part of the binary: that it parses is held by a test.
    let Ok(font) = FontRef::try_from_slice(FONT) else {
        return;
    };
    let font = font.as_scaled(PxScale::from(size));
    let mut x = left as f32;
    let baseline = top as f32 + font.ascent();
    for c in printable(text) {
        let id = font.glyph_id(c);
        let glyph = id.with_scale_and_position(size, ab_glyph::point(x, baseline));
        if let Some(shape) = font.outline_glyph(glyph) {
            let corner = shape.px_bounds().min;
            shape.draw(|dx, dy, coverage| {
                let at = (
                    corner.x as i64 + i64::from(dx),
                    corner.y as i64 + i64::from(dy),
                );
                fill(image, at, (1, 1), color, coverage.min(1.0));
            });
        }
        x += font.h_advance(id);
    }
}

/// Black on light grounds, white on dark ones, by the luma of ITU-R BT.601.
fn ink([r, g, b]: [u8; 3]) -> [u8; 3] {
    let luma = (299 * u32::from(r) + 587 * u32::from(g) + 114 * u32::from(b)) / 1000;
    if luma > 150 { [20; 3] } else { [255; 3] }
}

/// Width and height of a line of text, in pixels.
fn extent(text: &str, size: f32) -> (f32, f32) {
    let Ok(font) = FontRef::try_from_slice(FONT) else {
        return (0.0, 0.0);
    };
    let font = font.as_scaled(PxScale::from(size));
    let advance = printable(text)
        .map(|c| font.h_advance(font.glyph_id(c)))
        .sum();
    (advance, font.height())
}

fn printable(text: &str) -> impl Iterator<Item = char> {
    text.chars().filter(|c| (' '..='~').contains(c))
}

fn blend(pixel: &mut [u8], color: [u8; 3], opacity: f32) {
    for (level, target) in pixel.iter_mut().zip(color) {
        let mixed = f32::from(*level) + (f32::from(target) - f32::from(*level)) * opacity;
        *level = mixed.round() as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gray() -> Image {
        Image::from_raw(40, 30, vec![100; 40 * 30 * 3]).unwrap()
    }

    #[test]
    fn text_is_drawn_and_stays_inside() {
        let mut image = gray();
        tag(&mut image, (1000, -50), "cat 0.9", 12.0, [0, 0, 0]);
        assert!(image.data().contains(&255), "no glyph was drawn");
        outline(&mut image, [-10.0, -10.0, 500.0, 500.0], 2, [1, 2, 3]);
    }

    #[test]
    fn a_line_covers_its_ends_and_stays_inside_however_long_it_is() {
        let mut image = gray();
        line(&mut image, [5.0, 5.0], [20.0, 15.0], 3, [255, 0, 0]);
        let red = |image: &Image, x: usize, y: usize| image.data()[(y * 40 + x) * 3] == 255;
        assert!(red(&image, 5, 5) && red(&image, 20, 15) && red(&image, 11, 9));
        assert!(!red(&image, 20, 5) && !red(&image, 25, 15));
        let mut image = gray();
        for far in [1e30, -1e30, f32::INFINITY, f32::NAN] {
            line(&mut image, [far, 20.0], [20.0, 20.0], 1, [255, 0, 0]);
        }
        assert!(red(&image, 39, 20) && red(&image, 0, 20) && !red(&image, 20, 19));
    }

    #[test]
    fn an_outline_covers_its_edge_and_not_its_inside() {
        let mut image = gray();
        outline(&mut image, [5.0, 5.0, 20.0, 15.0], 2, [255, 0, 0]);
        let at = |x: usize, y: usize| &image.data()[(y * 40 + x) * 3..][..3];
        assert_eq!(at(5, 5), [255, 0, 0]);
        assert_eq!(at(19, 14), [255, 0, 0]);
        assert_eq!(at(10, 10), [100, 100, 100]);
        assert_eq!(at(20, 10), [100, 100, 100]);
    }
}
