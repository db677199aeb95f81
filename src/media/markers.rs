//! The segments of a JPEG, found as libjpeg finds them.
//!
//! Segments are walked by their lengths, so what lies inside one or behind the end of the picture is never taken for
//! a marker; what lies between two is skipped, as some cameras put bytes there.

use memchr::memchr;

/// Start of frame; the low bits say how it is coded. Of 0xc0 to 0xcf, three mark tables and not frames.
pub(super) const SOF: std::ops::RangeInclusive<u8> = 0xc0..=0xcf;
/// Huffman tables, a reserved marker and arithmetic conditioning, within [`SOF`].
pub(super) const NOT_SOF: [u8; 3] = [0xc4, 0xc8, 0xcc];
/// Start of frame of JPEG-LS, a format of its own in the same segments.
pub(super) const SOF_LS: u8 = 0xf7;
/// Start of scan.
pub(super) const SOS: u8 = 0xda;
/// End of image.
pub(super) const EOI: u8 = 0xd9;
/// EXIF and XMP.
pub(super) const APP1: u8 = 0xe1;

/// A marker and what its segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    pub(super) kind: u8,
    pub(super) data: &'a [u8],
}

/// The segments from the start of the image to its end or to where the file is cut.
#[derive(Debug, Clone)]
pub(super) struct Markers<'a> {
    rest: &'a [u8],
}

impl<'a> Markers<'a> {
    /// Of a file that begins with the start of an image.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes.get(2..).unwrap_or_default(),
        }
    }

    /// Bytes behind the segment that came last.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Scans from here on, and whether the image ends.
    pub(super) fn rest(self) -> (u32, bool) {
        let (mut scans, mut ends) = (0_u32, false);
        for segment in self {
            scans = scans.saturating_add(u32::from(segment.kind == SOS));
            ends |= segment.kind == EOI;
        }
        (scans, ends)
    }
}

impl<'a> Iterator for Markers<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        loop {
            let at = memchr(0xff, self.rest)?;
            let (&kind, rest) = self.rest[at + 1..].split_first()?;
            match kind {
                // Fill bytes: the marker's kind is the first that is another.
                0xff => self.rest = &self.rest[at + 1..],
                // A coded byte of 0xff, restarts within a scan, and two without a length.
                0 | 1 | 0xd0..=0xd8 => self.rest = rest,
                EOI => {
                    self.rest = &[];
                    return Some(Segment { kind, data: &[] });
                }
                _ => {
                    let length = usize::from(u16::from_be_bytes(*rest.first_chunk()?));
                    // Within a scan coded bytes follow; its markers are found as those between segments.
                    let data = rest.get(2..length)?;
                    self.rest = &rest[length..];
                    return Some(Segment { kind, data });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(bytes: &[u8]) -> Vec<u8> {
        Markers::new(bytes).map(|segment| segment.kind).collect()
    }

    #[test]
    fn segments_are_walked_to_the_end_of_the_image() {
        let file = [
            &[0xff, 0xd8][..],
            // A comment that holds markers.
            &[0xff, 0xfe, 0, 6, 0xff, 0xda, 0xff, 0xd9],
            // Bytes between segments, one of them a coded 0xff, and fill bytes.
            &[0x00, 0x17, 0xff, 0x00],
            &[0xff, 0xff, 0xff, 0xc0, 0, 3, 8],
            // A scan with a coded 0xff and a restart.
            &[
                0xff, 0xda, 0, 3, 1, 0x12, 0xff, 0x00, 0x34, 0xff, 0xd1, 0x56,
            ],
            &[0xff, 0xd9],
            // A trailer.
            &[0xff, 0xda, 0, 2, 0xff, 0xda, 0, 2],
        ]
        .concat();
        assert_eq!(kinds(&file), [0xfe, 0xc0, SOS, EOI]);
        assert_eq!(Markers::new(&file).rest(), (1, true));
        assert_eq!(Markers::new(&file[..30]).rest(), (1, false));
        assert_eq!(kinds(&file[..10]), [0xfe]);
        assert!(kinds(&[0xff, 0xd8, 0xff, 0xe1, 0, 1]).is_empty());
    }
}
