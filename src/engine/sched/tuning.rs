//! Numbers that were measured or chosen, each with what it stands on. What is not here is not tuned.

use std::time::Duration;

// Batches. Measured with `make bench`, sections `throughput`, `overload` and `overhead`.

/// A batch size has to serve this much more images per second than the next smaller one to be worth its longer wait: two
/// runs of one size at warm-up differ by as much.
pub(crate) const WORTH: f64 = 1.02;
/// About what a batch costs beside its lane's work, whatever its size, in seconds: waking others and being woken. On small
/// graphs this is what larger batches gain most from.
pub(crate) const BESIDE: f64 = 250e-6;
/// Where hardly anything waits, a batch size that serves this part of what the best one does is good enough, and its
/// images wait less for each other. The more waits, the nearer to the best it has to be.
pub(crate) const NEAR: f64 = 0.9;
/// Much is this many of the best batches.
pub(crate) const CROWD: usize = 2;
/// About what it costs to wake a thread and to change to it, on both sides.
pub(crate) const WAKING: Duration = Duration::from_micros(100);

// What is known of batches while serving.

/// How far one batch moves what is known of its size.
pub(crate) const LEARN: f64 = 0.03;
/// How far each batch moves the number of images that have been waiting of late: a stall is over before it has counted.
pub(crate) const NOTICE: f64 = 0.02;
/// How far each batch moves the pace of the other sizes back to that of all: one that seemed bad is tried again.
pub(crate) const FORGET: f64 = 2e-4;
/// One batch that was held up counts as this many times slower than others of late at most.
pub(crate) const STALL: f64 = 1.5;

// Running means of what work takes.

/// The least that one measurement moves a mean.
pub(crate) const STEP: f64 = 0.1;
/// What was measured counts half, beside something new, after this many seconds: a mean of calls that come seldom is the
/// last few of them, and one that was wrong for a stall is right after a call or two.
pub(crate) const FRESH: f64 = 0.05;
/// Without news a mean is halved in this many seconds.
pub(crate) const HALF_LIFE: f64 = 2.0;
/// Deviations above the mean that hardly anything exceeds: four in Jacobson, "Congestion avoidance and control", 1988,
/// where to be wrong costs more.
pub(crate) const CAUTION: f64 = 2.0;

// Trials of what an estimate refuses.

/// How soon after a refusal the first is let through.
pub(crate) const FIRST: Duration = Duration::from_millis(100);
/// How many times longer it is until the next each time.
pub(crate) const LONGER: u32 = 3;
/// Longest time between two, over what they are thought to take: those that are indeed too late cost no more of a thread
/// than this.
pub(crate) const SELDOM: u32 = 16;

// Long steps.

/// Seconds of a thread from which a step is long.
pub(crate) const LONG: f64 = 0.025;
/// How long a caller counts as being there after it has sent something.
pub(crate) const THERE: Duration = Duration::from_secs(1);

// The door.

/// What a flow of weight 1 may hold, over what is free: a lone flow gets eight ninths of all places.
pub(crate) const SHARE: f64 = 8.0;
/// What a caller may hold, over what is free, whatever the number of heads that it uses.
pub(crate) const SHARE_OF_ALL: f64 = 32.0;
