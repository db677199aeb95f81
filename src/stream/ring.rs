//! Which frames make a clip, and what is kept of them.
//!
//! A clip ends with the newest frame and reads frames a stride apart before it. Frames are dropped and clocks jitter, so it
//! reads those nearest to where they should be. Where more than one and a half strides have passed between two frames (half
//! a stride is jitter) there is a hole: what was before it is no part of a clip any more.

use std::collections::VecDeque;

/// A clip's shape. Stride and hop are in the unit of the positions: frames, or nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Frames that are read.
    pub frames: usize,
    /// Distance between them; at least 1.
    pub stride: i64,
    /// Distance between the ends of two clips; at least 1.
    pub hop: i64,
}

impl Shape {
    /// From a clip's first frame to its last.
    #[must_use]
    pub fn span(&self) -> i64 {
        let strides = i64::try_from(self.frames.saturating_sub(1)).unwrap_or(i64::MAX);
        strides.saturating_mul(self.stride)
    }
}

#[derive(Debug)]
struct Row<T> {
    position: i64,
    id: u64,
    content: T,
}

/// The last frames of a stream, as far as clips read them.
#[derive(Debug)]
pub struct Ring<T> {
    shape: Shape,
    most: usize,
    rows: VecDeque<Row<T>>,
    last_clip: Option<i64>,
}

/// What came of a frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Entered<T> {
    /// Whether what was kept before is no part of a clip any more.
    pub emptied: bool,
    /// The clip that ends with it, if it is time for one: its frames' numbers and contents, oldest first.
    pub clip: Option<Vec<(u64, T)>>,
}

impl<T: Clone> Ring<T> {
    /// An empty ring that never keeps more than `most` frames.
    #[must_use]
    pub fn new(shape: Shape, most: usize) -> Self {
        Self {
            shape,
            most: most.max(shape.frames),
            rows: VecDeque::new(),
            last_clip: None,
        }
    }

    /// The shape of its clips.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// What is kept, oldest first.
    pub fn contents(&self) -> impl ExactSizeIterator<Item = &T> {
        self.rows.iter().map(|row| &row.content)
    }

    /// Lets go of everything; whether there was something.
    pub fn clear(&mut self) -> bool {
        self.last_clip = None;
        let any = !self.rows.is_empty();
        self.rows.clear();
        any
    }

    /// The frame `id` at `position`; one before that of the last one begins anew.
    pub fn enter(&mut self, position: i64, id: u64, content: T) -> Entered<T> {
        let gap = self.rows.back().is_some_and(|last| {
            let distance = position.saturating_sub(last.position);
            // Half a stride is jitter. Back in time there is no clip either.
            distance < 0 || distance.saturating_mul(2) > self.shape.stride.saturating_mul(3)
        });
        let emptied = gap && self.clear();
        self.rows.push_back(Row {
            position,
            id,
            content,
        });
        // The one before the first that a clip wants may be nearer than the one after it.
        let oldest = position
            .saturating_sub(self.shape.span())
            .saturating_sub(self.shape.stride);
        while self.rows.len() > self.most || self.rows.front().is_some_and(|r| r.position < oldest)
        {
            self.rows.pop_front();
        }
        let hop = self.shape.hop;
        let due = self
            .last_clip
            .is_none_or(|last| position.saturating_sub(last) >= hop);
        let clip = if due { self.clip(position) } else { None };
        if clip.is_some() {
            self.last_clip = Some(position);
        }
        Entered { emptied, clip }
    }

    /// The frames nearest to where those of a clip should be, each one once; none while it does not reach so far back.
    fn clip(&self, newest: i64) -> Option<Vec<(u64, T)>> {
        let mut picked = Vec::with_capacity(self.shape.frames);
        let mut end = self.rows.len();
        for index in 0..self.shape.frames {
            let back = self.shape.stride.saturating_mul(index as i64);
            let target = newest.saturating_sub(back);
            let rows = self.rows.iter().take(end).enumerate();
            let distance = |row: &Row<T>| row.position.saturating_sub(target).saturating_abs();
            // Of two equally near ones the newer.
            let (at, row) = rows.min_by_key(|(at, row)| (distance(row), usize::MAX - at))?;
            if distance(row) > self.shape.stride {
                return None;
            }
            picked.push((row.id, row.content.clone()));
            end = at;
        }
        // As far back as it should reach, but for jitter, where nothing older is there to choose from.
        let first = self.rows.get(end)?.position;
        let short = first.saturating_sub(newest.saturating_sub(self.shape.span()));
        if end == 0 && short.saturating_mul(2) >= self.shape.stride {
            return None;
        }
        picked.reverse();
        Some(picked)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shape(frames: usize, stride: i64, hop: i64) -> Shape {
        Shape {
            frames,
            stride,
            hop,
        }
    }

    /// The clips of frames at these positions, each numbered by its position, and where the ring was emptied.
    fn clips(shape: Shape, positions: &[i64]) -> (Vec<Vec<u64>>, Vec<i64>) {
        let mut ring = Ring::new(shape, 1024);
        let (mut clips, mut emptied) = (Vec::new(), Vec::new());
        for &position in positions {
            let entered = ring.enter(position, position as u64, ());
            if entered.emptied {
                emptied.push(position);
            }
            clips.extend(
                entered
                    .clip
                    .map(|c| c.into_iter().map(|(id, ())| id).collect()),
            );
        }
        (clips, emptied)
    }

    #[test]
    fn frames_a_stride_apart_every_hop() {
        let all: Vec<_> = (0..12).collect();
        let (clips_, emptied) = clips(shape(3, 2, 1), &all);
        let wanted: Vec<Vec<u64>> = (4..12).map(|n| vec![n - 4, n - 2, n]).collect();
        assert_eq!((clips_, emptied), (wanted, vec![]));
        assert_eq!(
            clips(shape(3, 2, 3), &all).0,
            [[0, 2, 4], [3, 5, 7], [6, 8, 10]]
        );
        assert_eq!(clips(shape(1, 1, 5), &all).0, [[0], [5], [10]]);
    }

    #[test]
    fn one_missing_frame_is_replaced_and_a_hole_empties_the_ring() {
        // 3 is missing: within a stride of 2 its neighbors stand in.
        let (clips_, emptied) = clips(shape(3, 2, 1), &[0, 1, 2, 4, 5, 6, 7]);
        let wanted: [Vec<u64>; 4] = [vec![0, 2, 4], vec![1, 4, 5], vec![2, 4, 6], vec![4, 5, 7]];
        assert_eq!(clips_, wanted);
        assert!(emptied.is_empty());
        let (clips_, emptied) = clips(shape(3, 2, 1), &[0, 1, 2, 6, 7, 8, 9, 10]);
        assert_eq!((clips_, emptied), (vec![vec![6, 8, 10]], vec![6]));
        // A stride of one frame has no neighbors.
        assert_eq!(
            clips(shape(2, 1, 1), &[0, 1, 3, 4]),
            (vec![vec![0, 1], vec![3, 4]], vec![3])
        );
    }

    #[test]
    fn times_that_jitter_make_clips_and_do_not_empty_the_ring() {
        // About 10 frames a second, in microseconds.
        let times = [0, 103_000, 195_000, 307_000, 399_000, 502_000];
        let (clips_, emptied) = clips(shape(4, 100_000, 100_000), &times);
        assert_eq!(clips_[0], [0, 103_000, 195_000, 307_000]);
        assert!(emptied.is_empty() && clips_.len() >= 2, "{clips_:?}");
    }

    #[test]
    fn a_ring_keeps_what_a_clip_reads_and_no_more() {
        let mut ring = Ring::new(shape(16, 2, 1), 1024);
        for position in 0..500 {
            ring.enter(position, position as u64, ());
            assert!(ring.contents().len() <= 33);
        }
        let mut bounded = Ring::new(shape(4, 1000, 1000), 20);
        for position in 0..5000 {
            bounded.enter(position, position as u64, ());
            assert!(bounded.contents().len() <= 20);
        }
        assert!(ring.clear() && !ring.clear());
        let extreme: Ring<()> = Ring::new(shape(usize::MAX, i64::MAX, i64::MAX), 4);
        assert_eq!(extreme.shape().span(), i64::MAX);
    }

    proptest! {
        /// Whatever is dropped: a clip has as many frames as wanted, each one once, in order, the newest last, none more than
        /// a stride from where it should be, and none from before a hole.
        #[test]
        fn clips_are_what_they_should_be(
            frames in 1..6_usize,
            stride in 1..5_i64,
            hop in 1..6_i64,
            gaps in prop::collection::vec(1..9_i64, 1..80),
        ) {
            let shape = shape(frames, stride, hop);
            let mut ring = Ring::new(shape, 1024);
            let (mut position, mut whole_since, mut last) = (0, 0, None);
            for gap in gaps {
                position += gap;
                if 2 * gap > 3 * stride {
                    (whole_since, last) = (position, None);
                }
                let Some(clip) = ring.enter(position, position as u64, position).clip else {
                    continue;
                };
                prop_assert!(last.is_none_or(|last| position - last >= hop));
                last = Some(position);
                prop_assert_eq!(clip.len(), frames);
                prop_assert_eq!(clip[frames - 1].1, position);
                for (back, (_, at)) in clip.iter().rev().enumerate() {
                    prop_assert!((at - (position - back as i64 * stride)).abs() <= stride);
                    prop_assert!(*at >= whole_since);
                }
                prop_assert!(clip.windows(2).all(|pair| pair[0].1 < pair[1].1));
            }
        }
    }
}
