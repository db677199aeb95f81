//! JPEG through libjpeg, level for level what Pillow, OpenCV and torchvision decode.
//!
//! Decoders differ in how they enlarge subsampled chroma, by a level or two per pixel, and a network can tell. Nearly
//! all training data passed through libjpeg's, so this does too.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use image::{
    ExtendedColorType, ImageError, ImageResult,
    error::{EncodingError, ImageFormatHint},
};
use mozjpeg::{ColorSpace, Compress, Decompress, decompress::DecompressStarted};

use super::{
    error::MediaError,
    format::Format,
    image::Limits,
    markers::{APP1, EOI, Markers, NOT_SOF, SOF, SOF_LS, SOS},
    opened::Opened,
    orientation::Metadata,
    watch::{Keep, Watched, rows_of, unwanted},
};

/// Bytes of a scan that are decoded before it is asked whether the picture is still wanted.
const PIECE: usize = 64 << 10;

/// Bytes a pixel of a picture whose scans are put together: the coefficients of each component, and the result.
const OF_SCANS: u64 = 9;
const OF_SCANS_OF_INK: u64 = 11;
/// And of a picture of one scan.
const OF_ONE_SCAN: u64 = 3;

const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";

/// What stands before the first scan.
struct Head<'a> {
    width: u16,
    height: u16,
    components: u8,
    /// One scan holds all components and each once: further scans do not belong to the picture.
    single: bool,
    metadata: Metadata<'a>,
    /// Behind the first scan's header.
    markers: Markers<'a>,
}

/// Reads the header; of a picture of many scans all of its markers.
pub(super) fn open<'a>(
    bytes: &'a [u8],
    limits: &Limits,
    keep: Keep<'a>,
) -> Result<Opened<'a>, MediaError> {
    let head = head(bytes)?;
    let (width, height) = (u32::from(head.width), u32::from(head.height));
    limits.check_size(width, height)?;
    let (single, components) = (head.single, head.components);
    let (mut scans, mut held) = (1, OF_ONE_SCAN);
    // Of one scan rows are asked for, and it is asked between them. Several are read before there is a row.
    let (mut piece, mut starts) = (usize::MAX, Vec::new());
    if !single {
        let most = limits.most_scans(width, height);
        let (more, ends) = scans_of(head.markers.clone(), bytes.len(), most, &mut starts);
        scans += more;
        limits.check_scans(width, height, scans)?;
        if !ends {
            return Err(truncated());
        }
        piece = PIECE;
        held = if components == 4 {
            OF_SCANS_OF_INK
        } else {
            OF_SCANS
        };
    }
    let file = Watched::new(bytes, piece, keep).stopping_at(starts);
    let source = guarded(|| Decompress::new_reader(file))?;
    Ok(Opened {
        width,
        height,
        orientation: head.metadata.orientation(),
        scans,
        held,
        read: Box::new(move |out| {
            // Decoders fill what is missing with gray, which would go on as if it had been seen.
            if single && !head.markers.rest().1 {
                return Err(truncated());
            }
            guarded(|| read(source, components, out, keep))
        }),
    })
}

/// Scans from here on, where each begins of the first `most`, and whether the image ends.
fn scans_of(
    mut markers: Markers<'_>,
    length: usize,
    most: u32,
    starts: &mut Vec<usize>,
) -> (u32, bool) {
    let (mut scans, mut ends) = (0_u32, false);
    while let Some(segment) = markers.next() {
        if segment.kind == SOS {
            scans = scans.saturating_add(1);
            if scans <= most {
                starts.push(length - markers.left());
            }
        }
        ends |= segment.kind == EOI;
    }
    (scans, ends)
}

fn truncated() -> MediaError {
    Format::Jpeg.corrupt("the file is truncated")
}

/// Walks to the first scan.
fn head(bytes: &[u8]) -> Result<Head<'_>, MediaError> {
    let mut markers = Markers::new(bytes);
    let mut frame = None;
    let mut metadata = Metadata::default();
    while let Some(segment) = markers.next() {
        let data = segment.data;
        match segment.kind {
            APP1 if data.starts_with(b"Exif\0\0") => {
                metadata.exif = metadata.exif.or(Some(data));
            }
            APP1 if data.starts_with(XMP) => metadata.xmp = Some(&data[XMP.len()..]),
            kind if kind == SOF_LS || SOF.contains(&kind) && !NOT_SOF.contains(&kind) => {
                let &[precision, a, b, c, d, components] = data
                    .first_chunk()
                    .ok_or_else(|| Format::Jpeg.corrupt("its header is cut short"))?;
                supported(kind, precision, components)?;
                let size = (u16::from_be_bytes([c, d]), u16::from_be_bytes([a, b]));
                frame = frame.or(Some((kind, size, components)));
            }
            SOS => {
                let Some((kind, (width, height), components)) = frame else {
                    return Err(Format::Jpeg.corrupt("a scan comes before the header"));
                };
                // Sequential, by Huffman or arithmetic codes.
                let sequential = matches!(kind, 0xc0 | 0xc1 | 0xc9);
                return Ok(Head {
                    width,
                    height,
                    components,
                    single: sequential && data.first() == Some(&components),
                    metadata,
                    markers,
                });
            }
            EOI => return Err(Format::Jpeg.corrupt("it has no picture")),
            _ => {}
        }
    }
    Err(truncated())
}

/// What libjpeg does not read is unsupported, and not corrupt as it says.
fn supported(kind: u8, precision: u8, components: u8) -> Result<(), MediaError> {
    let unsupported = |detail: String| Err(Format::Jpeg.unsupported(detail));
    match kind {
        0xc3 | 0xcb => return unsupported("lossless JPEG".to_owned()),
        0xc5..=0xc7 | 0xcd..=0xcf => return unsupported("hierarchical JPEG".to_owned()),
        SOF_LS => return unsupported("JPEG-LS".to_owned()),
        _ => {}
    }
    if precision != 8 {
        return unsupported(format!("{precision}-bit samples; those of 8 bits are read"));
    }
    if !matches!(components, 1 | 3 | 4) {
        return unsupported(format!(
            "{components} colour components; 1, 3 and 4 are read"
        ));
    }
    Ok(())
}

/// RGB, row by row: of the pixels no second copy is held.
fn read(
    source: Decompress<Watched<'_>>,
    components: u8,
    out: &mut [u8],
    keep: Keep<'_>,
) -> std::io::Result<()> {
    let wanted = || if keep() { Ok(()) } else { Err(unwanted()) };
    if components != 4 {
        let mut started = source.rgb()?;
        let width = started.width();
        for rows in out.chunks_mut(rows_of(width) * width * 3) {
            wanted()?;
            started.read_scanlines_into(rows)?;
        }
        return started.finish();
    }
    let mut started: DecompressStarted<_> = source.to_colorspace(ColorSpace::JCS_CMYK)?;
    let width = started.width();
    let mut inks = vec![[0_u8; 4]; width];
    for (index, row) in out.chunks_exact_mut(width * 3).enumerate() {
        if index.is_multiple_of(rows_of(width)) {
            wanted()?;
        }
        started.read_scanlines_into(&mut inks)?;
        for (pixel, ink) in row.chunks_exact_mut(3).zip(&inks) {
            // Adobe's programs store what each ink leaves white, and so does everybody who writes such files, with
            // and without Adobe's marker. Pillow, OpenCV and ImageMagick take it so.
            pixel.copy_from_slice(&cmyk_to_rgb(ink.map(|level| !level)));
        }
    }
    started.finish()
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
        let hint = ImageFormatHint::Exact(image::ImageFormat::Jpeg);
        ImageError::Encoding(EncodingError::new(hint, text))
    })
}

/// libjpeg's fatal errors unwind; here they end, as what they are: a bad file.
fn guarded<T>(run: impl FnOnce() -> std::io::Result<T>) -> Result<T, MediaError> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Format::Jpeg.corrupt(error)),
        Err(payload) => Err(Format::Jpeg.corrupt(message(payload.as_ref()))),
    }
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("the decoder failed");
    text.strip_prefix("libjpeg fatal error: ").unwrap_or(text)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Vec<u8> {
        let rgb: Vec<u8> = (0..64_u32 * 64)
            .flat_map(|i| [(i % 64) as u8, (i / 64) as u8, 99])
            .collect();
        encode(&rgb, 64, 64, 90).unwrap()
    }

    fn pixels(bytes: &[u8]) -> Result<Vec<u8>, MediaError> {
        let opened = open(bytes, &Limits::default(), &|| true)?;
        let mut out = vec![0; opened.width as usize * opened.height as usize * 3];
        (opened.read)(&mut out)?;
        Ok(out)
    }

    #[test]
    fn a_truncated_file_is_an_error_and_not_a_gray_picture() {
        let bytes = picture();
        assert!(pixels(&bytes).is_ok());
        let behind = [bytes.as_slice(), &[0xff, 0xda, 0xff, 0xd9]].concat();
        assert_eq!(pixels(&behind), pixels(&bytes));
        for length in [3, 20, bytes.len() / 2, bytes.len() * 2 / 3, bytes.len() - 2] {
            let cut = pixels(&bytes[..length]);
            assert!(
                matches!(cut, Err(MediaError::Corrupt { .. })),
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
        let again = bytes[scan..end].repeat(100);
        // Bytes behind the picture are none of its scans.
        let mut trailer = bytes.clone();
        trailer.extend_from_slice(&again);
        assert_eq!(pixels(&trailer), pixels(&bytes));
        bytes.splice(end..end, again);
        let error = pixels(&bytes).unwrap_err().to_string();
        assert!(error.contains("scans"), "{error}");
    }

    #[test]
    fn what_is_not_read_is_unsupported_by_name() {
        let file = |kind: u8, precision: u8, components: u8| {
            let frame = [precision, 0, 8, 0, 8, components];
            [&[0xff, 0xd8, 0xff, kind, 0, 8][..], &frame].concat()
        };
        let cases = [
            (file(0xc3, 8, 3), "lossless"),
            (file(0xc7, 8, 3), "hierarchical"),
            (file(0xf7, 8, 3), "JPEG-LS"),
            (file(0xc1, 12, 3), "12-bit"),
            (file(0xc0, 8, 2), "2 colour components"),
        ];
        for (bytes, name) in cases {
            let error = pixels(&bytes).unwrap_err();
            assert!(
                matches!(error, MediaError::UnsupportedFormat { .. }),
                "{error:?}"
            );
            assert!(error.to_string().contains(name), "{error}");
        }
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
