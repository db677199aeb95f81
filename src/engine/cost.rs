//! What work costs on this machine: measured at warm-up, followed while serving.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{known::ByCaller, mean::Mean};
use crate::media::Work;

/// A batch size has to serve this much more images per second than the next smaller one to be worth its longer wait.
const WORTH: f64 = 1.02;

/// About what a batch costs beside its lane's work, whatever its size: waking others and being woken. On small graphs
/// this is what larger batches gain most from.
const BESIDE: f64 = 250e-6;

/// Where hardly anything waits, a batch size that serves this part of what the best one does is good enough, and its
/// images wait less for each other. The more waits, the nearer to the best it has to be.
const NEAR: f64 = 0.9;
/// Much is this many of the best batches.
const CROWD: usize = 2;

/// About what it costs to wake a thread and to change to it, on both sides.
pub(super) const WAKING: Duration = Duration::from_micros(100);

/// Seconds per batch for each batch size at one input size, as measured at warm-up.
#[derive(Debug, Clone)]
pub struct Curve {
    /// `[height, width]` in pixels.
    pub size: [u32; 2],
    /// Batch size and seconds per batch, smallest first.
    pub points: Vec<(usize, f64)>,
}

impl Curve {
    /// Images per second at each batch size.
    pub fn rates(&self) -> impl Iterator<Item = (usize, f64)> {
        self.points
            .iter()
            .map(|&(rows, seconds)| (rows, rows as f64 / seconds.max(1e-9)))
    }

    /// The batch sizes worth using: each serves more than any smaller one, the first always.
    #[must_use]
    pub fn worthwhile(&self) -> Vec<usize> {
        let mut best = 0.0;
        let mut kept = Vec::new();
        for &(rows, seconds) in &self.points {
            let rate = rows as f64 / (seconds + BESIDE);
            if kept.is_empty() || rate > best * WORTH {
                kept.push(rows);
                best = rate;
            }
        }
        kept
    }
}

/// A number that follows what is measured.
#[derive(Debug)]
struct Follower(AtomicU64);

/// How far one batch moves what is known of its size.
const LEARN: f64 = 0.03;
/// How far each batch moves the number of images that have been waiting of late: a stall is over before it has counted.
const NOTICE: f64 = 0.02;
/// How far each batch moves the pace of the other sizes back to that of all: one that seemed bad is tried again.
const FORGET: f64 = 2e-4;
/// One batch that was held up counts as this many times slower than others of late at most.
const STALL: f64 = 1.5;

impl Follower {
    fn new(start: f64) -> Self {
        Self(AtomicU64::new(start.to_bits()))
    }

    fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// Moves it the part `by` of the way to `to`. What two lanes say at the same moment may count as one.
    fn follow(&self, to: f64, by: f64) {
        let now = self.get();
        let next = now + by * (to - now);
        self.0.store(next.to_bits(), Ordering::Relaxed);
    }
}

/// A batch size and its costs.
#[derive(Debug)]
struct Bucket {
    rows: usize,
    /// Seconds at warm-up.
    warm: f64,
    /// What was measured while serving.
    mean: Mean,
    /// How long it takes while serving, as a part of what it took at warm-up.
    pace: Follower,
}

/// The buckets of one input size.
#[derive(Debug)]
struct Buckets {
    /// Smallest first.
    sizes: Vec<Bucket>,
    /// That of all of them.
    pace: Follower,
    /// How many images have been waiting of late.
    crowd: Follower,
}

/// How a batch is formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// Images to take.
    pub(super) rows: usize,
    /// Batch size to run; what is beyond `rows` is padding.
    pub(super) bucket: usize,
}

impl Plan {
    fn alone(waiting: usize) -> Self {
        Self {
            rows: waiting.min(1),
            bucket: 1,
        }
    }
}

/// What a lane's work costs.
#[derive(Debug)]
pub(super) struct Costs {
    buckets: HashMap<[u32; 2], Buckets>,
    /// Decoding and resizing an image, by what kind of file it is.
    decode: [ByCaller; Work::KINDS],
    /// From a head's result to its caller, beside the work.
    pub(super) delivery: Mean,
    /// A lane's time per image, everything in it.
    pub(super) row: Mean,
    /// The same without the backbone, seconds.
    other: Follower,
}

impl Costs {
    /// Batches of the sizes in `buckets`, or of those that each curve shows to be worthwhile.
    pub(super) fn new(curves: &[Curve], buckets: Option<&[usize]>) -> Self {
        let of = |curve: &Curve| {
            let chosen = match buckets {
                Some(buckets) => buckets.to_vec(),
                None => curve.worthwhile(),
            };
            let points = curve
                .points
                .iter()
                .filter(|(rows, _)| chosen.contains(rows));
            let sizes = points
                .map(|&(rows, warm)| Bucket {
                    rows,
                    warm,
                    mean: Mean::default(),
                    pace: Follower::new(1.0),
                })
                .collect();
            let pace = Follower::new(1.0);
            let crowd = Follower::new(0.0);
            let buckets = Buckets { sizes, pace, crowd };
            (curve.size, buckets)
        };
        let row = Mean::default();
        if let Some((rows, seconds)) = curves.iter().filter_map(|c| c.points.first()).next_back() {
            row.add(Duration::from_secs_f64(seconds / *rows as f64));
        }
        Self {
            buckets: curves.iter().map(of).collect(),
            decode: std::array::from_fn(|_| ByCaller::default()),
            delivery: Mean::default(),
            row,
            other: Follower::new(0.0),
        }
    }

    /// What is known of decoding images of this kind.
    pub(super) fn decoding(&self, work: Work) -> &ByCaller {
        &self.decode[work.kind.min(Work::KINDS - 1)]
    }

    /// About how long it takes to decode an image of this caller.
    pub(super) fn decodes(&self, caller: &str, work: Work) -> Duration {
        let known = self.decoding(work).known(caller, work.size);
        known.unwrap_or_else(|| work.about())
    }

    /// The buckets of an input size, smallest first.
    fn of(&self, size: [u32; 2]) -> &[Bucket] {
        self.buckets.get(&size).map_or(&[], |b| &b.sizes)
    }

    /// Images per second in batches of one size with at most `rows` images in each, as they have run of late.
    fn rate(&self, bucket: &Bucket, rows: usize) -> f64 {
        let rows = rows.min(bucket.rows) as f64;
        let seconds = bucket.warm * bucket.pace.get() + rows * self.other.get();
        rows / (seconds + BESIDE)
    }

    /// The batch to form of `waiting` images: what serves the most images per second, or the smallest that serves nearly
    /// as many, the nearer the more images, `crowd`, have been waiting. Fewer images than a bucket holds are padded where
    /// that is faster than two smaller batches.
    ///
    /// What a batch costs was measured at warm-up and is corrected by what such batches have taken of late: which sizes
    /// are best depends on what else fills the caches, decoded images above all.
    pub(super) fn plan(&self, size: [u32; 2], waiting: usize, crowd: usize) -> Plan {
        let buckets = self.of(size).iter();
        let rates = buckets.map(|bucket| (bucket, self.rate(bucket, waiting)));
        let fastest = rates.clone().map(|(_, rate)| rate).fold(0.0, f64::max);
        let enough = fastest * self.near(size, crowd);
        let found = rates.clone().find(|(_, rate)| *rate >= enough);
        found.map_or(Plan::alone(waiting), |(bucket, _)| Plan {
            rows: bucket.rows.min(waiting),
            bucket: bucket.rows,
        })
    }

    /// Notes that `crowd` images wait when a batch is formed.
    pub(super) fn waited(&self, size: [u32; 2], crowd: usize) {
        if let Some(buckets) = self.buckets.get(&size) {
            // So that a flood is forgotten as fast as it is noticed.
            let most = 2 * CROWD * self.largest(size);
            buckets.crowd.follow(crowd.min(most) as f64, NOTICE);
        }
    }

    /// How many images have been waiting of late.
    ///
    /// After a stall many wait for a moment. Smaller batches serve them about as soon, and do not hold up whoever comes
    /// after: what serves the most counts for more only where many keep waiting.
    pub(super) fn lasting(&self, size: [u32; 2]) -> usize {
        let crowd = self.buckets.get(&size).map(|b| b.crowd.get());
        crowd.unwrap_or_default() as usize
    }

    /// The part of the best rate that is good enough where `crowd` images have been waiting.
    fn near(&self, size: [u32; 2], crowd: usize) -> f64 {
        let much = CROWD * self.largest(size);
        NEAR + (1.0 - NEAR) * (crowd as f64 / much as f64).min(1.0)
    }

    /// Whether so little waits that how long each image waits counts for more than how many are served.
    fn is_calm(&self, size: [u32; 2], crowd: usize) -> bool {
        crowd < CROWD * self.largest(size)
    }

    /// How many of the `crowd` images that wait one of `lanes` lanes may take at once. Where little waits it leaves the
    /// others their share, busy or not: they are done with theirs before a batch of everything would be. Quick graphs
    /// are not worth sharing.
    pub(super) fn fair(&self, size: [u32; 2], crowd: usize, lanes: usize) -> usize {
        match self.is_calm(size, crowd) && !self.is_quick(size) {
            true => crowd.div_ceil(lanes.max(1)),
            false => crowd,
        }
    }

    /// The batch sizes in use.
    pub(super) fn buckets(&self, size: [u32; 2]) -> Vec<usize> {
        self.of(size).iter().map(|bucket| bucket.rows).collect()
    }

    /// The bucket that serves the most images per second.
    pub(super) fn largest(&self, size: [u32; 2]) -> usize {
        let buckets = self.of(size).iter();
        let rates = buckets.map(|b| (b.rows, self.rate(b, b.rows)));
        rates
            .fold(
                (1, 0.0),
                |best, this| if this.1 > best.1 { this } else { best },
            )
            .0
    }

    /// The largest batch size in use.
    pub(super) fn most_rows(&self, size: [u32; 2]) -> usize {
        self.of(size).last().map_or(1, |bucket| bucket.rows)
    }

    /// The batch to form of `waiting` images that have waited to become many: all of them, padded, or the largest batch
    /// size that they fill where that serves more.
    pub(super) fn filled(&self, size: [u32; 2], waiting: usize) -> Plan {
        let buckets = self.of(size).iter();
        let rate = |bucket: &&Bucket| self.rate(bucket, waiting);
        let holds = buckets.clone().find(|bucket| bucket.rows >= waiting);
        let fills = buckets.rev().find(|bucket| bucket.rows <= waiting);
        let best = match (holds, fills) {
            (Some(holds), Some(fills)) if rate(&fills) > rate(&holds) => Some(fills),
            (holds, fills) => holds.or(fills),
        };
        best.map_or(Plan::alone(waiting), |bucket| Plan {
            rows: bucket.rows.min(waiting),
            bucket: bucket.rows,
        })
    }

    /// Seconds that the backbone takes for each image where many wait.
    pub(super) fn share(&self, size: [u32; 2]) -> f64 {
        let largest = self.largest(size);
        let bucket = self.of(size).iter().find(|b| b.rows == largest);
        bucket.map_or(0.0, |b| {
            let warm = Duration::from_secs_f64(b.warm * b.pace.get());
            b.mean.get_from(warm).as_secs_f64() / b.rows.max(1) as f64
        })
    }

    /// The smallest bucket that holds `rows`; they were fewer than planned.
    pub(super) fn fit(&self, size: [u32; 2], rows: usize) -> usize {
        let found = self.of(size).iter().find(|bucket| bucket.rows >= rows);
        found.map_or(rows, |bucket| bucket.rows)
    }

    /// How long most batches take, as measured while serving, or else at warm-up.
    pub(super) fn batch(&self, size: [u32; 2], rows: usize) -> Duration {
        let found = self.of(size).iter().find(|bucket| bucket.rows >= rows);
        found.map_or(Duration::ZERO, |bucket| {
            let warm = Duration::from_secs_f64(bucket.warm);
            bucket.mean.most_from(warm)
        })
    }

    /// How long most batches take that an image joins when `waiting` images wait, itself one of them.
    pub(super) fn joined(&self, size: [u32; 2], waiting: usize, lanes: usize) -> Duration {
        let share = self.fair(size, waiting, lanes);
        let plan = self.plan(size, share, self.lasting(size));
        self.batch(size, plan.bucket)
    }

    /// Whether a lane is done with its largest batch sooner than another could be woken to share it.
    pub(super) fn is_quick(&self, size: [u32; 2]) -> bool {
        let largest = self.of(size).last();
        let quick = largest.is_some_and(|bucket| bucket.warm < WAKING.as_secs_f64());
        // Heads count as well, as far as they have been seen.
        quick && self.row.get() < WAKING
    }

    /// Notes what a lane did for a batch of `rows` images: `all` of it, and the `backbone`'s part.
    pub(super) fn served(&self, rows: usize, all: Duration, backbone: Duration) {
        let rows = rows.max(1) as u32;
        self.row.add(all / rows);
        let other = (all.saturating_sub(backbone) / rows).as_secs_f64();
        self.other.follow(other, LEARN);
    }

    /// Notes how long a batch took; `crowded` if every lane was busy when it began. What one lane does alone says little
    /// of what they do together.
    pub(super) fn ran(&self, size: [u32; 2], rows: usize, took: Duration, crowded: bool) {
        let Some(buckets) = self.buckets.get(&size) else {
            return;
        };
        let Some(ran) = buckets.sizes.iter().find(|bucket| bucket.rows == rows) else {
            return;
        };
        ran.mean.add(took);
        if !crowded {
            return;
        }
        let pace = took.as_secs_f64() / ran.warm.max(1e-9);
        let learn = |from: &Follower| from.follow(pace.min(STALL * from.get()), LEARN);
        learn(&buckets.pace);
        for bucket in &buckets.sizes {
            match bucket.rows == rows {
                true => learn(&bucket.pace),
                false => bucket.pace.follow(buckets.pace.get(), FORGET),
            }
        }
    }
}

#[cfg(test)]
mod tests;
