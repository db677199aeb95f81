//! Encoded bytes to an upright RGB image.
//!
//! Conversions to RGB follow what Pillow's `convert("RGB")` gives, because that is what most networks were trained
//! on: alpha is dropped and not composited, gray is repeated, palettes are looked up. Samples of 16 bits become
//! `(v + 128) / 257`, the nearest of 256 levels. Colour profiles are not applied. Of an animation the first frame
//! is taken. The EXIF orientation is applied.

use std::{fmt, io::Cursor};

use image::{
    DynamicImage, ImageDecoder, ImageError, ImageResult,
    codecs::{bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, webp::WebPDecoder},
    metadata::Orientation,
};

use super::{
    error::MediaError,
    image::{Image, Limits},
    jpeg::JpegDecoder,
};

/// A container that this crate reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// JPEG: baseline and progressive; gray, YCbCr, RGB, CMYK and YCCK.
    Jpeg,
    /// PNG: all colour types and depths.
    Png,
    /// WebP: lossy, lossless, with and without alpha.
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

    fn guess(bytes: &[u8]) -> Result<Self, MediaError> {
        match bytes {
            [] => Err(MediaError::Empty),
            [0xff, 0xd8, 0xff, ..] => Ok(Self::Jpeg),
            [0x89, b'P', b'N', b'G', ..] => Ok(Self::Png),
            [
                b'R',
                b'I',
                b'F',
                b'F',
                _,
                _,
                _,
                _,
                b'W',
                b'E',
                b'B',
                b'P',
                ..,
            ] => Ok(Self::WebP),
            [b'B', b'M', ..] => Ok(Self::Bmp),
            [b'G', b'I', b'F', b'8', ..] => Ok(Self::Gif),
            _ => Err(MediaError::UnknownFormat),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an image's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The container.
    pub format: Format,
    /// Columns, after the EXIF orientation is applied.
    pub width: u32,
    /// Rows, after the EXIF orientation is applied.
    pub height: u32,
}

/// Reads the header alone; no pixel is allocated.
///
/// # Errors
/// All of [`MediaError`] that decoding can give before the first pixel: empty, unknown, unsupported or corrupt
/// headers, and every limit.
pub fn probe(bytes: &[u8], limits: &Limits) -> Result<Header, MediaError> {
    limits.check_bytes(bytes.len())?;
    let format = Format::guess(bytes)?;
    let (mut decoder, orientation) = open(format, bytes)?;
    let (width, height) = decoder.as_mut().dimensions();
    limits.check_size(width, height)?;
    let turned = matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    );
    let (width, height) = if turned {
        (height, width)
    } else {
        (width, height)
    };
    Ok(Header {
        format,
        width,
        height,
    })
}

/// Decodes to upright RGB; limits are checked from the header first.
///
/// # Errors
/// As [`probe`], and [`MediaError::Corrupt`] or [`MediaError::UnsupportedFormat`] for damaged pixel data; a
/// truncated file is an error.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Image, MediaError> {
    let header = probe(bytes, limits)?;
    let fail = |error: ImageError| unusable(header.format, &error);
    let (mut decoder, orientation) = open(header.format, bytes)?;
    // A second fence behind the header check: what a decoder may allocate beside the pixels.
    let mut fence = image::Limits::no_limits();
    let pixels = u64::from(header.width) * u64::from(header.height);
    fence.max_alloc = Some(pixels * 16 + (16 << 20));
    decoder.set_limits(fence).map_err(fail)?;
    let mut image = DynamicImage::from_decoder(Boxed(decoder)).map_err(fail)?;
    image.apply_orientation(orientation);
    let rgb = to_rgb(image);
    Image::from_raw(header.width, header.height, rgb)
}

/// RGB bytes of an image of any pixel type.
fn to_rgb(image: DynamicImage) -> Vec<u8> {
    let narrow = |value: u16| ((u32::from(value) + 128) / 257) as u8;
    match image {
        DynamicImage::ImageRgb8(pixels) => pixels.into_raw(),
        DynamicImage::ImageRgba8(pixels) => {
            pixels.pixels().flat_map(|p| [p[0], p[1], p[2]]).collect()
        }
        DynamicImage::ImageLuma16(pixels) => {
            pixels.pixels().flat_map(|p| [narrow(p[0]); 3]).collect()
        }
        DynamicImage::ImageLumaA16(pixels) => {
            pixels.pixels().flat_map(|p| [narrow(p[0]); 3]).collect()
        }
        DynamicImage::ImageRgb16(pixels) => pixels
            .pixels()
            .flat_map(|p| [narrow(p[0]), narrow(p[1]), narrow(p[2])])
            .collect(),
        DynamicImage::ImageRgba16(pixels) => pixels
            .pixels()
            .flat_map(|p| [narrow(p[0]), narrow(p[1]), narrow(p[2])])
            .collect(),
        other => other.into_rgb8().into_raw(),
    }
}

type Decoder<'a> = Box<dyn ImageDecoder + 'a>;

/// A decoder that has read the header, and the orientation that the file asks for.
fn open(format: Format, bytes: &[u8]) -> Result<(Decoder<'_>, Orientation), MediaError> {
    fn boxed<'a, D: ImageDecoder + 'a>(
        format: Format,
        decoder: ImageResult<D>,
    ) -> Result<(Decoder<'a>, Orientation), MediaError> {
        let mut decoder = decoder.map_err(|error| unusable(format, &error))?;
        // An unreadable orientation is none: viewers show such a file as it lies.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        Ok((Box::new(decoder), orientation))
    }
    let reader = Cursor::new(bytes);
    match format {
        Format::Jpeg => boxed(format, JpegDecoder::new(bytes)),
        Format::Png => boxed(
            format,
            PngDecoder::with_limits(reader, image::Limits::default()),
        ),
        Format::WebP => boxed(format, WebPDecoder::new(reader)),
        Format::Bmp => boxed(format, BmpDecoder::new(reader)),
        Format::Gif => boxed(format, GifDecoder::new(reader)),
    }
}

/// A boxed decoder where a sized one is asked for.
struct Boxed<'a>(Decoder<'a>);

impl ImageDecoder for Boxed<'_> {
    fn dimensions(&self) -> (u32, u32) {
        self.0.dimensions()
    }

    fn color_type(&self) -> image::ColorType {
        self.0.color_type()
    }

    fn read_image(self, buffer: &mut [u8]) -> ImageResult<()> {
        self.0.read_image_boxed(buffer)
    }

    fn read_image_boxed(self: Box<Self>, buffer: &mut [u8]) -> ImageResult<()> {
        self.0.read_image_boxed(buffer)
    }
}

fn unusable(format: Format, error: &ImageError) -> MediaError {
    let detail = error.to_string();
    match error {
        ImageError::Unsupported(_) => MediaError::UnsupportedFormat { format, detail },
        _ => MediaError::Corrupt { format, detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let image = image::RgbImage::from_pixel(width, height, image::Rgb([9, 8, 7]));
        image
            .write_to(&mut Cursor::new(&mut bytes), image::ImageFormat::Png)
            .unwrap();
        bytes
    }

    /// A PNG whose header claims another size than its data has.
    fn claims(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = png(1, 1);
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let crc = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0_u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| {
                if crc & 1 == 1 {
                    (crc >> 1) ^ 0xedb8_8320
                } else {
                    crc >> 1
                }
            })
        })
    }

    #[test]
    fn pixels_come_back() {
        let image = decode(&png(3, 2), &Limits::default()).unwrap();
        assert_eq!((image.width(), image.height()), (3, 2));
        assert!(image.data().chunks(3).all(|pixel| pixel == [9, 8, 7]));
    }

    #[test]
    fn limits_are_checked_from_the_header() {
        let bomb = probe(&claims(10_000, 10_000), &Limits::default());
        assert!(
            matches!(bomb, Err(MediaError::TooManyPixels { .. })),
            "{bomb:?}"
        );
        let long = probe(&claims(30_000, 30_000), &Limits::default());
        let refused = matches!(
            long,
            Err(MediaError::TooManyPixels { .. } | MediaError::SideTooLong { .. })
        );
        assert!(refused, "{long:?}");
    }

    #[test]
    fn what_is_no_image_is_named() {
        let limits = Limits::default();
        assert_eq!(probe(&[], &limits), Err(MediaError::Empty));
        assert_eq!(
            probe(b"hello, world", &limits),
            Err(MediaError::UnknownFormat)
        );
        let half = png(40, 40);
        let half = decode(&half[..half.len() / 2], &limits);
        assert!(matches!(half, Err(MediaError::Corrupt { .. })), "{half:?}");
    }
}
