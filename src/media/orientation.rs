//! How a picture lies, out of what cameras and editors write beside it.
//!
//! As Pillow's `exif_transpose` reads it: the orientation in the EXIF block; where that has none, the one in XMP.
//! Neither is needed to decode, so what cannot be read is no orientation and never an error.

use image::metadata::Orientation;
use memchr::memmem;

/// Both blocks of one file, where it has them.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Metadata<'a> {
    /// A TIFF file, with or without `Exif\0\0` before it.
    pub(super) exif: Option<&'a [u8]>,
    /// An XMP packet.
    pub(super) xmp: Option<&'a [u8]>,
}

impl Metadata<'_> {
    /// What the file asks for; upright where it asks for nothing.
    pub(super) fn orientation(&self) -> Orientation {
        self.exif
            .and_then(from_exif)
            .or_else(|| self.xmp.and_then(from_xmp))
            .and_then(Orientation::from_exif)
            .unwrap_or(Orientation::NoTransforms)
    }
}

/// Whether columns become rows.
pub(super) fn turns(orientation: Orientation) -> bool {
    matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    )
}

/// Tag 0x0112 of the first directory of a TIFF file. Some writers put `Exif\0\0`, JPEG's name for the block, before it
/// in other containers too, and some write it twice.
fn from_exif(bytes: &[u8]) -> Option<u8> {
    const NAME: &[u8] = b"Exif\0\0";
    const TAG: u16 = 0x0112;
    const ENTRY: usize = 12;
    let bytes = bytes.strip_prefix(NAME).unwrap_or(bytes);
    let tiff = bytes.strip_prefix(NAME).unwrap_or(bytes);
    let big = match tiff.first_chunk()? {
        b"II" => false,
        b"MM" => true,
        _ => return None,
    };
    let short = |at: usize| {
        let bytes = *tiff.get(at..)?.first_chunk()?;
        Some(if big {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        })
    };
    let long = |at: usize| {
        let bytes = *tiff.get(at..)?.first_chunk()?;
        Some(if big {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        })
    };
    let directory = usize::try_from(long(4)?).ok()?;
    let count = usize::from(short(directory)?);
    let entries = (0..count).map(|index| directory + 2 + index * ENTRY);
    // Of two, the first counts, as in Pillow.
    let at = entries
        .take_while(|&at| at + ENTRY <= tiff.len())
        .find(|&at| short(at) == Some(TAG))?;
    let value = match (short(at + 2)?, long(at + 4)?) {
        (3, 1) => u32::from(short(at + 8)?),
        (4, 1) => long(at + 8)?,
        _ => return None,
    };
    u8::try_from(value).ok()
}

/// `tiff:Orientation`, as an attribute or as an element.
fn from_xmp(packet: &[u8]) -> Option<u8> {
    const NAME: &[u8] = b"tiff:Orientation";
    memmem::find_iter(packet, NAME).find_map(|at| {
        let value = &packet[at + NAME.len()..];
        let value = value
            .strip_prefix(b"=\"")
            .or_else(|| value.strip_prefix(b">"))?;
        match value {
            [digit @ b'0'..=b'9', ..] => Some(digit - b'0'),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TIFF file of one directory with one entry.
    fn tiff(big: bool, kind: u16, count: u32, value: u32) -> Vec<u8> {
        let short = |value: u16| {
            if big {
                value.to_be_bytes()
            } else {
                value.to_le_bytes()
            }
        };
        let long = |value: u32| {
            if big {
                value.to_be_bytes()
            } else {
                value.to_le_bytes()
            }
        };
        let field = match kind {
            3 => [short(value as u16), [0, 0]].concat().try_into().unwrap(),
            _ => long(value),
        };
        [
            if big { b"MM" } else { b"II" },
            &short(42)[..],
            &long(8),
            &short(1),
            &short(0x0112),
            &short(kind),
            &long(count),
            &field,
            &long(0),
        ]
        .concat()
    }

    fn orientation(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
        Metadata { exif, xmp }.orientation()
    }

    #[test]
    fn exif_is_read_in_both_orders_with_and_without_its_name() {
        for big in [false, true] {
            for kind in [3, 4] {
                for name in [&b""[..], b"Exif\0\0", b"Exif\0\0Exif\0\0"] {
                    let exif = [name, &tiff(big, kind, 1, 6)].concat();
                    assert_eq!(orientation(Some(&exif), None), Orientation::Rotate90);
                }
            }
        }
    }

    #[test]
    fn what_is_no_orientation_turns_nothing() {
        let upright = Orientation::NoTransforms;
        for exif in [
            tiff(true, 3, 2, 6),
            tiff(true, 3, 1, 9),
            tiff(false, 2, 1, 6),
        ] {
            assert_eq!(orientation(Some(&exif), None), upright);
        }
        let whole = tiff(false, 3, 1, 6);
        for length in 0..whole.len() - 8 {
            assert_eq!(
                orientation(Some(&whole[..length]), None),
                upright,
                "{length}"
            );
        }
    }

    #[test]
    fn xmp_counts_where_exif_says_nothing() {
        for xmp in [
            &b"<rdf:Description tiff:Orientation=\"6\"/>"[..],
            b"<tiff:Orientation>6</tiff:Orientation>",
            b"<!-- tiff:Orientation --><tiff:Orientation>6</tiff:Orientation>",
        ] {
            assert_eq!(orientation(None, Some(xmp)), Orientation::Rotate90);
            let exif = tiff(true, 3, 1, 8);
            assert_eq!(orientation(Some(&exif), Some(xmp)), Orientation::Rotate270);
        }
        assert_eq!(
            orientation(None, Some(b"tiff:Orientation=\"")),
            Orientation::NoTransforms
        );
    }
}
