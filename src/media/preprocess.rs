//! From an image of any size to the fixed input of a network.

use super::{
    error::MediaError,
    fit::{Filter, Preprocess},
    geometry::{Geometry, geometry},
    image::{RgbView, buffer_len},
    resample::{Weights, down_first, resample},
    watch::Keep,
};

/// Fills `out`, one row of an `NHWC uint8 RGB` batch (`height x width x 3` bytes), and says where the image went.
///
/// # Errors
/// [`MediaError::ZeroSize`] for an input of no pixels, [`MediaError::RawLength`] where `out` is not one row.
pub fn preprocess_into(
    image: RgbView<'_>,
    preprocess: &Preprocess,
    out: &mut [u8],
) -> Result<Geometry, MediaError> {
    preprocess_while(image, preprocess, out, &|| true)
}

/// As [`preprocess_into`], as long as `keep` says so, which is asked every few milliseconds.
///
/// # Errors
/// As [`preprocess_into`], and [`MediaError::Unwanted`] once `keep` says no.
pub fn preprocess_while(
    image: RgbView<'_>,
    preprocess: &Preprocess,
    out: &mut [u8],
    keep: &dyn Fn() -> bool,
) -> Result<Geometry, MediaError> {
    let Preprocess { width, height, .. } = *preprocess;
    if width == 0 || height == 0 {
        return Err(MediaError::ZeroSize { width, height });
    }
    let expected = buffer_len(width, height, 3)?;
    if out.len() != expected {
        return Err(MediaError::RawLength {
            expected,
            actual: out.len(),
        });
    }
    let geometry = geometry(image.width(), image.height(), preprocess);
    let size = (image.width(), image.height());
    if size == (width, height) && geometry.resized() == size {
        out.copy_from_slice(image.data());
        return Ok(geometry);
    }
    let valid = geometry.valid();
    if valid.width() < width || valid.height() < height {
        out.fill(preprocess.pad);
    }
    match resize_into(image, &geometry, preprocess.filter, out, keep) {
        true => Ok(geometry),
        false => Err(MediaError::Unwanted),
    }
}

/// Resizes straight into the valid part of `out`, without a picture in between; what a crop cuts away is not computed.
fn resize_into(
    image: RgbView<'_>,
    geometry: &Geometry,
    filter: Filter,
    out: &mut [u8],
    keep: Keep<'_>,
) -> bool {
    let valid = geometry.valid();
    let (resized_width, resized_height) = geometry.resized();
    let (left, top) = geometry.offset();
    let window = |from: u32, to: u32, offset: i64| {
        let place = |edge: u32| u32::try_from(i64::from(edge) - offset).unwrap_or(0);
        place(from)..place(to)
    };
    let across = window(valid.left, valid.right, left);
    let down = window(valid.top, valid.bottom, top);
    let across = Weights::new(image.width(), resized_width, across, filter);
    let down = Weights::new(image.height(), resized_height, down, filter);
    let stride = geometry.input_width() as usize * 3;
    let start = valid.top as usize * stride + valid.left as usize * 3;
    let size = (image.width() as usize, image.height() as usize);
    let order = down_first(
        (image.width(), image.height()),
        (resized_width, resized_height),
    );
    let emit = |row: usize, pixels: &[u8]| {
        out[start + row * stride..][..pixels.len()].copy_from_slice(pixels);
    };
    resample(image.data(), size, &across, &down, order, keep, emit)
}
