//! How an image is made to fit a network's input.

/// How an image of another aspect ratio is made to fit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ResizeMode {
    /// Shrunk or grown to fit inside, centred, padded with one colour.
    Letterbox,
    /// Each side resized by itself.
    Stretch,
    /// Resized to cover, then the centre cut out.
    CenterCrop {
        /// Share of the covered width and height that the centre is: above 0, and 1 for the largest centre there is.
        fraction: f64,
    },
}

/// What a resized pixel is made of. The kernel widens when shrinking (antialiasing), as Pillow
/// and torchvision with `antialias=True` do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// Triangle kernel: Pillow's `BILINEAR`.
    Bilinear,
    /// Catmull-Rom kernel, a = -0.5: Pillow's `BICUBIC`.
    Bicubic,
}

/// A network's input and how to fill it.
#[derive(Debug, Clone, Copy, PartialEq)]
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
