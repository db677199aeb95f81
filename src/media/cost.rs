//! How much work an image is, as far as its header tells.

use std::time::Duration;

use super::{Format, Header};

/// What a decoder does beside its passes over the picture, in such passes: a picture of several scans is transformed,
/// upsampled and resized once, and each scan costs a part of that.
const PASSES: u64 = 8;

/// Nanoseconds of a 2023 server core for each unit of work of a kind, resizing included: what is not yet measured is taken
/// for this, and what an image costs its caller is measured in it, so that it is the same on every machine.
const NANOS: [u64; Work::KINDS] = [20, 16, 24, 60, 36, 18, 4];

/// What a pixel of the plainest picture costs: one scan of a JPEG.
const PIXEL: u64 = NANOS[0];

/// How much work it is to decode and resize an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Which decoder does it; below [`Work::KINDS`]. The work of one kind is comparable.
    pub kind: usize,
    /// How much there is of it: pixels, those of further scans at their part.
    pub size: u64,
}

impl Work {
    /// How many kinds there are.
    pub const KINDS: usize = 7;

    /// That of an image file.
    #[must_use]
    pub fn of(header: &Header, bytes: &[u8]) -> Self {
        let pixels = u64::from(header.width) * u64::from(header.height);
        let scans = u64::from(header.scans).max(1);
        let kind = match header.format {
            Format::Jpeg if scans > 1 => 1,
            Format::Jpeg => 0,
            Format::Png => 2,
            // A lossless picture without metadata; one with is among the others.
            Format::WebP if bytes.get(12..16) == Some(b"VP8L") => 4,
            Format::WebP => 3,
            Format::Bmp | Format::Gif => 5,
        };
        Self {
            kind,
            size: pixels * (PASSES + scans - 1) / PASSES,
        }
    }

    /// What it costs, in pixels of a plain JPEG.
    #[must_use]
    pub fn pixels(self) -> u64 {
        self.nanos().div_ceil(PIXEL)
    }

    /// About how long it takes, before anything was measured.
    #[must_use]
    pub fn about(self) -> Duration {
        Duration::from_nanos(self.nanos())
    }

    fn nanos(self) -> u64 {
        let each = NANOS.get(self.kind).copied().unwrap_or(PIXEL);
        self.size.saturating_mul(each)
    }

    /// That of pixels that are resized alone.
    #[must_use]
    pub fn raw(width: u32, height: u32) -> Self {
        Self {
            kind: Self::KINDS - 1,
            size: u64::from(width) * u64::from(height),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scans_are_work_and_kinds_are_apart() {
        let header = |format, scans| Header {
            format,
            width: 800,
            height: 600,
            scans,
            held: 0,
        };
        let of = |format, scans| Work::of(&header(format, scans), b"RIFF....WEBPVP8 ");
        let plain = of(Format::Jpeg, 1);
        assert_eq!(plain.size, 480_000);
        let many = of(Format::Jpeg, 99);
        assert!(many.size > 10 * plain.size && many.kind != plain.kind);
        let formats = [Format::Jpeg, Format::Png, Format::WebP, Format::Bmp];
        let mut kinds: Vec<_> = formats.map(|format| of(format, 1).kind).to_vec();
        kinds.push(Work::of(&header(Format::WebP, 1), b"RIFF....WEBPVP8L").kind);
        kinds.push(Work::raw(800, 600).kind);
        kinds.push(many.kind);
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), Work::KINDS);
        assert!(kinds.iter().all(|kind| *kind < Work::KINDS));
    }
}
