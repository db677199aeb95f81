//! What work costs on this machine: measured at warm-up, followed while serving.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{
    known::ByCaller,
    mean::Mean,
    sched::{
        batch::{self, Batching},
        tuning::{BESIDE, CROWD, FORGET, LEARN, NOTICE, STALL, WAKING, WORTH},
    },
};
use crate::media::Work;

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

    /// What is known of the batches of an input size now.
    ///
    /// What a batch costs was measured at warm-up and is corrected by what such batches have taken of late: which sizes
    /// are best depends on what else fills the caches, decoded images above all.
    pub(super) fn batching(&self, size: [u32; 2]) -> Batching {
        let Some(known) = self.buckets.get(&size) else {
            return Batching::default();
        };
        let bucket = |bucket: &Bucket| batch::Bucket {
            rows: bucket.rows,
            seconds: bucket.warm * bucket.pace.get(),
        };
        Batching {
            buckets: known.sizes.iter().map(bucket).collect(),
            other: self.other.get(),
            lasting: known.crowd.get() as usize,
            quick: self.is_quick(size),
        }
    }

    /// Notes that `crowd` images wait when a batch is formed, the batch size `fastest` serving the most of them.
    pub(super) fn waited(&self, size: [u32; 2], crowd: usize, fastest: usize) {
        if let Some(buckets) = self.buckets.get(&size) {
            // So that a flood is forgotten as fast as it is noticed.
            let most = 2 * CROWD * fastest;
            buckets.crowd.follow(crowd.min(most) as f64, NOTICE);
        }
    }

    /// The batch sizes in use.
    pub(super) fn buckets(&self, size: [u32; 2]) -> Vec<usize> {
        self.of(size).iter().map(|bucket| bucket.rows).collect()
    }

    /// Seconds that the backbone takes for each image where many wait.
    pub(super) fn share(&self, size: [u32; 2]) -> f64 {
        let fastest = self.batching(size).fastest();
        let bucket = self.of(size).iter().find(|b| b.rows == fastest);
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
        let batching = self.batching(size);
        let plan = batching.plan(batching.fair(waiting, lanes));
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
