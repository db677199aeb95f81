//! One object that is followed.

use std::collections::VecDeque;

use super::{
    boxes::Rect,
    motion::{Expected, Motion},
    options::Options,
};
use crate::task::{Detection, Rle};

/// Detections that make an object of what was seen (ByteTrack's second frame).
const CONFIRMED: u32 = 2;
/// Most places that are kept to tell a direction by.
const MOST_PLACES: usize = 16;
/// Most steps that a gap is walked in.
const MOST_STEPS: u32 = 16;
/// Most runs of a mask that is kept: about what the outline of an object in a picture of 2000 columns takes.
const MOST_RUNS: usize = 4096;
/// What must be gone, in sizes, before a direction says anything: half of it counts half.
const SURE_WAY: f64 = 0.2;

/// What is known of an object, as of when it was last seen.
#[derive(Debug, Clone)]
pub(super) struct Tracked {
    id: Option<u32>,
    label: u32,
    hits: u32,
    seen: u64,
    /// Frames since then.
    missed: u32,
    rect: Rect,
    motion: Motion,
    /// Times and centres of what was seen last, oldest first.
    places: VecDeque<(u64, [f64; 2])>,
    mask: Option<Rle>,
}

/// A part of a second, from microseconds.
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

impl Tracked {
    /// What `detection` may be the first of. Its box must have an area.
    pub(super) fn new(time: u64, rect: Rect, detection: &Detection) -> Self {
        Self {
            id: None,
            label: detection.label,
            hits: 1,
            seen: time,
            missed: 0,
            rect,
            motion: Motion::new(&rect),
            places: VecDeque::from([(time, rect.center())]),
            mask: kept(detection),
        }
    }

    /// Takes `detection` for the object.
    pub(super) fn observe(
        &mut self,
        time: u64,
        rect: Rect,
        detection: &Detection,
        options: &Options,
    ) {
        // After a gap, as if it had gone straight through what nobody saw (OC-SORT's observation-centred re-update).
        let steps = (self.missed + 1).min(MOST_STEPS);
        let step = seconds(time - self.seen) / f64::from(steps);
        for index in 1..=steps {
            let share = f64::from(index) / f64::from(steps);
            let between = [0, 1, 2, 3]
                .map(|side| self.rect.0[side] + share * (rect.0[side] - self.rect.0[side]));
            self.motion = self.motion.seen(step, &Rect(between));
        }
        let span = options.momentum_micros();
        // One at least as old as the span is kept, where there is one.
        while self.places.len() > 1
            && (self.places.len() == MOST_PLACES || time - self.places[1].0 >= span)
        {
            self.places.pop_front();
        }
        self.places.push_back((time, rect.center()));
        self.hits = self.hits.saturating_add(1);
        (self.seen, self.missed, self.rect) = (time, 0, rect);
        (self.label, self.mask) = (detection.label, kept(detection));
    }

    /// Tells it that a frame went by without it.
    pub(super) fn miss(&mut self) {
        self.missed = self.missed.saturating_add(1);
    }

    /// When it was last seen, in microseconds.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    pub(super) fn label(&self) -> u32 {
        self.label
    }

    /// Its box when it was last seen.
    pub(super) fn rect(&self) -> &Rect {
        &self.rect
    }

    pub(super) fn mask(&self) -> Option<&Rle> {
        self.mask.as_ref()
    }

    /// Whether it is an object, for all that is known.
    pub(super) fn confirmed(&self) -> bool {
        self.hits >= CONFIRMED
    }

    pub(super) fn id(&self) -> Option<u32> {
        self.id
    }

    pub(super) fn give(&mut self, id: u32) {
        self.id = Some(id);
    }

    /// Where it should be at `time`.
    pub(super) fn expected(&self, time: u64) -> Expected {
        self.motion.expected(seconds(time - self.seen))
    }

    /// How well going to `center` goes on with its way: 1/2 for straight on, -1/2 for back, 0 where nothing is known of
    /// either (OC-SORT's observation-centred momentum).
    pub(super) fn momentum(&self, center: [f64; 2]) -> f64 {
        let (Some(&(_, first)), [x, y]) = (self.places.front(), self.rect.center()) else {
            return 0.0;
        };
        let (way, next) = (
            [x - first[0], y - first[1]],
            [center[0] - first[0], center[1] - first[1]],
        );
        let sure = SURE_WAY * self.rect.size();
        let [a, b] = [way, next].map(|[x, y]| x.hypot(y));
        if a == 0.0 || b == 0.0 {
            return 0.0;
        }
        let cosine = (way[0] * next[0] + way[1] * next[1]) / (a * b);
        let straight = 0.5 - cosine.clamp(-1.0, 1.0).acos() / std::f64::consts::PI;
        straight * (a / sure).min(1.0)
    }

    /// Bytes that it holds.
    pub(super) fn bytes(&self) -> usize {
        let runs = self.mask.as_ref().map_or(0, |mask| mask.counts().len());
        size_of::<Self>()
            + self.places.capacity() * size_of::<(u64, [f64; 2])>()
            + runs * size_of::<u32>()
    }
}

/// The mask to hold against the next frame's.
fn kept(detection: &Detection) -> Option<Rle> {
    let small = |mask: &&Rle| mask.counts().len() <= MOST_RUNS;
    detection.mask.as_ref().filter(small).cloned()
}
