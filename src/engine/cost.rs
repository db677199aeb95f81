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
mod tests {
    use super::*;

    fn costs(points: &[(usize, f64)]) -> Costs {
        let curve = Curve {
            size: [8, 8],
            points: points.to_vec(),
        };
        Costs::new(&[curve], None)
    }

    #[test]
    fn a_batch_size_that_serves_no_more_is_left_out() {
        let flat = Curve {
            size: [8, 8],
            points: vec![(1, 0.100), (2, 0.200), (4, 0.360), (8, 0.730)],
        };
        assert_eq!(flat.worthwhile(), [1, 4]);
    }

    #[test]
    fn small_graphs_gain_from_batches_what_each_batch_costs_beside_them() {
        let curve = |unit: f64| Curve {
            size: [8, 8],
            points: [(1, 23.0), (2, 39.0), (4, 72.0), (8, 143.0)]
                .map(|(rows, units)| (rows, units * unit))
                .to_vec(),
        };
        assert_eq!(curve(1e-4).worthwhile(), [1, 2, 4, 8]);
        assert_eq!(curve(1e-2).worthwhile(), [1, 2, 4]);
    }

    #[test]
    fn pads_where_padding_is_faster_and_splits_where_it_is_not() {
        // A device on which a batch of 4 costs hardly more than one of 1.
        let wide = costs(&[(1, 0.010), (2, 0.011), (4, 0.012)]);
        assert_eq!(wide.plan([8, 8], 3, 3), Plan { rows: 3, bucket: 4 });
        assert_eq!(wide.largest([8, 8]), 4);
        // One on which every image costs the same, but for a small start.
        let narrow = costs(&[(1, 0.011), (2, 0.020), (4, 0.038)]);
        assert_eq!(narrow.plan([8, 8], 3, 9), Plan { rows: 2, bucket: 2 });
        assert_eq!(narrow.plan([8, 8], 9, 9), Plan { rows: 4, bucket: 4 });
        assert_eq!(narrow.plan([8, 8], 1, 9), Plan { rows: 1, bucket: 1 });
    }

    #[test]
    fn few_images_do_not_wait_for_each_other_where_a_batch_gains_little() {
        // One core: a batch of 8 serves 6 % more than 8 batches of 1, and each of its images waits for all.
        let core = costs(&[(1, 0.0100), (8, 0.0755)]);
        assert_eq!(core.largest([8, 8]), 8);
        assert_eq!(core.plan([8, 8], 2, 3), Plan { rows: 1, bucket: 1 });
        assert_eq!(core.plan([8, 8], 8, 15), Plan { rows: 8, bucket: 8 });
        // The more wait, the more the better batch counts.
        let core = costs(&[(1, 0.0099), (2, 0.0194), (4, 0.0378), (8, 0.0740)]);
        let bucket = |crowd| core.plan([8, 8], 8, crowd).bucket;
        assert_eq!([bucket(1), bucket(6), bucket(11), bucket(16)], [1, 2, 4, 8]);
        // A device that gains much by batches gets them at once.
        let wide = costs(&[(1, 0.010), (8, 0.020)]);
        assert_eq!(wide.plan([8, 8], 8, 8), Plan { rows: 8, bucket: 8 });
    }

    #[test]
    fn lanes_share_what_waits_until_that_is_two_of_the_best_batches() {
        let busy = costs(&[(1, 0.0023), (8, 0.0137)]);
        assert_eq!(busy.largest([8, 8]), 8);
        let fair = |crowd| busy.fair([8, 8], crowd, 2);
        assert_eq!([fair(1), fair(3), fair(15), fair(16)], [1, 2, 8, 16]);
        assert_eq!(busy.fair([8, 8], 15, 1), 15, "a lane alone takes all");
        let toy = costs(&[(1, 7e-6), (8, 17e-6)]);
        assert_eq!(
            toy.fair([8, 8], 3, 2),
            3,
            "sharing costs more than the work"
        );
    }

    #[test]
    fn an_image_takes_as_long_as_the_batch_that_it_joins() {
        let wide = costs(&[(1, 0.010), (8, 0.020)]);
        let joined = |waiting| wide.joined([8, 8], waiting, 2).as_millis();
        assert_eq!([joined(1), joined(16), joined(300)], [10, 20, 20]);
        (0..50).for_each(|_| wide.ran([8, 8], 8, Duration::from_millis(30), true));
        assert!(joined(300) >= 29, "{} ms", joined(300));
    }

    #[test]
    fn a_batch_size_that_gains_less_while_serving_than_at_warm_up_is_left() {
        let costs = costs(&[(1, 0.0023), (2, 0.0040), (4, 0.0066), (8, 0.0125)]);
        let plan = |crowd| costs.plan([8, 8], 8, crowd).bucket;
        assert_eq!([plan(3), plan(16)], [4, 8]);
        let run = |rows: usize, each: f64, crowded| {
            let took = Duration::from_secs_f64(rows as f64 * each);
            costs.ran([8, 8], rows, took, crowded);
        };
        (0..200).for_each(|_| run(4, 0.0030, false));
        assert_eq!(plan(3), 4, "what ran beside idle lanes is no measure");
        // Every image costs the same.
        for _ in 0..100 {
            [1, 2, 4, 8]
                .iter()
                .for_each(|rows| run(*rows, 0.0019, true));
        }
        assert_eq!(plan(3), 2);
        // Much later the others have another chance, as far as all of them have become slower or faster.
        (0..40_000).for_each(|_| run(2, 0.0019, true));
        assert_eq!(plan(3), 4);
    }

    #[test]
    fn a_crowd_counts_where_it_lasts() {
        let core = costs(&[(1, 0.0099), (2, 0.0194), (4, 0.0378), (8, 0.0740)]);
        let plan = || core.plan([8, 8], 8, core.lasting([8, 8])).bucket;
        (0..10).for_each(|_| core.waited([8, 8], 30));
        assert_eq!(plan(), 2, "a stall");
        (0..100).for_each(|_| core.waited([8, 8], 30));
        assert_eq!(plan(), 8, "more than can be served");
        (0..200).for_each(|_| core.waited([8, 8], 0));
        assert_eq!(plan(), 1);
        (0..1000).for_each(|_| core.waited([8, 8], 1_000_000));
        (0..200).for_each(|_| core.waited([8, 8], 0));
        assert_eq!(plan(), 1, "a flood is forgotten as soon");
    }

    #[test]
    fn one_batch_that_is_held_up_changes_little() {
        let costs = costs(&[(1, 0.0023), (2, 0.0040), (4, 0.0066), (8, 0.0125)]);
        costs.ran([8, 8], 8, Duration::from_secs(1), true);
        assert_eq!(costs.plan([8, 8], 8, 16).bucket, 8);
    }

    #[test]
    fn a_graph_is_quick_while_its_largest_batch_takes_less_than_waking_a_thread() {
        let toy = costs(&[(1, 7e-6), (8, 17e-6)]);
        assert!(toy.is_quick([8, 8]));
        assert!(!toy.is_quick([9, 9]), "a size that is not served");
        (0..100).for_each(|_| toy.row.add(Duration::from_millis(1)));
        assert!(!toy.is_quick([8, 8]), "a slow head");
        assert!(!costs(&[(1, 7e-3), (8, 5e-2)]).is_quick([8, 8]));
    }

    #[test]
    fn images_that_have_waited_for_each_other_go_together() {
        // Every image costs the same, whatever the batch.
        let curve = Curve {
            size: [8, 8],
            points: [1, 2, 4, 8].map(|n| (n, 0.010 * n as f64)).to_vec(),
        };
        let flat = Costs::new(&[curve], Some(&[1, 2, 4, 8]));
        assert_eq!(flat.most_rows([8, 8]), 8);
        let filled = |waiting| flat.filled([8, 8], waiting);
        assert_eq!(filled(8), Plan { rows: 8, bucket: 8 });
        assert_eq!(filled(20), Plan { rows: 8, bucket: 8 });
        // Four and one, where three rows of padding would cost as much as three images; on a device they cost little.
        assert_eq!(filled(5), Plan { rows: 4, bucket: 4 });
        let wide = costs(&[(1, 0.010), (4, 0.012), (8, 0.013)]);
        assert_eq!(wide.filled([8, 8], 5), Plan { rows: 5, bucket: 8 });
        assert_eq!(wide.filled([8, 8], 1), Plan { rows: 1, bucket: 1 });
        assert_eq!(wide.filled([9, 9], 3), Plan { rows: 1, bucket: 1 });
    }

    #[test]
    fn a_picture_of_another_kind_or_size_is_no_measure() {
        let costs = costs(&[(1, 0.010)]);
        let photo = Work {
            kind: 0,
            size: 640 * 480,
        };
        let poster = Work {
            kind: 0,
            size: 8000 * 6000,
        };
        let decode = |work: Work| costs.decoding(work).most("", work.size);
        let add = |work: Work, took| costs.decoding(work).add(&"".into(), work.size, took);
        add(photo, Duration::from_millis(4));
        (0..20).for_each(|_| add(poster, Duration::from_secs(1)));
        assert!(decode(photo) < Duration::from_millis(5));
        assert!(decode(poster) > Duration::from_millis(900));
        let other = Work { kind: 1, ..poster };
        assert_eq!(decode(other), Duration::ZERO);
    }
}
