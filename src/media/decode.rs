//! Encoded bytes to an upright RGB image.
//!
//! Pixels are what Pillow's `convert("RGB")` gives, because that is what most networks were trained on: alpha is
//! dropped and not composited, gray is repeated, palettes are looked up. Samples of 16 bits become
//! `(v + 128) / 257`, the nearest of 256 levels. Colour profiles are not applied. Of an animation the first frame
//! is taken. The orientation that EXIF or XMP gives is applied. deploy/DECODING.md lists every difference
//! from Pillow.
//!
//! What a file may make this allocate is known from its header and the limits: each format's module walks its
//! container, hands the decoder the picture alone, and reads rows into the result.

use std::cell::Cell;

use image::{DynamicImage, RgbImage, metadata::Orientation};

use super::{
    bmp,
    error::MediaError,
    format::Format,
    gif,
    image::{Image, Limits, buffer_len},
    jpeg,
    opened::Opened,
    orientation::turns,
    png, sniff,
    vp8l::TABLE_BYTES,
    watch::Keep,
    webp,
};

/// What an image's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The container.
    pub format: Format,
    /// Columns, after the orientation is applied.
    pub width: u32,
    /// Rows, after the orientation is applied.
    pub height: u32,
    /// Passes over the whole picture that decoding makes: a JPEG's scans; 1 for everything else.
    pub scans: u32,
    /// Most bytes that decoding and turning it hold at once beside the file, the result among them.
    pub held: u64,
}

/// Asked whether it goes on, a decoder that nobody stops.
const ALWAYS: Keep<'static> = &|| true;

fn open<'a>(
    bytes: &'a [u8],
    limits: &Limits,
    keep: Keep<'a>,
) -> Result<(Format, Opened<'a>), MediaError> {
    limits.check_bytes(bytes.len())?;
    let format = sniff::format(bytes)?;
    let opened = match format {
        Format::Jpeg => jpeg::open(bytes, limits, keep),
        Format::Png => png::open(bytes, limits, keep),
        Format::WebP => webp::open(bytes, limits, keep),
        Format::Bmp => bmp::open(bytes, limits, keep),
        Format::Gif => gif::open(bytes, limits, keep),
    };
    Ok((format, opened?))
}

/// Reads the header alone; no pixel is allocated.
///
/// # Errors
/// All of [`MediaError`] that decoding can give before the first pixel: empty, unknown, unsupported or corrupt
/// headers, and every limit.
pub fn probe(bytes: &[u8], limits: &Limits) -> Result<Header, MediaError> {
    let (format, opened) = open(bytes, limits, ALWAYS)?;
    let held = held(format, &opened, bytes.len());
    let (width, height) = if turns(opened.orientation) {
        (opened.height, opened.width)
    } else {
        (opened.width, opened.height)
    };
    Ok(Header {
        format,
        width,
        height,
        scans: opened.scans,
        held,
    })
}

/// What a small part of a file may make a lossless WebP's decoder build, in bytes of tables for each of its own.
const TABLES: u64 = 350;

fn held(format: Format, opened: &Opened<'_>, bytes: usize) -> u64 {
    let pixels = u64::from(opened.width) * u64::from(opened.height);
    // Lying and upright, both of three bytes.
    let turned = opened.orientation != Orientation::NoTransforms;
    let each = opened.held.max(if turned { 6 } else { 0 });
    let tables = match format {
        Format::WebP => (bytes as u64)
            .saturating_mul(TABLES)
            .min(TABLE_BYTES as u64),
        _ => 0,
    };
    pixels * each + tables
}

/// Decodes to upright RGB; limits are checked from the header first.
///
/// # Errors
/// As [`probe`], and [`MediaError::Corrupt`] or [`MediaError::UnsupportedFormat`] for damaged pixel data; a
/// truncated file is an error.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Image, MediaError> {
    decode_while(bytes, limits, ALWAYS)
}

/// As [`decode`], as long as `keep` says so: it is asked every few milliseconds, but in a lossy WebP, whose decoder does
/// not stop. What it says once it has said no does not count.
///
/// # Errors
/// As [`decode`], and [`MediaError::Unwanted`] once `keep` says no.
pub fn decode_while(
    bytes: &[u8],
    limits: &Limits,
    keep: &dyn Fn() -> bool,
) -> Result<Image, MediaError> {
    let gone = Cell::new(false);
    let keep = || {
        if !gone.get() && !keep() {
            gone.set(true);
        }
        !gone.get()
    };
    let image = decode_watched(bytes, limits, &keep);
    match gone.get() {
        // Whatever the decoder made of a reader that failed.
        true => Err(MediaError::Unwanted),
        false => image,
    }
}

fn decode_watched(bytes: &[u8], limits: &Limits, keep: Keep<'_>) -> Result<Image, MediaError> {
    let (_, opened) = open(bytes, limits, keep)?;
    let (width, height) = (opened.width, opened.height);
    let mut rgb = vec![0; buffer_len(width, height, 3)?];
    (opened.read)(&mut rgb)?;
    if !keep() {
        return Err(MediaError::Unwanted);
    }
    if opened.orientation == Orientation::NoTransforms {
        return Image::from_raw(width, height, rgb);
    }
    let actual = rgb.len();
    let lying = RgbImage::from_raw(width, height, rgb).ok_or(MediaError::RawLength {
        expected: 0,
        actual,
    })?;
    let mut image = DynamicImage::ImageRgb8(lying);
    image.apply_orientation(opened.orientation);
    let (width, height) = (image.width(), image.height());
    Image::from_raw(width, height, image.into_rgb8().into_raw())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

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

    /// Larger than a slice, in every format, and in a lossless WebP of 34 bytes.
    fn pictures() -> Vec<(&'static str, Vec<u8>)> {
        let (width, height) = (900, 700);
        let rgb = image::RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([(x * y) as u8, (x ^ y) as u8, (x % 7 * y) as u8])
        });
        let made = |format| {
            let mut bytes = Vec::new();
            rgb.write_to(&mut Cursor::new(&mut bytes), format).unwrap();
            bytes
        };
        let progressive = jpeg::encode(&rgb, width, height, 90).unwrap();
        let mut gif = Vec::new();
        let mut levels: Vec<u8> = rgb.pixels().map(|pixel| pixel[1]).collect();
        let mut frame = ::gif::Frame::from_indexed_pixels(
            width as u16,
            height as u16,
            std::mem::take(&mut levels),
            None,
        );
        frame.palette = Some((0..=255).flat_map(|level| [level; 3]).collect());
        let mut encoder = ::gif::Encoder::new(&mut gif, width as u16, height as u16, &[]).unwrap();
        encoder.write_frame(&frame).unwrap();
        drop(encoder);
        vec![
            ("progressive jpeg", progressive),
            ("png", made(image::ImageFormat::Png)),
            ("bmp", made(image::ImageFormat::Bmp)),
            ("gif", gif),
        ]
    }

    #[test]
    fn decoding_stops_wherever_it_is_not_wanted_any_more() {
        let limits = Limits::default();
        for (name, file) in pictures() {
            let asked = Cell::new(0);
            let count = || {
                asked.set(asked.get() + 1);
                true
            };
            let whole = decode_while(&file, &limits, &count).unwrap();
            assert_eq!(whole, decode(&file, &limits).unwrap(), "{name}");
            let all = asked.get();
            assert!(all >= 4, "{name}: asked {all} times");
            for stop in (0..all).step_by((all / 7).max(1)) {
                asked.set(0);
                let keep = || {
                    asked.set(asked.get() + 1);
                    asked.get() <= stop
                };
                let stopped = decode_while(&file, &limits, &keep);
                assert_eq!(stopped, Err(MediaError::Unwanted), "{name} at {stop}");
                assert_eq!(asked.get(), stop + 1, "{name}: not asked again");
            }
        }
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
        assert_eq!(probe(&[1, 2, 3], &limits), Err(MediaError::UnknownFormat));
        let half = png(40, 40);
        let half = decode(&half[..half.len() / 2], &limits);
        assert!(matches!(half, Err(MediaError::Corrupt { .. })), "{half:?}");
    }
}
