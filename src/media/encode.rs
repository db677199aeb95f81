//! Images for people and for callers: PNG and JPEG files.

use std::io::Cursor;

use image::{
    ExtendedColorType, ImageEncoder,
    codecs::png::{CompressionType, FilterType, PngEncoder},
};

use super::{Format, Image, MediaError, jpeg};

/// An RGB image as a PNG file.
///
/// # Errors
/// The encoder's failure.
pub fn encode_png(image: &Image) -> Result<Vec<u8>, MediaError> {
    png(
        image.width(),
        image.height(),
        image.data(),
        ExtendedColorType::Rgb8,
    )
}

/// Gray levels of 8 bits, row by row, as a PNG file.
///
/// # Errors
/// A buffer of another length than `width x height`, or the encoder's failure.
pub fn encode_gray8_png(width: u32, height: u32, levels: &[u8]) -> Result<Vec<u8>, MediaError> {
    png(width, height, levels, ExtendedColorType::L8)
}

/// Gray levels of 16 bits, row by row, as a PNG file.
///
/// # Errors
/// A buffer of another length than `width x height`, or the encoder's failure.
pub fn encode_gray16_png(width: u32, height: u32, levels: &[u16]) -> Result<Vec<u8>, MediaError> {
    // The encoder takes the machine's byte order and writes the file's.
    let bytes: Vec<u8> = levels
        .iter()
        .flat_map(|level| level.to_ne_bytes())
        .collect();
    png(width, height, &bytes, ExtendedColorType::L16)
}

/// Black and white, row by row, as a PNG file of 1 bit; `true` is white.
///
/// # Errors
/// A buffer of another length than `width x height`, or the encoder's failure.
pub fn encode_bits_png(width: u32, height: u32, bits: &[bool]) -> Result<Vec<u8>, MediaError> {
    let expected = width as usize * height as usize;
    if bits.len() != expected || expected == 0 {
        return Err(MediaError::RawLength {
            expected,
            actual: bits.len(),
        });
    }
    let packed = bits.chunks_exact(width as usize).flat_map(|row| {
        let eight = |bits: &[bool]| {
            let set = bits.iter().enumerate().filter(|(_, bit)| **bit);
            set.fold(0_u8, |byte, (place, _)| byte | 0x80 >> place)
        };
        row.chunks(8).map(eight)
    });
    let packed: Vec<u8> = packed.collect();
    let failed = |error: ::png::EncodingError| MediaError::Encode {
        format: Format::Png,
        detail: error.to_string(),
    };
    let mut out = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut out, width, height);
    encoder.set_color(::png::ColorType::Grayscale);
    encoder.set_depth(::png::BitDepth::One);
    encoder.set_compression(::png::Compression::Fast);
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(&packed).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(out)
}

/// An RGB image as a JPEG file of `quality` 1 to 100.
///
/// # Errors
/// The encoder's failure.
pub fn encode_jpeg(image: &Image, quality: u8) -> Result<Vec<u8>, MediaError> {
    jpeg::encode(image.data(), image.width(), image.height(), quality).map_err(|error| {
        MediaError::Encode {
            format: Format::Jpeg,
            detail: error.to_string(),
        }
    })
}

fn png(
    width: u32,
    height: u32,
    bytes: &[u8],
    color: ExtendedColorType,
) -> Result<Vec<u8>, MediaError> {
    let channels = usize::from(color.bits_per_pixel() / 8);
    let expected = width as usize * height as usize * channels;
    if bytes.len() != expected {
        return Err(MediaError::RawLength {
            expected,
            actual: bytes.len(),
        });
    }
    let mut out = Vec::new();
    PngEncoder::new_with_quality(
        Cursor::new(&mut out),
        CompressionType::Fast,
        FilterType::Adaptive,
    )
    .write_image(bytes, width, height, color)
    .map_err(|error| MediaError::Encode {
        format: Format::Png,
        detail: error.to_string(),
    })?;
    Ok(out)
}
