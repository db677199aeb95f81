//! GIF: the first frame, as Pillow shows it.
//!
//! Extensions and later frames are stepped over; the decoder sees a file of one frame.

use std::io::Read;

use gif::{ColorOutput, DecodeOptions, MemoryLimit};
use image::metadata::Orientation;

use super::{
    error::MediaError,
    format::Format,
    image::Limits,
    opened::Opened,
    watch::{Keep, Watched},
};

/// Bytes of the file that are decoded at a time: a byte may stand for thousands of pixels.
const PIECE: usize = 256;

/// Signature and screen descriptor.
const SCREEN: usize = 13;
/// A screen with a palette, of which the decoder wants one and makes no use: levels are looked up here.
const SCREEN_ONLY: &[u8] = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff";
/// Separator, place, size and flags of a frame.
const FRAME: usize = 10;

/// Where the first frame lies, in the file and on the screen.
struct Layout<'a> {
    width: u32,
    height: u32,
    palette: &'a [u8],
    /// From the frame's separator to the end of its data.
    frame: &'a [u8],
    left: u32,
    top: u32,
    /// The colour around a frame smaller than the screen.
    ground: u8,
}

/// Finds the first frame.
pub(super) fn open<'a>(
    bytes: &'a [u8],
    limits: &Limits,
    keep: Keep<'a>,
) -> Result<Opened<'a>, MediaError> {
    let layout =
        walk(bytes).ok_or_else(|| Format::Gif.corrupt("it is cut short or has no frame"))?;
    let (width, height) = (layout.width, layout.height);
    limits.check_size(width, height)?;
    Ok(Opened {
        width,
        height,
        orientation: Orientation::NoTransforms,
        scans: 1,
        held: 4,
        read: Box::new(move |out| read(&layout, out, keep)),
    })
}

fn read(layout: &Layout<'_>, out: &mut [u8], keep: Keep<'_>) -> Result<(), MediaError> {
    let fail = |error: gif::DecodingError| Format::Gif.corrupt(error);
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.set_memory_limit(MemoryLimit::Unlimited);
    let frame = Watched::new(layout.frame, PIECE, keep);
    let file = SCREEN_ONLY.chain(frame).chain(&b";"[..]);
    let mut decoder = options.read_info(file).map_err(fail)?;
    let Some(frame) = decoder.next_frame_info().map_err(fail)? else {
        return Err(Format::Gif.corrupt("it has no frame"));
    };
    let (width, height) = (usize::from(frame.width), usize::from(frame.height));
    // Within the screen, which is within the limits.
    let mut indices = vec![0; width * height];
    if !indices.is_empty() {
        decoder.read_into_buffer(&mut indices).map_err(fail)?;
    }
    let color = |index: u8| {
        if layout.palette.is_empty() {
            return [index; 3];
        }
        let at = usize::from(index) * 3;
        let color = layout.palette.get(at..at + 3);
        color
            .and_then(|color| color.first_chunk().copied())
            .unwrap_or_default()
    };
    let screen = layout.width as usize * 3;
    let ground = color(layout.ground);
    if (width, height) != (layout.width as usize, layout.height as usize) {
        out.chunks_exact_mut(3)
            .for_each(|pixel| pixel.copy_from_slice(&ground));
    }
    let rows = out.chunks_exact_mut(screen).skip(layout.top as usize);
    for (row, indices) in rows.zip(indices.chunks_exact(width.max(1))) {
        let pixels = row.chunks_exact_mut(3).skip(layout.left as usize);
        for (pixel, &index) in pixels.zip(indices) {
            pixel.copy_from_slice(&color(index));
        }
    }
    Ok(())
}

/// Walks blocks to the end of the first frame.
fn walk(bytes: &[u8]) -> Option<Layout<'_>> {
    let short = |at: usize| {
        Some(u32::from(u16::from_le_bytes(
            *bytes.get(at..)?.first_chunk()?,
        )))
    };
    let table = |flags: u8| {
        if flags & 0x80 == 0 {
            0
        } else {
            3 << ((flags & 7) + 1)
        }
    };
    if !bytes.starts_with(b"GIF87a") && !bytes.starts_with(b"GIF89a") {
        return None;
    }
    let (width, height) = (short(6)?, short(8)?);
    let mut at = SCREEN + table(*bytes.get(10)?);
    let screen = bytes.get(..at)?;
    let mut transparent = None;
    loop {
        match bytes.get(at)? {
            // An extension: a label, and blocks each with its length.
            0x21 => {
                let control = bytes.get(at + 1..).and_then(|rest| rest.first_chunk());
                if let Some(&[0xf9, length, flags, _, _, index]) = control
                    && length >= 4
                    && flags & 1 == 1
                {
                    transparent = Some(index);
                }
                at = past(bytes, at + 2)?;
            }
            0x2c => break,
            0x3b => return None,
            // Bytes between blocks, as Pillow takes them.
            _ => at += 1,
        }
    }
    let flags = *bytes.get(at + 9)?;
    let (left, top) = (short(at + 1)?, short(at + 3)?);
    let (right, bottom) = (left + short(at + 5)?, top + short(at + 7)?);
    let own = at + FRAME..at + FRAME + table(flags);
    // The length of a code comes before the blocks.
    let end = past(bytes, own.end + 1)?;
    let palette = if own.is_empty() {
        screen.get(SCREEN..)?
    } else {
        bytes.get(own)?
    };
    Some(Layout {
        // A frame that reaches past the screen widens it.
        width: width.max(right),
        height: height.max(bottom),
        palette,
        frame: bytes.get(at..end)?,
        left,
        top,
        ground: transparent.unwrap_or(0),
    })
}

/// The position behind a row of blocks, the last of which is empty.
fn past(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1 + length;
        if length == 0 {
            return Some(at);
        }
    }
}
