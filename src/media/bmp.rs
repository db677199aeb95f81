//! BMP: headers of odd shapes are made even, the decoder does the rest.

use std::{borrow::Cow, io::Cursor};

use image::{
    ColorType, DynamicImage, ImageDecoder, codecs::bmp::BmpDecoder, metadata::Orientation,
};

use super::{
    error::MediaError,
    format::Format,
    image::Limits,
    opened::{Opened, unusable},
    watch::{Keep, PIECE, Watched},
};

/// Signature, length and position of the pixels.
const FILE_HEADER: usize = 14;
/// The header that most files have, and the one of OS/2 2.x, which begins like it.
const WINDOWS_HEADER: usize = 40;
const OS2_HEADER: usize = 64;

/// Reads the headers.
pub(super) fn open<'a>(
    bytes: &'a [u8],
    limits: &Limits,
    keep: Keep<'a>,
) -> Result<Opened<'a>, MediaError> {
    let fail = |error| unusable(Format::Bmp, &error);
    let header =
        Header::read(bytes).ok_or_else(|| Format::Bmp.corrupt("its header is cut short"))?;
    limits.check_size(header.width, header.height)?;
    let file = header.evened(bytes)?;
    let decoder = BmpDecoder::new(Cursor::new(&file[..])).map_err(fail)?;
    let direct = decoder.color_type() == ColorType::Rgb8;
    Ok(Opened {
        width: header.width,
        height: header.height,
        orientation: Orientation::NoTransforms,
        scans: 1,
        held: if direct { 3 } else { 7 },
        read: Box::new(move |out| {
            let file = Watched::new(&file, PIECE, keep);
            let decoder = BmpDecoder::new(file).map_err(fail)?;
            if direct {
                return decoder.read_image(out).map_err(fail);
            }
            let image = DynamicImage::from_decoder(decoder).map_err(fail)?;
            for (pixel, source) in out
                .chunks_exact_mut(3)
                .zip(image.into_rgba8().chunks_exact(4))
            {
                pixel.copy_from_slice(&source[..3]);
            }
            Ok(())
        }),
    })
}

/// What decides where the pixels are.
struct Header {
    offset: usize,
    /// Bytes of the header behind the file header.
    length: usize,
    width: u32,
    height: u32,
    bits: u32,
    compression: u32,
    /// Of the palette; 0 for as many as the bits can say.
    colors: u32,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let long = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let short = |at: usize| {
            Some(u32::from(u16::from_le_bytes(
                *bytes.get(at..)?.first_chunk()?,
            )))
        };
        let offset = usize::try_from(long(10)?).ok()?;
        let length = usize::try_from(long(14)?).ok()?;
        // The oldest header has sides of 16 bits.
        let old = length == 12;
        Some(Self {
            offset,
            length,
            width: if old { short(18)? } else { long(18)? },
            // Negative where the rows lie from the top.
            height: if old {
                short(20)?
            } else {
                (long(22)? as i32).unsigned_abs()
            },
            bits: if old { short(24)? } else { short(28)? },
            compression: if old { 0 } else { long(30)? },
            colors: if old { 0 } else { long(46)? },
        })
    }

    /// The file as the decoder takes it, which is nearly always as it is.
    ///
    /// Some writers leave the offset of the pixels out, others forget the palette in it, OS/2's longer header begins
    /// as Windows' does, and the last row may lack what fills it up to four bytes; Pillow reads them all. An offset
    /// into the headers or too near the file's end is an error, never a picture of something else.
    fn evened<'a>(&self, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, MediaError> {
        let end = FILE_HEADER + self.length;
        let mut offset = self.offset;
        if offset == 0 || (offset == end && self.bits <= 8) {
            let masks = if self.compression == 3 && self.length == 40 {
                12
            } else {
                0
            };
            offset = end + masks + self.palette();
        }
        if end > bytes.len() {
            return Err(Format::Bmp.corrupt("its header is cut short"));
        }
        if offset < end {
            let detail =
                format!("its pixels are said to begin at byte {offset}, inside its header");
            return Err(Format::Bmp.corrupt(detail));
        }
        let used = (u64::from(self.width) * u64::from(self.bits)).div_ceil(8);
        let row = used.next_multiple_of(4);
        let plain = matches!(self.compression, 0 | 3);
        let needed = if plain {
            row * u64::from(self.height)
        } else {
            1
        };
        let left = (bytes.len() as u64).saturating_sub(offset as u64);
        let lacking = needed.saturating_sub(left);
        if lacking > if plain { row - used } else { 0 } {
            let detail =
                format!("its pixels need {needed} bytes, {left} are left behind its offset");
            return Err(Format::Bmp.corrupt(detail));
        }
        let longer = self.length == OS2_HEADER && self.compression <= 2;
        if offset == self.offset && lacking == 0 && !longer {
            return Ok(bytes.into());
        }
        let mut file = bytes.to_vec();
        file.resize(file.len() + lacking as usize, 0);
        if longer {
            file.drain(FILE_HEADER + WINDOWS_HEADER..end);
            file[FILE_HEADER..][..4].copy_from_slice(&(WINDOWS_HEADER as u32).to_le_bytes());
            offset -= OS2_HEADER - WINDOWS_HEADER;
        }
        file[10..14].copy_from_slice(&(offset as u32).to_le_bytes());
        Ok(file.into())
    }

    /// Bytes of the palette.
    fn palette(&self) -> usize {
        if self.bits > 8 {
            return 0;
        }
        let colors = if self.colors == 0 {
            1 << self.bits
        } else {
            self.colors as usize
        };
        colors.saturating_mul(if self.length == 12 { 3 } else { 4 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture of 3 x 2 pixels of 8 bits behind a header of `length` bytes.
    fn file(length: u32, offset: u32) -> Vec<u8> {
        let mut bytes = [&b"BM"[..], &[0; 8], &offset.to_le_bytes()].concat();
        for value in [length, 3, 2, 1 | 8 << 16, 0, 8, 0, 0, 256, 0] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.resize(FILE_HEADER + length as usize, 0);
        bytes.extend((0..=255).flat_map(|level| [level, level, 99, 0]));
        bytes.extend([10, 20, 30, 0, 40, 50, 60, 0]);
        bytes
    }

    fn pixels(bytes: &[u8]) -> Result<Vec<u8>, MediaError> {
        let opened = open(bytes, &Limits::default(), &|| true)?;
        let mut out = vec![0; 18];
        (opened.read)(&mut out)?;
        Ok(out)
    }

    #[test]
    fn offsets_that_can_be_understood_are() {
        let right: Vec<u8> = [40, 50, 60, 10, 20, 30]
            .into_iter()
            .flat_map(|level| [99, level, level])
            .collect();
        for length in [40, 64, 108, 124] {
            let end = 14 + length;
            for offset in [0, end, end + 1024] {
                let bytes = file(length, offset);
                assert_eq!(pixels(&bytes).as_ref(), Ok(&right), "{length} {offset}");
                // The last row lacks what fills it up.
                let short = &bytes[..bytes.len() - 1];
                assert_eq!(pixels(short).as_ref(), Ok(&right), "{length} {offset}");
            }
        }
    }

    #[test]
    fn wrong_offsets_and_short_files_are_corrupt() {
        for (offset, what) in [(5, "inside its header"), (20_000, "behind its offset")] {
            let error = pixels(&file(40, offset)).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        for length in [40, 64] {
            let whole = file(length, 0);
            for cut in 0..whole.len() - 1 {
                let refused = pixels(&whole[..cut]);
                assert!(matches!(refused, Err(MediaError::Corrupt { .. })), "{cut}");
            }
        }
    }
}
