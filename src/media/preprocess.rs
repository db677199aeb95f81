//! From an image of any size to the fixed input of a network.

use std::cell::RefCell;

use fast_image_resize::{
    FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer,
    images::{CroppedImageMut, Image as Target, ImageRef},
};

use super::{
    error::MediaError,
    geometry::{Geometry, geometry},
    image::{RgbView, buffer_len},
};

/// How an image of another aspect ratio is made to fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResizeMode {
    /// Shrunk or grown to fit inside, centred, padded with one colour.
    Letterbox,
    /// Each side resized by itself.
    Stretch,
    /// The shortest side fitted, then the centre cut out.
    CenterCrop,
}

/// What a resized pixel is made of. All but `Nearest` widen their kernel when shrinking (antialiasing), as Pillow
/// and torchvision with `antialias=True` do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// The pixel under the centre.
    Nearest,
    /// Triangle kernel: Pillow's `BILINEAR`.
    Bilinear,
    /// Catmull-Rom kernel, a = -0.5: Pillow's `BICUBIC`.
    Bicubic,
    /// Windowed sinc over three lobes: Pillow's `LANCZOS`.
    Lanczos3,
}

/// A network's input and how to fill it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Preprocess {
    /// How the image is made to fit.
    pub mode: ResizeMode,
    /// Kernel of the resize.
    pub filter: Filter,
    /// Value of all three channels where a letterbox leaves the image out, 0 to 255.
    pub pad: u8,
    /// Rows of the input, in pixels.
    pub height: u32,
    /// Columns of the input, in pixels.
    pub width: u32,
}

thread_local! {
    static RESIZER: RefCell<Resizer> = RefCell::new(Resizer::new());
}

/// A thread's scratch space above this is given back after use, so that one huge image is not paid for until exit.
const KEPT_SCRATCH_BYTES: usize = 8 << 20;

/// Fills `out`, one row of an `NHWC uint8 RGB` batch (`height x width x 3` bytes), and says where the image went.
///
/// # Errors
/// [`MediaError::ZeroSize`] for an input of no pixels, [`MediaError::RawLength`] where `out` is not one row.
pub fn preprocess_into(
    image: RgbView<'_>,
    preprocess: &Preprocess,
    out: &mut [u8],
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
    if (image.width(), image.height()) == (width, height) {
        out.copy_from_slice(image.data());
        return Ok(geometry);
    }
    let valid = geometry.valid();
    if valid.width() < width || valid.height() < height {
        out.fill(preprocess.pad);
    }
    resize_into(image, &geometry, preprocess.filter, out)
        .map_err(|detail| MediaError::Resize { detail })?;
    Ok(geometry)
}

/// Resizes straight into the valid part of `out`, without a picture in between.
fn resize_into(
    image: RgbView<'_>,
    geometry: &Geometry,
    filter: Filter,
    out: &mut [u8],
) -> Result<(), String> {
    let source = ImageRef::new(image.width(), image.height(), image.data(), PixelType::U8x3)
        .map_err(|e| e.to_string())?;
    let (input_width, input_height) = (geometry.input_width(), geometry.input_height());
    let mut whole = Target::from_slice_u8(input_width, input_height, out, PixelType::U8x3)
        .map_err(|e| e.to_string())?;
    let valid = geometry.valid();
    let mut target = CroppedImageMut::new(
        &mut whole,
        valid.left,
        valid.top,
        valid.width(),
        valid.height(),
    )
    .map_err(|e| e.to_string())?;
    let algorithm = match filter {
        Filter::Nearest => ResizeAlg::Nearest,
        Filter::Bilinear => ResizeAlg::Convolution(FilterType::Bilinear),
        Filter::Bicubic => ResizeAlg::Convolution(FilterType::CatmullRom),
        Filter::Lanczos3 => ResizeAlg::Convolution(FilterType::Lanczos3),
    };
    let options = source_box(geometry, &ResizeOptions::new().resize_alg(algorithm));
    RESIZER.with_borrow_mut(|resizer| {
        let result = resizer
            .resize(&source, &mut target, &options)
            .map_err(|e| e.to_string());
        if resizer.size_of_internal_buffers() > KEPT_SCRATCH_BYTES {
            resizer.reset_internal_buffers();
        }
        result
    })
}

/// The part of the original that the valid region shows. Kernels read across its edges, so cropping here gives the
/// same pixels as resizing the whole image and cropping after, without computing what is cut away.
fn source_box(geometry: &Geometry, options: &ResizeOptions) -> ResizeOptions {
    let valid = geometry.valid();
    let (original_width, original_height) = (
        f64::from(geometry.original_width()),
        f64::from(geometry.original_height()),
    );
    if geometry.resized() == (valid.width(), valid.height()) {
        return *options;
    }
    let (left, top) = geometry.to_original(f64::from(valid.left), f64::from(valid.top));
    let (right, bottom) = geometry.to_original(f64::from(valid.right), f64::from(valid.bottom));
    let (left, top) = (left.max(0.0), top.max(0.0));
    options.crop(
        left,
        top,
        right.min(original_width) - left,
        bottom.min(original_height) - top,
    )
}
