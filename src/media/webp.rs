//! WebP: the picture, or the first frame of an animation.
//!
//! The container is walked here and the decoder given one bitstream: profiles and later frames are stepped over, and
//! so is the alpha plane, which the result has no place for.

use image::metadata::Orientation;
use image_webp::{DecodingError, WebPDecoder};

use super::{
    error::MediaError,
    format::Format,
    image::Limits,
    opened::Opened,
    orientation::Metadata,
    vp8l::check_tables,
    watch::{Keep, PIECE, Watched},
};

/// Flags of the extended header.
const ANIMATED: u8 = 0x02;
const HAS_XMP: u8 = 0x04;
const HAS_EXIF: u8 = 0x08;
/// A frame's place, size, duration and flags.
const FRAME: usize = 16;

/// One bitstream and its place on the canvas.
struct Layout<'a> {
    width: u32,
    height: u32,
    stream: Chunk<'a>,
    left: u32,
    top: u32,
    frame: (u32, u32),
    orientation: Orientation,
}

/// Finds the bitstream and reads its header.
pub(super) fn open<'a>(
    bytes: &'a [u8],
    limits: &Limits,
    keep: Keep<'a>,
) -> Result<Opened<'a>, MediaError> {
    let layout = walk(bytes)?;
    let (width, height) = (layout.width, layout.height);
    limits.check_size(width, height)?;
    Ok(Opened {
        width,
        height,
        orientation: layout.orientation,
        scans: 1,
        held: match (&layout.stream.kind, layout.frame == (width, height)) {
            (b"VP8 ", true) => 5,
            _ => 8,
        },
        read: Box::new(move |out| read(&layout, out, keep)),
    })
}

fn read(layout: &Layout<'_>, out: &mut [u8], keep: Keep<'_>) -> Result<(), MediaError> {
    let (columns, rows) = (layout.frame.0 as usize, layout.frame.1 as usize);
    if layout.stream.kind == *b"VP8L" {
        check_tables(layout.stream.data, layout.frame.0, layout.frame.1)?;
    }
    let file = layout.stream.alone();
    let file = Watched::new(&file, PIECE, keep);
    let mut decoder = WebPDecoder::new(file).map_err(|error| fail(&error))?;
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    let whole = layout.frame == (layout.width, layout.height);
    if whole && channels == 3 {
        return decoder.read_image(out).map_err(|error| fail(&error));
    }
    let mut pixels = vec![0; columns * rows * channels];
    decoder
        .read_image(&mut pixels)
        .map_err(|error| fail(&error))?;
    if !whole {
        out.fill(0);
    }
    let target = out
        .chunks_exact_mut(layout.width as usize * 3)
        .skip(layout.top as usize);
    for (row, source) in target.zip(pixels.chunks_exact(columns * channels)) {
        let row = row.chunks_exact_mut(3).skip(layout.left as usize);
        for (pixel, source) in row.zip(source.chunks_exact(channels)) {
            pixel.copy_from_slice(&source[..3]);
        }
    }
    Ok(())
}

fn fail(error: &DecodingError) -> MediaError {
    match error {
        DecodingError::UnsupportedFeature(detail) => Format::WebP.unsupported(detail),
        _ => Format::WebP.corrupt(error),
    }
}

fn walk(bytes: &[u8]) -> Result<Layout<'_>, MediaError> {
    let corrupt = |detail: &str| Format::WebP.corrupt(detail);
    let size = bytes
        .get(4..)
        .and_then(|size| size.first_chunk())
        .map(|size| u32::from_le_bytes(*size));
    let end = size
        .map_or(0, |size| (size as usize).saturating_add(8))
        .min(bytes.len());
    let mut chunks = Chunks {
        rest: bytes.get(12..end).unwrap_or_default(),
    };
    let first = chunks.next().ok_or_else(|| corrupt("it has no chunks"))?;
    if first.kind != *b"VP8X" {
        let frame = first
            .size()
            .ok_or_else(|| corrupt("it does not begin with a picture"))?;
        return Ok(Layout {
            width: frame.0,
            height: frame.1,
            stream: first,
            left: 0,
            top: 0,
            frame,
            orientation: Orientation::NoTransforms,
        });
    }
    let (Some(&flags), Some(width), Some(height)) = (
        first.data.first(),
        three(first.data, 4),
        three(first.data, 7),
    ) else {
        return Err(corrupt("its extended header is cut short"));
    };
    let (width, height) = (width + 1, height + 1);
    let (mut stream, mut metadata) = (None, Metadata::default());
    let (mut left, mut top, mut place) = (0, 0, (width, height));
    for chunk in chunks {
        match &chunk.kind {
            b"ANMF" if stream.is_none() && flags & ANIMATED != 0 => {
                let at = |at| {
                    three(chunk.data, at).ok_or_else(|| corrupt("its first frame is cut short"))
                };
                (left, top) = (at(0)? * 2, at(3)? * 2);
                place = (at(6)? + 1, at(9)? + 1);
                let parts = Chunks {
                    rest: chunk.data.get(FRAME..).unwrap_or_default(),
                };
                stream = parts.into_iter().find(Chunk::is_stream);
            }
            b"VP8 " | b"VP8L" if stream.is_none() && flags & ANIMATED == 0 => stream = Some(chunk),
            b"EXIF" if flags & HAS_EXIF != 0 => metadata.exif = metadata.exif.or(Some(chunk.data)),
            b"XMP " if flags & HAS_XMP != 0 => metadata.xmp = metadata.xmp.or(Some(chunk.data)),
            _ => {}
        }
    }
    let stream = stream.ok_or_else(|| corrupt("it has no picture"))?;
    let frame = stream
        .size()
        .ok_or_else(|| corrupt("its picture has no header"))?;
    if frame != place || left + frame.0 > width || top + frame.1 > height {
        return Err(corrupt(
            "its picture does not have the size that the container says",
        ));
    }
    Ok(Layout {
        width,
        height,
        stream,
        left,
        top,
        frame,
        orientation: metadata.orientation(),
    })
}

/// Three bytes at `at`, least significant first.
fn three(bytes: &[u8], at: usize) -> Option<u32> {
    let &[a, b, c] = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes([a, b, c, 0]))
}

#[derive(Clone, Copy)]
struct Chunk<'a> {
    kind: [u8; 4],
    data: &'a [u8],
}

impl Chunk<'_> {
    fn is_stream(&self) -> bool {
        matches!(&self.kind, b"VP8 " | b"VP8L")
    }

    /// Columns and rows that the bitstream itself says.
    fn size(&self) -> Option<(u32, u32)> {
        let side = |bytes: &[u8; 2]| u32::from(u16::from_le_bytes(*bytes) & 0x3fff);
        match &self.kind {
            b"VP8 " => {
                let (head, rest) = self.data.split_first_chunk::<6>()?;
                let (width, rest) = rest.split_first_chunk()?;
                let size = (side(width), side(rest.first_chunk()?));
                head.ends_with(&[0x9d, 0x01, 0x2a]).then_some(size)
            }
            b"VP8L" => {
                let bits = u32::from_le_bytes(*self.data.strip_prefix(&[0x2f])?.first_chunk()?);
                Some(((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1))
            }
            _ => None,
        }
    }

    /// A file of this bitstream alone.
    fn alone(&self) -> Vec<u8> {
        let length = self.data.len() as u32;
        let padding = self.data.len() & 1;
        let mut file = Vec::with_capacity(20 + self.data.len() + padding);
        file.extend_from_slice(b"RIFF");
        file.extend_from_slice(&(length + 12 + padding as u32).to_le_bytes());
        file.extend_from_slice(b"WEBP");
        file.extend_from_slice(&self.kind);
        file.extend_from_slice(&length.to_le_bytes());
        file.extend_from_slice(self.data);
        file.resize(file.len() + padding, 0);
        file
    }
}

/// The chunks of a container; the data of the last may be cut short.
struct Chunks<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Chunk<'a>;

    fn next(&mut self) -> Option<Chunk<'a>> {
        let (kind, rest) = self.rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let length = u32::from_le_bytes(*length) as usize;
        let data = &rest[..rest.len().min(length)];
        // Chunks begin at even positions.
        self.rest = rest
            .get(length.saturating_add(length & 1)..)
            .unwrap_or_default();
        Some(Chunk { kind: *kind, data })
    }
}
