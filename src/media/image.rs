//! RGB pixels, and how many of them are allowed.

use super::error::MediaError;

/// Scans of one picture, however small it is: progressive files have about ten, and each costs a pass over all of it.
const MAX_SCANS: u32 = 100;

/// Scans of a picture that has as many pixels as there may be.
const SCANS: u64 = 20;

/// Bounds on one encoded or decoded image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest encoded image, in bytes.
    pub max_bytes: usize,
    /// Largest width x height, in pixels. Decoding holds at most 12 bytes a pixel.
    pub max_pixels: u64,
    /// Longest side, in pixels.
    pub max_side: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 32 << 20,
            max_pixels: 50_000_000,
            max_side: 16_384,
        }
    }
}

impl Limits {
    /// Checks the length of an encoded image.
    ///
    /// # Errors
    /// [`MediaError::Empty`] or [`MediaError::TooManyBytes`].
    pub fn check_bytes(&self, bytes: usize) -> Result<(), MediaError> {
        if bytes == 0 {
            return Err(MediaError::Empty);
        }
        if bytes > self.max_bytes {
            return Err(MediaError::TooManyBytes {
                bytes,
                limit: self.max_bytes,
            });
        }
        Ok(())
    }

    /// Checks an image's size in pixels; raw frames pass here too.
    ///
    /// # Errors
    /// [`MediaError::ZeroSize`], [`MediaError::SideTooLong`] or [`MediaError::TooManyPixels`].
    pub fn check_size(&self, width: u32, height: u32) -> Result<(), MediaError> {
        if width == 0 || height == 0 {
            return Err(MediaError::ZeroSize { width, height });
        }
        if width.max(height) > self.max_side {
            return Err(MediaError::SideTooLong {
                width,
                height,
                limit: self.max_side,
            });
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(MediaError::TooManyPixels {
                width,
                height,
                limit: self.max_pixels,
            });
        }
        Ok(())
    }
}

impl Limits {
    /// Checks how often decoding passes over an image's pixels. A picture as large as the limit may have 20 scans, of
    /// which progressive files have ten, or 18 where they have four colours; a smaller one in proportion more.
    ///
    /// # Errors
    /// [`MediaError::TooManyScans`].
    pub fn check_scans(&self, width: u32, height: u32, scans: u32) -> Result<(), MediaError> {
        let limit = self.most_scans(width, height);
        if scans > limit {
            return Err(MediaError::TooManyScans {
                width,
                height,
                scans,
                limit,
            });
        }
        Ok(())
    }

    /// Most scans of an image of this size; one at least.
    #[must_use]
    pub fn most_scans(&self, width: u32, height: u32) -> u32 {
        let pixels = (u64::from(width) * u64::from(height)).max(1);
        let most = self.most_scanned() / pixels;
        u32::try_from(most).unwrap_or(u32::MAX).clamp(1, MAX_SCANS)
    }

    /// Most scans x pixels of an image.
    #[must_use]
    pub fn most_scanned(&self) -> u64 {
        self.max_pixels.saturating_mul(SCANS)
    }
}

/// Bytes of `width` x `height` pixels of `channels` bytes each, or an error where they cannot be addressed.
pub(super) fn buffer_len(width: u32, height: u32, channels: usize) -> Result<usize, MediaError> {
    (width as usize)
        .checked_mul(height as usize)
        .and_then(|pixels| pixels.checked_mul(channels))
        .filter(|&bytes| isize::try_from(bytes).is_ok())
        .ok_or(MediaError::TooManyPixels {
            width,
            height,
            limit: isize::MAX as u64 / channels as u64,
        })
}

fn check_buffer(width: u32, height: u32, actual: usize) -> Result<(), MediaError> {
    if width == 0 || height == 0 {
        return Err(MediaError::ZeroSize { width, height });
    }
    let expected = buffer_len(width, height, 3)?;
    if actual != expected {
        return Err(MediaError::RawLength { expected, actual });
    }
    Ok(())
}

/// An upright image: RGB, 8 bits a channel, interleaved, rows from the top without padding.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    width: u32,
    height: u32,
    data: Vec<u8>,
}

impl Image {
    /// Takes `width` x `height` x 3 bytes of RGB.
    ///
    /// # Errors
    /// [`MediaError::ZeroSize`] or [`MediaError::RawLength`].
    pub fn from_raw(width: u32, height: u32, data: Vec<u8>) -> Result<Self, MediaError> {
        check_buffer(width, height, data.len())?;
        Ok(Self {
            width,
            height,
            data,
        })
    }

    /// Columns, in pixels; at least 1.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Rows, in pixels; at least 1.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// RGB bytes, row by row.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// RGB bytes, row by row, to be changed in place.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// Gives the RGB bytes away.
    #[must_use]
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// Borrows the pixels.
    #[must_use]
    pub fn view(&self) -> RgbView<'_> {
        RgbView {
            width: self.width,
            height: self.height,
            data: &self.data,
        }
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({} x {})", self.width, self.height)
    }
}

/// Borrowed RGB pixels, in the layout of [`Image`].
#[derive(Clone, Copy)]
pub struct RgbView<'a> {
    width: u32,
    height: u32,
    data: &'a [u8],
}

impl<'a> RgbView<'a> {
    /// Views `width` x `height` x 3 bytes of RGB.
    ///
    /// # Errors
    /// [`MediaError::ZeroSize`] or [`MediaError::RawLength`].
    pub fn new(width: u32, height: u32, data: &'a [u8]) -> Result<Self, MediaError> {
        check_buffer(width, height, data.len())?;
        Ok(Self {
            width,
            height,
            data,
        })
    }

    /// Columns, in pixels; at least 1.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Rows, in pixels; at least 1.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// RGB bytes, row by row.
    #[must_use]
    pub fn data(&self) -> &'a [u8] {
        self.data
    }
}

impl std::fmt::Debug for RgbView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RgbView({} x {})", self.width, self.height)
    }
}
