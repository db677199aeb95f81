//! The pixels of a mask within their bounding rectangle, and their outlines.

use super::Rle;

/// The part of a mask that has its pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crop {
    /// Left column in the mask.
    pub x: u32,
    /// Top row in the mask.
    pub y: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Row by row.
    pub pixels: Vec<bool>,
}

/// The way along an edge of a pixel, which lies to the right of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heading {
    East,
    South,
    West,
    North,
}

impl Heading {
    fn right(self) -> Self {
        match self {
            Self::East => Self::South,
            Self::South => Self::West,
            Self::West => Self::North,
            Self::North => Self::East,
        }
    }

    fn left(self) -> Self {
        self.right().right().right()
    }

    fn step(self, (x, y): (i64, i64)) -> (i64, i64) {
        match self {
            Self::East => (x + 1, y),
            Self::South => (x, y + 1),
            Self::West => (x - 1, y),
            Self::North => (x, y - 1),
        }
    }

    /// The pixels to the left and to the right of the way that goes on from a corner.
    fn ahead(self, (x, y): (i64, i64)) -> [(i64, i64); 2] {
        match self {
            Self::East => [(x, y - 1), (x, y)],
            Self::South => [(x, y), (x - 1, y)],
            Self::West => [(x - 1, y), (x - 1, y - 1)],
            Self::North => [(x - 1, y - 1), (x, y - 1)],
        }
    }
}

impl Rle {
    /// The mask's pixels within their bounding rectangle; `None` for a mask of no pixels.
    #[must_use]
    pub fn crop(&self) -> Option<Crop> {
        let height = u64::from(self.height());
        let (mut left, mut right, mut top, mut bottom) = (u64::MAX, 0, u64::MAX, 0);
        for (start, end) in self.inside() {
            let last = end - 1;
            (left, right) = (left.min(start / height), right.max(last / height + 1));
            // A run that goes on in the next column has the bottom of one and the top of the other.
            (top, bottom) = match start / height == last / height {
                true => (top.min(start % height), bottom.max(last % height + 1)),
                false => (0, height),
            };
        }
        if left >= right {
            return None;
        }
        let width = right - left;
        let mut pixels = vec![false; (width * (bottom - top)) as usize];
        for (start, end) in self.inside() {
            for at in start..end {
                let (x, y) = (at / height - left, at % height - top);
                pixels[(y * width + x) as usize] = true;
            }
        }
        // Within the mask's sides, which are 32 bits.
        Some(Crop {
            x: left as u32,
            y: top as u32,
            width: width as u32,
            height: (bottom - top) as u32,
            pixels,
        })
    }

    /// Where runs of pixels inside begin and end, counted down the columns.
    fn inside(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut at = 0;
        let runs = self
            .counts()
            .iter()
            .enumerate()
            .map(move |(index, &count)| {
                let start = at;
                at += u64::from(count);
                (index % 2 == 1, start, at)
            });
        runs.filter(|(inside, start, end)| *inside && start < end)
            .map(|(_, start, end)| (start, end))
    }
}

impl Crop {
    /// Closed lines along the pixels' edges, as corners in the mask's pixels: the outer ones clockwise, those of holes the
    /// other way. Pixels that touch at a corner alone are apart.
    #[must_use]
    pub fn outlines(&self) -> Vec<Vec<[u32; 2]>> {
        let (width, height) = (i64::from(self.width), i64::from(self.height));
        let set = |(x, y): (i64, i64)| {
            let within = (0..width).contains(&x) && (0..height).contains(&y);
            within && self.pixels[(y * width + x) as usize]
        };
        let mut seen = vec![false; self.pixels.len()];
        let mut lines = Vec::new();
        for (index, &pixel) in self.pixels.iter().enumerate() {
            let start = (index as i64 % width, index as i64 / width);
            // Each line has an upper edge, which is followed from west to east.
            if !pixel || seen[index] || set((start.0, start.1 - 1)) {
                continue;
            }
            let (mut line, mut at, mut heading) = (Vec::new(), start, Heading::East);
            loop {
                if heading == Heading::East {
                    let edge = (at.1 * width + at.0) as usize;
                    if std::mem::replace(&mut seen[edge], true) {
                        break;
                    }
                }
                at = heading.step(at);
                let [left, right] = heading.ahead(at).map(set);
                let turned = match (left, right) {
                    (_, false) => heading.right(),
                    (false, true) => heading,
                    (true, true) => heading.left(),
                };
                if turned != heading {
                    line.push([self.x + at.0 as u32, self.y + at.1 as u32]);
                    heading = turned;
                }
            }
            lines.push(line);
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether the pixel's center is inside an odd number of lines, by a ray to the left.
    fn inside(lines: &[Vec<[u32; 2]>], x: u32, y: u32) -> bool {
        let crossings = lines.iter().flat_map(|line| {
            let next = line.iter().cycle().skip(1);
            line.iter().zip(next).filter(move |(a, b)| {
                let upright = a[0] == b[0] && a[0] <= x;
                upright && (a[1].min(b[1])..a[1].max(b[1])).contains(&y)
            })
        });
        crossings.count() % 2 == 1
    }

    proptest! {
        #[test]
        fn crops_and_outlines_have_the_masks_pixels(
            (height, width, pixels) in (1_u32..12, 1_u32..12).prop_flat_map(|(height, width)| {
                let pixels = proptest::collection::vec(any::<bool>(), (height * width) as usize);
                (Just(height), Just(width), pixels)
            })
        ) {
            let rle = Rle::from_columns(height, width, pixels.iter().copied());
            let crop = rle.crop();
            prop_assert_eq!(crop.is_some(), pixels.contains(&true));
            let Some(crop) = crop else { return Ok(()); };
            let lines = crop.outlines();
            for x in 0..width {
                for y in 0..height {
                    let want = pixels[(x * height + y) as usize];
                    prop_assert_eq!(inside(&lines, x, y), want, "{}, {}", x, y);
                    let (left, top) = (x.wrapping_sub(crop.x), y.wrapping_sub(crop.y));
                    let within = left < crop.width && top < crop.height;
                    let got = within && crop.pixels[(top * crop.width + left) as usize];
                    prop_assert_eq!(got, want);
                }
            }
            // No smaller rectangle holds them.
            let row = |y: u32| (0..crop.width).any(|x| crop.pixels[(y * crop.width + x) as usize]);
            prop_assert!(row(0) && row(crop.height - 1));
        }
    }
}
