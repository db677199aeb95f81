//! JPEG through libjpeg, level for level what Pillow, OpenCV and torchvision decode.
//!
//! Decoders differ in how they enlarge subsampled chroma, by a level or two per pixel, and a network can tell. Nearly
//! all training data passed through libjpeg's, so this does too.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use image::{
    ColorType, ExtendedColorType, ImageDecoder, ImageError, ImageResult,
    error::{
        DecodingError, EncodingError, ImageFormatHint, UnsupportedError, UnsupportedErrorKind,
    },
};
use mozjpeg::{ColorSpace, Compress, Decompress, Marker};

/// Scans of one picture. Progressive files have about ten; each costs a pass over all of it, so a small file of
/// thousands would keep a core busy for minutes.
const MAX_SCANS: usize = 100;

const FORMAT: ImageFormatHint = ImageFormatHint::Exact(image::ImageFormat::Jpeg);

/// A JPEG whose header has been read.
pub(super) struct JpegDecoder<'a> {
    bytes: &'a [u8],
    source: Decompress<&'a [u8]>,
}

impl<'a> JpegDecoder<'a> {
    /// Reads the header.
    pub(super) fn new(bytes: &'a [u8]) -> ImageResult<Self> {
        let source = guarded(|| {
            Decompress::with_markers(&[Marker::APP(1), Marker::APP(14)]).from_mem(bytes)
        })?;
        Ok(Self { bytes, source })
    }

    fn check(&self) -> ImageResult<()> {
        // Inside a scan 0xff is followed by 0 or a restart marker, so these pairs are markers (or lie in metadata).
        let scans = self
            .bytes
            .windows(2)
            .filter(|pair| *pair == [0xff, 0xda])
            .count();
        if scans > MAX_SCANS {
            return Err(corrupt(format!("more than {MAX_SCANS} scans")));
        }
        if !ends(self.bytes) {
            return Err(corrupt("the file is truncated".to_owned()));
        }
        Ok(())
    }

    /// Whether the inks of a CMYK file are stored as what they leave white, as Adobe's programs do.
    fn inverted(&self) -> bool {
        self.source
            .markers()
            .any(|m| m.marker == Marker::APP(14) && m.data.starts_with(b"Adobe"))
    }
}

impl ImageDecoder for JpegDecoder<'_> {
    fn dimensions(&self) -> (u32, u32) {
        // libjpeg's own limit on a side is 65 500.
        (self.source.width() as u32, self.source.height() as u32)
    }

    fn color_type(&self) -> ColorType {
        ColorType::Rgb8
    }

    fn exif_metadata(&mut self) -> ImageResult<Option<Vec<u8>>> {
        let exif = self.source.markers().filter(|m| m.marker == Marker::APP(1));
        Ok(exif
            .filter_map(|m| m.data.strip_prefix(b"Exif\0\0"))
            .map(<[u8]>::to_vec)
            .next())
    }

    fn read_image(self, buffer: &mut [u8]) -> ImageResult<()> {
        self.check()?;
        match self.source.color_space() {
            ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK => {
                let inverted = self.inverted();
                let inks: Vec<[u8; 4]> = guarded(|| {
                    let mut started = self.source.to_colorspace(ColorSpace::JCS_CMYK)?;
                    let inks = started.read_scanlines()?;
                    started.finish()?;
                    Ok(inks)
                })?;
                for (pixel, ink) in buffer.chunks_exact_mut(3).zip(inks) {
                    let ink = if inverted {
                        ink.map(|level| !level)
                    } else {
                        ink
                    };
                    pixel.copy_from_slice(&cmyk_to_rgb(ink));
                }
                Ok(())
            }
            ColorSpace::JCS_GRAYSCALE | ColorSpace::JCS_YCbCr | ColorSpace::JCS_RGB => {
                guarded(|| {
                    let mut started = self.source.rgb()?;
                    started.read_scanlines_into(buffer)?;
                    started.finish()
                })
            }
            _ => {
                let kind = UnsupportedErrorKind::GenericFeature("colour space".to_owned());
                Err(ImageError::Unsupported(
                    UnsupportedError::from_format_and_kind(FORMAT, kind),
                ))
            }
        }
    }

    fn read_image_boxed(self: Box<Self>, buffer: &mut [u8]) -> ImageResult<()> {
        (*self).read_image(buffer)
    }
}

/// Encodes `width x height` pixels of 8-bit RGB at `quality` 1 to 100, chroma halved both ways.
pub(super) fn encode(rgb: &[u8], width: u32, height: u32, quality: u8) -> ImageResult<Vec<u8>> {
    let run = || {
        let mut compress = Compress::new(ColorSpace::JCS_RGB);
        compress.set_size(width as usize, height as usize);
        compress.set_quality(f32::from(quality.clamp(1, 100)));
        let mut started = compress.start_compress(Vec::new())?;
        started.write_scanlines(rgb)?;
        started.finish()
    };
    guarded(run).map_err(|error| {
        let color = ExtendedColorType::Rgb8;
        let text = format!("{error} ({color:?} {width} x {height})");
        ImageError::Encoding(EncodingError::new(FORMAT, text))
    })
}

/// libjpeg's fatal errors unwind; here they end, as what they are: a bad file.
fn guarded<T>(run: impl FnOnce() -> std::io::Result<T>) -> ImageResult<T> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(corrupt(error.to_string())),
        Err(payload) => Err(corrupt(message(payload.as_ref()))),
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("the decoder failed");
    text.strip_prefix("libjpeg fatal error: ")
        .unwrap_or(text)
        .to_owned()
}

fn corrupt(detail: String) -> ImageError {
    ImageError::Decoding(DecodingError::new(FORMAT, detail))
}

/// Pillow's conversion: each ink takes its share of what black leaves, `255 - k - ink * (255 - k) / 255`, with the
/// division rounded.
fn cmyk_to_rgb([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let light = 255 - u32::from(k);
    [c, m, y].map(|ink| {
        let product = u32::from(ink) * light + 128;
        light.saturating_sub(((product >> 8) + product) >> 8) as u8
    })
}

/// Whether a JPEG's picture ends: an end marker behind the start of its scan. Decoders fill what is missing with gray,
/// which would go on as if it had been seen. (Inside a scan 0xff is never followed by 0xd9 but at its end.)
fn ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[mark, kind, high, low]) = bytes.get(at..at + 4).and_then(|b| b.first_chunk()) {
        if mark != 0xff {
            return false;
        }
        if kind == 0xff {
            at += 1;
            continue;
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        if kind == 0xda {
            return bytes[at + 4..].windows(2).any(|pair| pair == [0xff, 0xd9]);
        }
        at += 2 + length;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Vec<u8> {
        let rgb: Vec<u8> = (0..64_u32 * 64)
            .flat_map(|i| [(i % 64) as u8, (i / 64) as u8, 99])
            .collect();
        encode(&rgb, 64, 64, 90).unwrap()
    }

    fn read(bytes: &[u8]) -> ImageResult<Vec<u8>> {
        let decoder = JpegDecoder::new(bytes)?;
        let mut out = vec![0; decoder.total_bytes() as usize];
        decoder.read_image(&mut out)?;
        Ok(out)
    }

    #[test]
    fn a_truncated_file_is_an_error_and_not_a_gray_picture() {
        let bytes = picture();
        assert!(read(&bytes).is_ok());
        for length in [3, 20, bytes.len() / 2, bytes.len() * 2 / 3] {
            let cut = read(&bytes[..length]);
            assert!(
                matches!(cut, Err(ImageError::Decoding(_))),
                "{length}: {cut:?}"
            );
        }
    }

    #[test]
    fn endless_scans_are_refused() {
        let mut bytes = picture();
        let end = bytes.len() - 2;
        let scan = bytes
            .windows(2)
            .position(|pair| pair == [0xff, 0xda])
            .unwrap();
        let again = bytes[scan..end].repeat(MAX_SCANS);
        bytes.splice(end..end, again);
        let error = read(&bytes).unwrap_err().to_string();
        assert!(error.contains("scans"), "{error}");
    }

    // Pillow 13: Image.merge("CMYK", ...).convert("RGB").
    #[test]
    fn inks_become_light_as_in_pillow() {
        assert_eq!(cmyk_to_rgb([0, 0, 0, 0]), [255, 255, 255]);
        assert_eq!(cmyk_to_rgb([10, 200, 30, 40]), [207, 46, 190]);
        assert_eq!(cmyk_to_rgb([255, 128, 1, 255]), [0, 0, 0]);
        assert_eq!(cmyk_to_rgb([1, 127, 254, 3]), [251, 126, 1]);
    }
}
