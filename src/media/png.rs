//! PNG: of the file only the chunks that make the picture reach the decoder.
//!
//! Everything else, profiles and texts above all, is stepped over: such a chunk may unpack to a thousand times its
//! size. `eXIf` and two kinds of text are looked at for the orientation, the texts up to a bound.

use std::{
    borrow::Cow,
    io::{self, BufRead, Read, Seek, SeekFrom},
};

use flate2::read::ZlibDecoder;
use image::metadata::Orientation;
use png::{BitDepth, ColorType, DecodingError, InterlaceInfo, Reader, Transformations};

use super::{
    error::MediaError,
    format::Format,
    image::Limits,
    opened::Opened,
    orientation::Metadata,
    watch::{Keep, rows_of, unwanted},
};

const SIGNATURE: &[u8; 8] = b"\x89PNG\r\n\x1a\n";
/// Longest text that is unpacked in search of an orientation.
const TEXT_BYTES: u64 = 256 << 10;
/// What the decoder may hold beside two rows: chunks that it reads whole, of which the palette is the longest.
const DECODER_BYTES: usize = 64 << 10;
/// Longest palette: 256 colours.
const PALETTE_BYTES: usize = 768;

/// Reads the header, and the other chunks' names.
pub(super) fn open<'a>(
    bytes: &'a [u8],
    limits: &Limits,
    keep: Keep<'a>,
) -> Result<Opened<'a>, MediaError> {
    let header = Chunks::new(bytes).next();
    let size = header
        .filter(|chunk| chunk.kind == *b"IHDR")
        .and_then(|chunk| {
            let (width, rest) = chunk.data.split_first_chunk()?;
            Some((
                u32::from_be_bytes(*width),
                u32::from_be_bytes(*rest.first_chunk()?),
            ))
        });
    let (width, height) = size.ok_or_else(|| Format::Png.corrupt("it has no header"))?;
    limits.check_size(width, height)?;
    let row = width as usize * 8 + 1;
    let bound = png::Limits {
        bytes: row * 2 + DECODER_BYTES,
    };
    let mut decoder = png::Decoder::new_with_limits(Pixels::new(bytes), bound);
    decoder.set_transformations(Transformations::EXPAND);
    let reader = decoder.read_info().map_err(|error| fail(&error))?;
    Ok(Opened {
        width,
        height,
        orientation: orientation(bytes),
        scans: 1,
        held: 3,
        read: Box::new(move |out| read(reader, out, keep).map_err(|error| fail(&error))),
    })
}

fn fail(error: &DecodingError) -> MediaError {
    Format::Png.corrupt(error)
}

/// RGB of the default image, row by row: no second picture is held.
fn read(
    mut reader: Reader<Pixels<'_>>,
    out: &mut [u8],
    keep: Keep<'_>,
) -> Result<(), DecodingError> {
    let width = reader.info().width as usize;
    let slice = rows_of(width);
    let wanted = |row: usize| match !row.is_multiple_of(slice) || keep() {
        true => Ok(()),
        false => Err(unwanted()),
    };
    let (color, depth) = reader.output_color_type();
    let direct = (color, depth) == (ColorType::Rgb, BitDepth::Eight);
    if direct && !reader.info().interlaced {
        for (index, row) in out.chunks_exact_mut(width * 3).enumerate() {
            wanted(index)?;
            reader.read_row(row)?;
        }
        // Past the last row: what is left of the data is checked.
        reader.next_row()?;
        return Ok(());
    }
    let mut rgb = vec![0; width * 3];
    let mut rows = out.chunks_exact_mut(width * 3);
    let interlaced = reader.info().interlaced;
    let mut done = 0;
    if !interlaced {
        while let Some(row) = reader.next_row()? {
            wanted(done)?;
            done += 1;
            if let Some(out) = rows.next() {
                to_rgb(row.data(), color, depth, out);
            }
        }
        return Ok(());
    }
    while let Some(row) = reader.next_interlaced_row()? {
        wanted(done)?;
        done += 1;
        let InterlaceInfo::Adam7(place) = row.interlace() else {
            continue;
        };
        let samples =
            row.data().len() / color.samples() / if depth == BitDepth::Sixteen { 2 } else { 1 };
        let rgb = &mut rgb[..samples * 3];
        to_rgb(row.data(), color, depth, rgb);
        png::expand_interlaced_row(out, width * 3, rgb, place, 24);
    }
    Ok(())
}

/// One row in RGB of 8 bits. Alpha is dropped, 16 bits become the nearest of 256 levels.
fn to_rgb(row: &[u8], color: ColorType, depth: BitDepth, out: &mut [u8]) {
    let channels = color.samples();
    let gray = matches!(color, ColorType::Grayscale | ColorType::GrayscaleAlpha);
    let wide = depth == BitDepth::Sixteen;
    let level = |sample: usize| {
        if wide {
            let value = u32::from(u16::from_be_bytes([row[sample * 2], row[sample * 2 + 1]]));
            ((value + 128) / 257) as u8
        } else {
            row[sample]
        }
    };
    for (index, pixel) in out.chunks_exact_mut(3).enumerate() {
        let first = index * channels;
        for (channel, out) in pixel.iter_mut().enumerate() {
            *out = level(first + if gray { 0 } else { channel });
        }
    }
}

/// One chunk.
#[derive(Clone, Copy)]
struct Chunk<'a> {
    kind: [u8; 4],
    data: &'a [u8],
    /// With its length, name and check sum.
    whole: &'a [u8],
}

/// The chunks of a file. The last may be cut short, in which case its data is.
#[derive(Clone)]
struct Chunks<'a> {
    rest: &'a [u8],
}

impl<'a> Chunks<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes.get(SIGNATURE.len()..).unwrap_or_default(),
        }
    }
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Chunk<'a>;

    fn next(&mut self) -> Option<Chunk<'a>> {
        let (length, named) = self.rest.split_first_chunk()?;
        let (kind, data) = named.split_first_chunk()?;
        let length = u32::from_be_bytes(*length) as usize;
        let end = self.rest.len().min(length.saturating_add(12));
        let (whole, rest) = self.rest.split_at(end);
        self.rest = rest;
        let data = &data[..data.len().min(length)];
        Some(Chunk {
            kind: *kind,
            data,
            whole,
        })
    }
}

/// The file as the decoder sees it: signature, header, palette, picture, end.
struct Pixels<'a> {
    current: &'a [u8],
    chunks: Chunks<'a>,
}

impl<'a> Pixels<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            current: &bytes[..bytes.len().min(SIGNATURE.len())],
            chunks: Chunks::new(bytes),
        }
    }
}

impl BufRead for Pixels<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            let Some(chunk) = self.chunks.next() else {
                break;
            };
            let wanted = match &chunk.kind {
                b"IHDR" | b"IDAT" | b"IEND" => true,
                // Transparency is not asked for: alpha is dropped.
                b"PLTE" => chunk.data.len() <= PALETTE_BYTES,
                _ => false,
            };
            if wanted {
                self.current = chunk.whole;
            }
        }
        Ok(self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current = &self.current[amount..];
    }
}

impl Read for Pixels<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let amount = available.read(out)?;
        self.consume(amount);
        Ok(amount)
    }
}

/// Asked for by the decoder's types; it reads forward only.
impl Seek for Pixels<'_> {
    fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// From `eXIf`, from the text in which older programs keep EXIF in hexadecimal digits, or from XMP.
fn orientation(bytes: &[u8]) -> Orientation {
    let mut exif = None;
    let mut hex = None;
    let mut xmp = None;
    for chunk in Chunks::new(bytes) {
        match &chunk.kind {
            b"eXIf" => exif = exif.or(Some(chunk.data)),
            b"tEXt" | b"zTXt" | b"iTXt" => {
                let mut parts = chunk.data.splitn(2, |&byte| byte == 0);
                let (Some(key), Some(value)) = (parts.next(), parts.next()) else {
                    continue;
                };
                // The first of each: work is bounded whatever the number of chunks.
                match key {
                    b"Raw profile type exif" if hex.is_none() => hex = Some((chunk.kind, value)),
                    b"XML:com.adobe.xmp" if xmp.is_none() => xmp = Some((chunk.kind, value)),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    let hex = hex.filter(|_| exif.is_none());
    let unhexed = hex.and_then(|(kind, value)| from_hex(&text(kind, value)?));
    let xmp = xmp.and_then(|(kind, value)| text(kind, value));
    Metadata {
        exif: exif.or(unhexed.as_deref()),
        xmp: xmp.as_deref(),
    }
    .orientation()
}

/// The text behind a keyword, unpacked as far as the bound lets.
fn text(kind: [u8; 4], value: &[u8]) -> Option<Cow<'_, [u8]>> {
    let unpack = |packed: &[u8]| {
        let mut text = Vec::new();
        // Damaged behind what was unpacked: what there is may do.
        let _ = ZlibDecoder::new(packed)
            .take(TEXT_BYTES)
            .read_to_end(&mut text);
        text
    };
    match &kind {
        b"tEXt" => Some(value.into()),
        b"zTXt" => Some(unpack(value.strip_prefix(&[0])?).into()),
        _ => {
            let (&[packed, method], rest) = value.split_first_chunk()?;
            // Language and translated keyword.
            let text = rest.splitn(3, |&byte| byte == 0).nth(2)?;
            match (packed, method) {
                (0, _) => Some(text.into()),
                (_, 0) => Some(unpack(text).into()),
                _ => None,
            }
        }
    }
}

/// A blank line, a name, a length, and lines of hexadecimal digits.
fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.splitn(4, |&byte| byte == b'\n').nth(3)?;
    let digits: Vec<u8> = digits
        .iter()
        .take(TEXT_BYTES as usize)
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let even = &digits[..digits.len() & !1];
    hex::decode(even).ok()
}
