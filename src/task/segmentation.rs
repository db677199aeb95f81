//! Label maps at the original image's size.

use ndarray::{ArrayView2, ArrayView3};

use super::{Problem, Rle, TaskError, error::check_finite};
use crate::media::{self, Geometry, MediaError};

/// A label for each pixel of the original image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelMap {
    width: u32,
    height: u32,
    /// Row by row.
    labels: Vec<u16>,
}

impl LabelMap {
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

    /// The labels, row by row.
    #[must_use]
    pub fn labels(&self) -> &[u16] {
        &self.labels
    }

    /// Labels that occur, each with its number of pixels.
    #[must_use]
    pub fn counts(&self) -> Vec<(u32, u64)> {
        let most = self.labels.iter().copied().max().unwrap_or(0);
        let mut counts = vec![0_u64; usize::from(most) + 1];
        self.labels
            .iter()
            .for_each(|&label| counts[usize::from(label)] += 1);
        (0..).zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    /// A grayscale PNG whose value is the label: 8 bits while the labels fit, else 16.
    ///
    /// # Errors
    /// The encoder's failure.
    pub fn to_png(&self) -> Result<Vec<u8>, MediaError> {
        let narrow: Option<Vec<u8>> = self
            .labels
            .iter()
            .map(|&label| u8::try_from(label).ok())
            .collect();
        match narrow {
            Some(labels) => media::encode_gray8_png(self.width, self.height, &labels),
            None => media::encode_gray16_png(self.width, self.height, &self.labels),
        }
    }

    /// One mask for each label that occurs.
    #[must_use]
    pub fn to_rle(&self) -> Vec<(u32, Rle)> {
        let (height, width) = (self.height as usize, self.width as usize);
        let mask = |label: u32| {
            let columns = (0..width).flat_map(|x| (0..height).map(move |y| y * width + x));
            let pixels = columns.map(|at| u32::from(self.labels[at]) == label);
            (label, Rle::from_columns(self.height, self.width, pixels))
        };
        self.counts()
            .into_iter()
            .map(|(label, _)| mask(label))
            .collect()
    }
}

/// One axis of a bilinear sampling: for each original pixel the two cells and the second one's weight.
struct Axis(Vec<(usize, usize, f32)>);

impl Axis {
    /// `count` pixels whose centre's place in the input is `to_input`, over `cells` cells that span `input` pixels.
    /// Cell centres are half way between cell edges; beyond the first and last centre the edge cell's value holds.
    fn new(count: u32, input: u32, cells: usize, to_input: impl Fn(f64) -> f64) -> Self {
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
        Self((0..count).map(place).collect())
    }
}

/// Label of the highest logit at every original pixel's centre, the logits `[C, h, w]` over the whole input
/// interpolated bilinearly; equal ones go to the lower label.
///
/// # Errors
/// Empty logits, or a NaN or an infinity among them.
pub fn segment_logits(
    logits: ArrayView3<'_, f32>,
    geometry: &Geometry,
) -> Result<LabelMap, TaskError> {
    let (classes, rows, columns) = logits.dim();
    if classes == 0 || rows == 0 || columns == 0 || classes > usize::from(u16::MAX) + 1 {
        let expected = "[C, h, w] with no side 0 and at most 65536 labels";
        return Err(Problem::shape(expected, logits.shape()).of("logits"));
    }
    check_finite("logits", logits.iter())?;
    let (width, height) = (geometry.original_width(), geometry.original_height());
    let xs = Axis::new(width, geometry.input_width(), columns, |x| {
        geometry.to_input(x, 0.0).0
    });
    let ys = Axis::new(height, geometry.input_height(), rows, |y| {
        geometry.to_input(0.0, y).1
    });
    let mut labels = vec![0_u16; width as usize * height as usize];
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
    for (out, &(top, bottom, weight)) in labels.chunks_exact_mut(width as usize).zip(&ys.0) {
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
    Ok(LabelMap {
        width,
        height,
        labels,
    })
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

/// The label `[h, w]` of the cell that holds every original pixel's centre.
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
    let most = count.min(usize::from(u16::MAX) + 1);
    if let Some(&label) = map.iter().find(|label| !(0..most as i64).contains(*label)) {
        return Err(Problem::LabelOutOfRange { label, count }.of("label_map"));
    }
    let (width, height) = (geometry.original_width(), geometry.original_height());
    let cell = |at: f64, cells: usize, input: u32| {
        ((at * cells as f64 / f64::from(input)).floor().max(0.0) as usize).min(cells - 1)
    };
    let xs: Vec<_> = (0..width)
        .map(|x| {
            cell(
                geometry.to_input(f64::from(x) + 0.5, 0.0).0,
                columns,
                geometry.input_width(),
            )
        })
        .collect();
    let mut labels = Vec::with_capacity(width as usize * height as usize);
    for y in 0..height {
        let y = cell(
            geometry.to_input(0.0, f64::from(y) + 0.5).1,
            rows,
            geometry.input_height(),
        );
        labels.extend(xs.iter().map(|&x| map[[y, x]] as u16));
    }
    Ok(LabelMap {
        width,
        height,
        labels,
    })
}
