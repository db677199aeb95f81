//! What a file is, by its first bytes: one of the formats that are read, or the name of another.

use super::{error::MediaError, format::Format};

/// Bytes looked at where there is no signature: text of any kind.
const TEXT: usize = 1024;

/// The format of `bytes`.
///
/// # Errors
/// [`MediaError::Empty`]; [`MediaError::ForeignFormat`] for what is known and not read;
/// [`MediaError::UnknownFormat`] for the rest.
pub(super) fn format(bytes: &[u8]) -> Result<Format, MediaError> {
    match bytes {
        [] => return Err(MediaError::Empty),
        [0xff, 0xd8, 0xff, ..] => return Ok(Format::Jpeg),
        [0x89, b'P', b'N', b'G', ..] => return Ok(Format::Png),
        [b'B', b'M', ..] => return Ok(Format::Bmp),
        [b'G', b'I', b'F', b'8', ..] => return Ok(Format::Gif),
        _ => {}
    }
    if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        return Ok(Format::WebP);
    }
    match signature(bytes)
        .or_else(|| container(bytes))
        .or_else(|| text(bytes))
    {
        Some(what) => Err(MediaError::ForeignFormat { what }),
        None => Err(MediaError::UnknownFormat),
    }
}

/// First bytes that only one format has.
const SIGNATURES: &[(&[u8], &str)] = &[
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"II\xbc", "a JPEG XR picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"II+\0", "a BigTIFF picture"),
    (b"MM\0+", "a BigTIFF picture"),
    (b"\0\0\x01\0", "a Windows icon"),
    (b"\0\0\x02\0", "a Windows cursor"),
    (b"8BPS", "a Photoshop document"),
    (b"qoif", "a QOI picture"),
    (b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (b"DDS ", "a DirectDraw surface"),
    (b"#?RADIANCE", "a Radiance HDR picture"),
    (b"#?RGBE", "a Radiance HDR picture"),
    (b"\x8aMNG", "an MNG animation"),
    (b"\x8bJNG", "a JNG picture"),
    (b"FLIF", "a FLIF picture"),
    (b"BPG\xfb", "a BPG picture"),
    (b"icns", "an Apple icon"),
    (b"gimp xcf", "a GIMP picture"),
    (b"SIMPLE  =", "a FITS picture"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
    (b"%PDF-", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"\x93NUMPY", "a NumPy array file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"\0\0\x01\xba", "an MPEG video"),
    (b"\0\0\x01\xb3", "an MPEG video"),
    (b"FLV", "a Flash video"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer and not the file that it stands for (`git lfs pull` fetches that)",
    ),
    (b"data:", "a data URL; the bytes that it holds are wanted"),
];

fn signature(bytes: &[u8]) -> Option<&'static str> {
    let known = SIGNATURES
        .iter()
        .find(|(magic, _)| bytes.starts_with(magic));
    if let Some((_, what)) = known {
        return Some(what);
    }
    if bytes.get(128..132) == Some(b"DICM") {
        return Some("a DICOM file");
    }
    match bytes {
        [b'P', b'1'..=b'7', b' ' | b'\n' | b'\r' | b'\t', ..] => Some("a Netpbm picture"),
        _ => None,
    }
}

/// Containers that hold many formats: ISO base media files by their brands, RIFF by its kind.
fn container(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(b"RIFF") {
        return Some(match bytes.get(8..12) {
            Some(b"AVI ") => "an AVI video",
            Some(b"WAVE") => "a WAVE recording",
            _ => "a RIFF file without a WebP picture",
        });
    }
    if bytes.get(4..8) != Some(b"ftyp") {
        return None;
    }
    let length = usize::try_from(u32::from_be_bytes(*bytes.first_chunk()?)).ok()?;
    let brands = bytes.get(8..length.clamp(12, 256).min(bytes.len()))?;
    let mut brands = brands.chunks_exact(4);
    let has = |wanted: &[&[u8; 4]]| {
        brands
            .clone()
            .any(|brand| wanted.iter().any(|wanted| brand == *wanted))
    };
    if has(&[b"avif", b"avis"]) {
        return Some("an AVIF picture");
    }
    if has(&[
        b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1",
    ]) {
        return Some("a HEIC picture");
    }
    Some(match brands.next() {
        Some(b"crx ") => "a raw photograph (CR3)",
        Some(b"qt  ") => "a QuickTime video",
        _ => "an MP4 video",
    })
}

/// Text: markup by its first tag, base64 by what it would unpack to.
fn text(bytes: &[u8]) -> Option<&'static str> {
    let head = &bytes[..bytes.len().min(TEXT)];
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    // UTF-16 with a byte order mark, as some editors and shells write.
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        return Some("UTF-16 text");
    }
    let head = match str::from_utf8(head) {
        Ok(text) => text,
        // Cut inside a character.
        Err(error) if error.error_len().is_none() => {
            str::from_utf8(&head[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    if head.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return None;
    }
    let head = head.trim_start();
    let begins = |tag: &str| {
        head.get(..tag.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(tag))
    };
    if begins("<svg") || (head.starts_with('<') && head.contains("<svg")) {
        return Some("an SVG drawing");
    }
    if begins("<!doctype html") || begins("<html") || begins("<head") || begins("<body") {
        return Some("an HTML page");
    }
    if begins("<?xml") {
        return Some("an XML document");
    }
    if head.starts_with('{') || head.starts_with("[{") {
        return Some("JSON text");
    }
    if is_base64(head) {
        return Some("base64 text; the bytes that it encodes are wanted");
    }
    Some("text")
}

/// Whether `text` is a picture's bytes in base64: one of the formats' first bytes, and no other characters.
fn is_base64(text: &str) -> bool {
    // JPEG, PNG, RIFF, GIF and BMP; HEIC and AVIF begin with a box of less than 64 KiB, TIFF with its byte order.
    let starts = [
        "/9j/",
        "iVBORw0KGgo",
        "UklGR",
        "R0lGOD",
        "Qk",
        "AAAA",
        "SUkq",
        "TU0AK",
    ];
    let body = text.trim_end();
    let letter = |c: char| {
        c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '-' | '_' | '=' | '\r' | '\n')
    };
    body.len() >= 16
        && starts.iter().any(|start| body.starts_with(start))
        && body.chars().all(letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_named() {
        let cases: &[(&[u8], &str)] = &[
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
            (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "AVIF"),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
            (b"\0\0\0\x14ftypisom\0\0\0\0isom", "MP4"),
            (b"II*\0\x08\0\0\0", "TIFF"),
            (b"MM\0*\0\0\0\x08", "TIFF"),
            (b"\xff\x0a\x00\x10", "JPEG XL"),
            (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
            (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
            (b"\xff\x4f\xff\x51\0\x2f", "JPEG 2000"),
            (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
            (b"<svg xmlns=\"x\"/>", "SVG"),
            (
                b"\xef\xbb\xbf<?xml version=\"1.0\"?>\n<!-- - -->\n<svg>",
                "SVG",
            ),
            (b"<?xml version=\"1.0\"?><other/>", "XML"),
            (b"\n<!DOCTYPE HTML><html>", "HTML"),
            (b"{\"error\": \"not found\"}", "JSON"),
            (b"/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQ", "base64"),
            (b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAf\n", "base64"),
            (b"data:image/png;base64,iVBORw0KGgo", "data URL"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
                "Git LFS pointer",
            ),
            (b"pictures/cat.jpg", "text"),
            (b"P6\n4 4\n255\n", "Netpbm"),
            (b"RIFF\x10\0\0\0WAVEfmt ", "WAVE"),
            (b"\0\0\x01\0\x01\0", "icon"),
        ];
        for (bytes, wanted) in cases {
            match format(bytes) {
                Err(error @ MediaError::ForeignFormat { .. }) => {
                    let text = error.to_string();
                    assert!(text.contains(wanted), "{wanted}: {text}");
                    assert!(text.contains("jpeg, png, webp, bmp and gif"), "{text}");
                }
                other => panic!("{wanted}: {other:?}"),
            }
        }
    }

    #[test]
    fn bytes_that_are_nothing_have_no_name() {
        assert_eq!(format(b"\x01\x02\x03\x04"), Err(MediaError::UnknownFormat));
        assert_eq!(format(b""), Err(MediaError::Empty));
        // A word of the base64 alphabet is a word.
        assert!(!is_base64("Qkword"));
    }
}
