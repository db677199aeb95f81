//! Segmentation: a label for each pixel, at the original image's size.

use std::{collections::BTreeMap, ops::Range};

use ndarray::{ArrayView2, ArrayView3};

use super::{
    Found, Problem, Rle, TaskError,
    error::check_finite,
    spec::{Call, LABELS, Output, Spec},
};
use crate::media::{self, Geometry, MediaError, Region};

/// A label for each pixel.
pub(super) const SPEC: Spec = Spec {
    name: "segmentation",
    labelled: true,
    outputs: &[&[MAP], &[DENSE]],
    // A graph that takes the highest logit itself needs not give the logits.
    set: |_, names| usize::from(!names.contains(&MAP.name)),
    indices: Some(MAP.name),
    by_pixel: true,
    run: |call| label_map(call).map(|map| Some(Found::LabelMap(map))),
    check: |call| label_map(call).map(|_| ()),
    size: |_, _, pixels| pixels,
    bytes: |_, options, labels, pixels| {
        let wide = labels > LabelMap::NARROW_LABELS;
        Some(options.label_map.bytes(pixels, wide) + labels as u64 * SEGMENT_BYTES)
    },
    ..Spec::PLAIN
};

const MAP: Output = Output {
    name: "label_map",
    element: "int64",
    shape: &["h", "w"],
    values: "indices into the manifest's labels, on a grid over the whole input",
    when: ", or",
};
const DENSE: Output = Output {
    name: "logits",
    element: "float32",
    shape: &[LABELS, "h", "w"],
    values: "finite, on a grid over the whole input; the highest of a pixel is its label",
    when: ", where there is no other",
};

/// Bytes of a label that occurs.
const SEGMENT_BYTES: u64 = 128;

fn label_map(call: &Call<'_>) -> Result<LabelMap, TaskError> {
    match call.tensors.has(MAP.name) {
        true => segment_labels(call.i64(MAP.name)?, call.geometry, call.labels),
        false => segment_logits(call.f32(DENSE.name)?, call.geometry),
    }
}

/// Columns of a label map that are looked at together.
const STRIP: usize = 32;

/// A label for each pixel of the original image that the head has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelMap {
    width: u32,
    height: u32,
    /// Row by row.
    labels: Vec<u16>,
    /// Value of pixels that have no label.
    unseen: u16,
}

impl LabelMap {
    /// Most labels that a map can tell apart.
    pub const MOST_LABELS: usize = u16::MAX as usize;
    /// Most labels of which each, and what says that there is none, fits a byte.
    pub const NARROW_LABELS: usize = u8::MAX as usize;

    /// A map in which nothing is seen yet, of a head with so many labels.
    fn unseen(geometry: &Geometry, labels: usize) -> Self {
        let (width, height) = (geometry.original_width(), geometry.original_height());
        // What label images use for "no label": 255 where that is no label, else the last 16-bit value.
        let unseen = match labels {
            ..=Self::NARROW_LABELS => 255,
            _ => u16::MAX,
        };
        Self {
            width,
            height,
            labels: vec![unseen; width as usize * height as usize],
            unseen,
        }
    }

    /// The part of each row that `seen` covers, with its row.
    fn rows_mut(&mut self, seen: Region) -> impl Iterator<Item = (u32, &mut [u16])> {
        let columns = seen.left as usize..seen.right as usize;
        (seen.top..seen.bottom).zip(
            self.labels
                .chunks_exact_mut(self.width as usize)
                .skip(seen.top as usize)
                .map(move |row| &mut row[columns.clone()]),
        )
    }

    /// Width in pixels.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The labels, row by row; a pixel that a centre crop has cut away is 255, or 65535 where the head has more than
    /// 255 labels.
    #[must_use]
    pub fn labels(&self) -> &[u16] {
        &self.labels
    }

    /// Labels that occur, each with its number of pixels; pixels that were not seen are of none.
    #[must_use]
    pub fn counts(&self) -> Vec<(u32, u64)> {
        let most = self.labels.iter().copied().max().unwrap_or(0);
        let mut counts = vec![0_u64; usize::from(most) + 1];
        self.labels
            .iter()
            .for_each(|&label| counts[usize::from(label)] += 1);
        if let Some(unseen) = counts.get_mut(usize::from(self.unseen)) {
            *unseen = 0;
        }
        (0..).zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    /// A grayscale PNG whose value is the label, or what says that there is none: 8 bits while the values fit, else 16.
    ///
    /// # Errors
    /// The encoder's failure.
    pub fn to_png(&self) -> Result<Vec<u8>, MediaError> {
        let narrow = self.labels.iter().map(|&label| u8::try_from(label).ok());
        self.png(narrow.collect())
    }

    /// As [`LabelMap::to_png`], for who needs the map no more: its memory is used again.
    ///
    /// # Errors
    /// The encoder's failure.
    pub fn into_png(mut self) -> Result<Vec<u8>, MediaError> {
        if self.labels.iter().any(|&label| label > u16::from(u8::MAX)) {
            return self.png(None);
        }
        // Collected in place.
        let labels = std::mem::take(&mut self.labels);
        let narrow = labels.into_iter().map(|label| label as u8).collect();
        self.png(Some(narrow))
    }

    fn png(&self, narrow: Option<Vec<u8>>) -> Result<Vec<u8>, MediaError> {
        match narrow {
            Some(labels) => media::encode_gray8_png(self.width, self.height, &labels),
            None => media::encode_gray16_png(self.width, self.height, &self.labels),
        }
    }

    /// One mask for each label that occurs; nothing where all of them together have more than `most` runs.
    ///
    /// The map is walked once, whatever the number of labels, in strips of columns: down a column of a large map each
    /// pixel lies in memory of its own.
    #[must_use]
    pub fn to_rle(&self, most: usize) -> Option<Vec<(u32, Rle)>> {
        let (height, width) = (self.height as usize, self.width as usize);
        let all = self.labels.len() as u64;
        // Of each label the lengths of its runs so far, and where the last one ends.
        let mut masks: BTreeMap<u16, (Vec<u32>, u64)> = BTreeMap::new();
        let mut runs = 0;
        let mut end_run = |label: u16, start: u64, end: u64| {
            let (counts, last) = masks.entry(label).or_default();
            // Within a map, which is within the media limits.
            counts.push((start - *last) as u32);
            counts.push((end - start) as u32);
            *last = end;
            runs += 1;
            runs <= most
        };
        let (mut label, mut start, mut at) = (self.labels.first().copied()?, 0, 0);
        let mut strip = vec![0; STRIP.min(width) * height];
        for left in (0..width).step_by(STRIP) {
            let columns = STRIP.min(width - left);
            for (y, row) in self.labels.chunks_exact(width).enumerate() {
                for (x, &value) in row[left..left + columns].iter().enumerate() {
                    strip[x * height + y] = value;
                }
            }
            for &value in &strip[..columns * height] {
                if value != label {
                    if !end_run(label, start, at) {
                        return None;
                    }
                    (label, start) = (value, at);
                }
                at += 1;
            }
        }
        if !end_run(label, start, at) {
            return None;
        }
        masks.remove(&self.unseen);
        let mask = |(label, (mut counts, last)): (u16, (Vec<u32>, u64))| {
            if last < all {
                counts.push((all - last) as u32);
            }
            (
                u32::from(label),
                Rle::from_counts(self.height, self.width, counts),
            )
        };
        Some(masks.into_iter().map(mask).collect())
    }
}

/// One axis of a bilinear sampling: for each original pixel that is seen the two cells and the second one's weight.
struct Axis(Vec<(usize, usize, f32)>);

impl Axis {
    /// `pixels` whose centre's place in the input is `to_input`, over `cells` cells that span `input` pixels.
    /// Cell centres are half way between cell edges; beyond the first and last centre the edge cell's value holds.
    fn new(pixels: Range<u32>, input: u32, cells: usize, to_input: impl Fn(f64) -> f64) -> Self {
        let last = (cells - 1) as f64;
        let place = |pixel: u32| {
            let at = to_input(f64::from(pixel) + 0.5) * cells as f64 / f64::from(input) - 0.5;
            let at = at.clamp(0.0, last);
            let low = at.floor();
            (
                low as usize,
                (low as usize + 1).min(cells - 1),
                (at - low) as f32,
            )
        };
        Self(pixels.map(place).collect())
    }
}

/// Label of the highest logit at every original pixel's centre, the logits `[C, h, w]` over the whole input
/// interpolated bilinearly; equal ones go to the lower label. Pixels that a centre crop has cut away get none.
///
/// # Errors
/// Empty logits, or a NaN or an infinity among them.
pub fn segment_logits(
    logits: ArrayView3<'_, f32>,
    geometry: &Geometry,
) -> Result<LabelMap, TaskError> {
    let (classes, rows, columns) = logits.dim();
    if classes == 0 || rows == 0 || columns == 0 || classes > LabelMap::MOST_LABELS {
        let expected = "[C, h, w] with no side 0 and at most 65535 labels";
        return Err(Problem::shape(expected, logits.shape()).of("logits"));
    }
    check_finite("logits", logits.iter())?;
    let seen = geometry.seen();
    let xs = Axis::new(
        seen.left..seen.right,
        geometry.input_width(),
        columns,
        |x| geometry.to_input(x, 0.0).0,
    );
    let ys = Axis::new(seen.top..seen.bottom, geometry.input_height(), rows, |y| {
        geometry.to_input(0.0, y).1
    });
    let mut map = LabelMap::unseen(geometry, classes);
    // One input row for all classes, then along it. Classes lie innermost, so that both passes run over neighbours.
    let cells: Vec<f32> = {
        let mut cells = vec![0.0; classes * rows * columns];
        for ((class, row, column), &value) in logits.indexed_iter() {
            cells[(row * columns + column) * classes + class] = value;
        }
        cells
    };
    let span = columns * classes;
    let mut line = vec![0.0_f32; span];
    let mut highest = vec![0_u16; columns];
    let mut pixel = vec![0.0_f32; classes];
    for ((_, out), &(top, bottom, weight)) in map.rows_mut(seen).zip(&ys.0) {
        let (top, bottom) = (
            &cells[top * span..][..span],
            &cells[bottom * span..][..span],
        );
        for ((value, &a), &b) in line.iter_mut().zip(top).zip(bottom) {
            *value = a + (b - a) * weight;
        }
        for (highest, cell) in highest.iter_mut().zip(line.chunks_exact(classes)) {
            *highest = first_highest(cell);
        }
        for (label, &(left, right, weight)) in out.iter_mut().zip(&xs.0) {
            // What is highest at both ends is highest between them: most pixels need no more than this.
            if highest[left] == highest[right] {
                *label = highest[left];
                continue;
            }
            let left = &line[left * classes..][..classes];
            let right = &line[right * classes..][..classes];
            for ((value, &a), &b) in pixel.iter_mut().zip(left).zip(right) {
                *value = a + (b - a) * weight;
            }
            *label = first_highest(&pixel);
        }
    }
    Ok(map)
}

/// Index of the highest value, the first of equal ones.
fn first_highest(values: &[f32]) -> u16 {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, &value) in values.iter().enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0 as u16
}

/// The label `[h, w]` of the cell that holds every original pixel's centre; pixels that a centre crop has cut away get
/// none.
///
/// # Errors
/// An empty map, or a label outside `0..count`.
pub fn segment_labels(
    map: ArrayView2<'_, i64>,
    geometry: &Geometry,
    count: usize,
) -> Result<LabelMap, TaskError> {
    let (rows, columns) = map.dim();
    if rows == 0 || columns == 0 {
        return Err(Problem::shape("[h, w] with no side 0", map.shape()).of("label_map"));
    }
    let most = count.min(LabelMap::MOST_LABELS);
    if let Some(&label) = map.iter().find(|label| !(0..most as i64).contains(*label)) {
        return Err(Problem::LabelOutOfRange { label, count }.of("label_map"));
    }
    let seen = geometry.seen();
    let cell = |at: f64, cells: usize, input: u32| {
        ((at * cells as f64 / f64::from(input)).floor().max(0.0) as usize).min(cells - 1)
    };
    let xs: Vec<_> = (seen.left..seen.right)
        .map(|x| {
            cell(
                geometry.to_input(f64::from(x) + 0.5, 0.0).0,
                columns,
                geometry.input_width(),
            )
        })
        .collect();
    let mut labels = LabelMap::unseen(geometry, count);
    for (y, out) in labels.rows_mut(seen) {
        let y = cell(
            geometry.to_input(0.0, f64::from(y) + 0.5).1,
            rows,
            geometry.input_height(),
        );
        for (label, &x) in out.iter_mut().zip(&xs) {
            *label = map[[y, x]] as u16;
        }
    }
    Ok(labels)
}
