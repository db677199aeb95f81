//! The containers that are read.

use std::fmt;

/// A container that this crate reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// JPEG: baseline, progressive and arithmetic-coded; gray, YCbCr, RGB, CMYK and YCCK.
    Jpeg,
    /// PNG: all colour types and depths.
    Png,
    /// WebP: lossy, lossless, with and without alpha; of an animation the first frame.
    WebP,
    /// Windows bitmap.
    Bmp,
    /// GIF, its first frame.
    Gif,
}

impl Format {
    /// Name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::WebP => "webp",
            Self::Bmp => "bmp",
            Self::Gif => "gif",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
