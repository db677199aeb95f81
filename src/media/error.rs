//! What can go wrong between a caller's bytes and pixels.

use std::fmt;

use super::format::Format;

/// An image was refused or could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MediaError {
    /// There are no bytes at all.
    #[error("image is empty")]
    Empty,
    /// The first bytes are not those of a format this crate reads.
    #[error("image format is not recognised; supported are jpeg, png, webp, bmp and gif")]
    UnknownFormat,
    /// The bytes are something known that is not an image of a format this crate reads.
    #[error("image is {what}; supported are jpeg, png, webp, bmp and gif")]
    ForeignFormat {
        /// What they are, with its article.
        what: &'static str,
    },
    /// The format is known, this variant of it is not read.
    #[error("unsupported {format} image: {detail}")]
    UnsupportedFormat {
        /// The container.
        format: Format,
        /// The feature that is not read.
        detail: String,
    },
    /// The file is truncated or damaged.
    #[error("corrupt {format} image: {detail}")]
    Corrupt {
        /// The container.
        format: Format,
        /// What the decoder said.
        detail: String,
    },
    /// The encoded image is longer than [`Limits::max_bytes`](super::Limits::max_bytes).
    #[error("image has {bytes} bytes, limit is {limit}")]
    TooManyBytes {
        /// Length of the encoded image.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Width x height is over [`Limits::max_pixels`](super::Limits::max_pixels).
    #[error("image is {width} x {height} pixels, limit is {limit} pixels in all")]
    TooManyPixels {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// The limit on their product.
        limit: u64,
    },
    /// A side is over [`Limits::max_side`](super::Limits::max_side).
    #[error("image is {width} x {height} pixels, limit is {limit} a side")]
    SideTooLong {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// The limit on each.
        limit: u32,
    },
    /// Scans x pixels are over [`Limits::most_scanned`](super::Limits::most_scanned).
    #[error(
        "image is {width} x {height} pixels in {scans} scans, limit is {limit} scans of so many pixels"
    )]
    TooManyScans {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// Passes over them.
        scans: u32,
        /// The limit for this size.
        limit: u32,
    },
    /// Whoever asked for it does not want it any more.
    #[error("image is not wanted any more")]
    Unwanted,
    /// Width or height is zero.
    #[error("image is {width} x {height} pixels, both sides must be at least 1")]
    ZeroSize {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// A raw pixel buffer does not have the length that its size implies.
    #[error("pixel buffer has {actual} bytes, expected {expected}")]
    RawLength {
        /// Width x height x channels.
        expected: usize,
        /// Length of the buffer.
        actual: usize,
    },
    /// An image could not be encoded, for instance one too large for the format.
    #[error("cannot encode as {format}: {detail}")]
    Encode {
        /// The format asked for.
        format: Format,
        /// What the encoder said.
        detail: String,
    },
}

/// Who can act on a [`MediaError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MediaErrorKind {
    /// The caller's image or buffer is wrong.
    InvalidArgument,
    /// The image may be fine but is over a configured limit.
    LimitExceeded,
    /// This crate failed on inputs that it had accepted.
    Internal,
}

impl MediaError {
    /// As a sentence that is the same for all images that are over a limit, and what differs between them.
    #[must_use]
    pub fn told(&self) -> (String, Vec<(&'static str, String)>) {
        let (message, value, limit) = match self {
            Self::TooManyBytes { bytes, limit } => (
                format!("image has more than {limit} bytes"),
                bytes.to_string(),
                limit.to_string(),
            ),
            Self::TooManyPixels {
                width,
                height,
                limit,
            } => (
                format!("image has more than {limit} pixels in all"),
                format!("{width}x{height}"),
                limit.to_string(),
            ),
            Self::SideTooLong {
                width,
                height,
                limit,
            } => (
                format!("image has more than {limit} pixels a side"),
                format!("{width}x{height}"),
                limit.to_string(),
            ),
            Self::TooManyScans { scans, limit, .. } => (
                "image has more scans than an image of so many pixels may have".to_owned(),
                scans.to_string(),
                limit.to_string(),
            ),
            other => return (other.to_string(), Vec::new()),
        };
        (message, vec![("value", value), ("limit", limit)])
    }

    /// Splits the caller's bad arguments from limits exceeded and from defects.
    #[must_use]
    pub fn kind(&self) -> MediaErrorKind {
        match self {
            Self::Empty
            | Self::UnknownFormat
            | Self::ForeignFormat { .. }
            | Self::UnsupportedFormat { .. }
            | Self::Corrupt { .. }
            | Self::ZeroSize { .. }
            | Self::RawLength { .. } => MediaErrorKind::InvalidArgument,
            Self::TooManyBytes { .. }
            | Self::TooManyPixels { .. }
            | Self::TooManyScans { .. }
            | Self::SideTooLong { .. } => MediaErrorKind::LimitExceeded,
            Self::Encode { .. } | Self::Unwanted => MediaErrorKind::Internal,
        }
    }
}

impl Format {
    pub(super) fn corrupt(self, detail: impl fmt::Display) -> MediaError {
        MediaError::Corrupt {
            format: self,
            detail: detail.to_string(),
        }
    }

    pub(super) fn unsupported(self, detail: impl fmt::Display) -> MediaError {
        MediaError::UnsupportedFormat {
            format: self,
            detail: detail.to_string(),
        }
    }
}
