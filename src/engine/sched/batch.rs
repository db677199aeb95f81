//! How large a batch is.

use smallvec::SmallVec;

use super::tuning::{BESIDE, CROWD, NEAR};

/// A batch size, and how long it takes as it has run of late.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bucket {
    /// Images.
    pub(crate) rows: usize,
    /// Seconds a batch.
    pub(crate) seconds: f64,
}

/// How a batch is formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Images to take.
    pub(crate) rows: usize,
    /// Batch size to run; what is beyond `rows` is padding.
    pub(crate) bucket: usize,
}

impl Plan {
    fn alone(waiting: usize) -> Self {
        Self {
            rows: waiting.min(1),
            bucket: 1,
        }
    }
}

/// What is known of the batches of one input size at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Batching {
    /// Smallest first; in place, since this is asked for each image.
    pub(crate) buckets: SmallVec<[Bucket; 8]>,
    /// Seconds that a lane spends on an image beside the backbone.
    pub(crate) other: f64,
    /// How many images have been waiting of late.
    ///
    /// After a stall many wait for a moment. Smaller batches serve them about as soon, and do not hold up whoever comes
    /// after: what serves the most counts for more only where many keep waiting.
    pub(crate) lasting: usize,
    /// Whether a lane is done with its largest batch sooner than another could be woken to share it.
    pub(crate) quick: bool,
}

impl Batching {
    /// Images per second in batches of one size with at most `rows` images in each.
    fn rate(&self, bucket: &Bucket, rows: usize) -> f64 {
        let rows = rows.min(bucket.rows) as f64;
        rows / (bucket.seconds + rows * self.other + BESIDE)
    }

    /// The batch to form of `waiting` images: what serves the most images per second, or the smallest that serves nearly
    /// as many, the nearer the more images have been waiting of late. Fewer images than a bucket holds are padded where
    /// that is faster than two smaller batches.
    pub(crate) fn plan(&self, waiting: usize) -> Plan {
        let buckets = self.buckets.iter();
        let rates = buckets.map(|bucket| (bucket, self.rate(bucket, waiting)));
        let fastest = rates.clone().map(|(_, rate)| rate).fold(0.0, f64::max);
        let enough = fastest * self.near();
        let found = rates.clone().find(|(_, rate)| *rate >= enough);
        found.map_or(Plan::alone(waiting), |(bucket, _)| Plan {
            rows: bucket.rows.min(waiting),
            bucket: bucket.rows,
        })
    }

    /// The part of the best rate that is good enough.
    fn near(&self) -> f64 {
        let much = CROWD * self.fastest();
        NEAR + (1.0 - NEAR) * (self.lasting as f64 / much as f64).min(1.0)
    }

    /// How many of the `crowd` images that wait one of `lanes` lanes may take at once. Where little waits it leaves the
    /// others their share, busy or not: they are done with theirs before a batch of everything would be. Quick graphs
    /// are not worth sharing.
    pub(crate) fn fair(&self, crowd: usize, lanes: usize) -> usize {
        // So little waits that how long each image waits counts for more than how many are served.
        let calm = crowd < CROWD * self.fastest();
        match calm && !self.quick {
            true => crowd.div_ceil(lanes.max(1)),
            false => crowd,
        }
    }

    /// The bucket that serves the most images per second.
    pub(crate) fn fastest(&self) -> usize {
        let rates = self.buckets.iter().map(|b| (b.rows, self.rate(b, b.rows)));
        let better = |best: (usize, f64), this: (usize, f64)| match this.1 > best.1 {
            true => this,
            false => best,
        };
        rates.fold((1, 0.0), better).0
    }

    /// The largest batch size in use.
    pub(crate) fn most_rows(&self) -> usize {
        self.buckets.last().map_or(1, |bucket| bucket.rows)
    }

    /// The batch to form of `waiting` images that have waited to become many: all of them, padded, or the largest batch
    /// size that they fill where that serves more.
    pub(crate) fn filled(&self, waiting: usize) -> Plan {
        let buckets = self.buckets.iter();
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
}
