//! A file whose header was read, on its way to pixels: what each format's module gives.

use image::{ImageError, metadata::Orientation};

use super::{error::MediaError, format::Format};

/// A file whose header has been read and is within the limits. No pixel has been allocated.
pub(super) struct Opened<'a> {
    /// Columns, as they lie in the file.
    pub(super) width: u32,
    /// Rows, as they lie in the file.
    pub(super) height: u32,
    pub(super) orientation: Orientation,
    pub(super) scans: u32,
    /// Most bytes that decoding holds for each pixel, the result among them.
    pub(super) held: u64,
    pub(super) read: Read<'a>,
}

/// Fills `width x height x 3` bytes of RGB.
pub(super) type Read<'a> = Box<dyn FnOnce(&mut [u8]) -> Result<(), MediaError> + 'a>;

/// What a decoder of the `image` crate says of a file.
pub(super) fn unusable(format: Format, error: &ImageError) -> MediaError {
    match error {
        ImageError::Unsupported(_) => format.unsupported(error),
        _ => format.corrupt(error),
    }
}
