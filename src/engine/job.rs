//! One head's part of a request: waits for its images' features, then for its head.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Head, Options, Outcome, flight::Landed, postprocess, schedule::Rank};
use crate::{
    backend::{FeatureRow, HeadRow},
    error::{Error, Kind, Result},
    media::Geometry,
    trace::Context,
};

/// One head of one request, or its wish for the features themselves. Finished exactly once.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) head: Option<Arc<Head>>,
    pub(super) rank: Rank,
    /// Counts up, so that a clip's frames can be kept together.
    pub(super) number: u64,
    /// The call's place in a trace.
    pub(super) trace: Context,
    options: Options,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rows: Vec<Option<FeatureRow>>,
    /// How the last image lies in the input.
    geometry: Option<Geometry>,
    missing: usize,
    reply: Option<oneshot::Sender<Result<Done>>>,
}

/// A finished job.
#[derive(Debug)]
pub(super) struct Done {
    /// The last image's features, if the job wants those.
    pub(super) features: Option<FeatureRow>,
    /// How long a device took for the last image's batch.
    pub(super) device_time: Option<Duration>,
    /// What the head found, if the job has one.
    pub(super) outcome: Option<Outcome>,
    /// How long the head's batch took.
    pub(super) head_time: Duration,
    /// How long its output took to become a result.
    pub(super) postprocess_time: Duration,
    /// When its graph was done.
    pub(super) computed: Instant,
    /// When its output began to become a result.
    pub(super) postprocess_begun: Instant,
    /// The head's batch in the traces.
    pub(super) batch: Context,
}

/// A head's output on its way to its caller.
#[derive(Debug)]
pub(super) struct Finish {
    pub(super) job: Arc<Job>,
    pub(super) row: HeadRow,
    pub(super) device_time: Option<Duration>,
    pub(super) head_time: Duration,
    pub(super) computed: Instant,
    pub(super) batch: Context,
}

impl Job {
    /// A job that waits for `rows` images.
    pub(super) fn new(
        head: Option<Arc<Head>>,
        rank: Rank,
        rows: usize,
        options: Options,
        trace: Context,
    ) -> (Self, oneshot::Receiver<Result<Done>>) {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let (reply, receiver) = oneshot::channel();
        let state = State {
            rows: vec![None; rows],
            geometry: None,
            missing: rows,
            reply: Some(reply),
        };
        let job = Self {
            head,
            rank,
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            trace,
            options,
            state: Mutex::new(state),
        };
        (job, receiver)
    }

    /// One image is there; whether it was the last one missing.
    pub(super) fn fill(&self, slot: usize, landed: &Landed) -> bool {
        let mut state = self.state.lock();
        let last = slot + 1 == state.rows.len();
        // A job whose head has run has let go of its rows.
        let Some(row) = state.rows.get_mut(slot) else {
            return false;
        };
        if row.replace(landed.row.clone()).is_none() {
            state.missing -= 1;
        }
        if last {
            state.geometry = Some(landed.geometry);
        }
        state.missing == 0
    }

    /// Whether the caller still waits and can be answered in time, `ahead` being what lies before its head. One who
    /// cannot is told so.
    pub(super) fn wanted(&self, now: Instant, ahead: Duration) -> bool {
        if let Some(deadline) = self.rank.deadline {
            let head = self.head.as_ref().map_or(Duration::ZERO, |h| h.cost.most());
            let message = if deadline <= now {
                Some("the deadline passed".to_owned())
            } else if deadline < now + ahead + head {
                let (left, needed) = (deadline - now, ahead + head);
                Some(format!(
                    "the deadline cannot be met: {left:.1?} are left and the work takes {needed:.1?}"
                ))
            } else {
                None
            };
            if let Some(message) = message {
                self.finish(Err(Error::new(Kind::DeadlineExceeded, message)));
                return false;
            }
        }
        let state = self.state.lock();
        state.reply.as_ref().is_some_and(|reply| !reply.is_closed())
    }

    /// Its images' features, once all are there.
    pub(super) fn rows(&self) -> Vec<FeatureRow> {
        self.state.lock().rows.iter().flatten().cloned().collect()
    }

    /// Lets go of its images' features: its head has run.
    pub(super) fn let_go(&self) {
        self.state.lock().rows.clear();
    }

    /// Answers the caller; only the first answer counts.
    pub(super) fn finish(&self, result: Result<Done>) {
        let reply = {
            let mut state = self.state.lock();
            state.rows.clear();
            state.reply.take()
        };
        if let Some(reply) = reply {
            // An error means that the caller is gone, which is its right.
            let _ = reply.send(result);
        }
    }
}

impl Finish {
    /// Turns the output into the caller's result; nothing if the caller is gone.
    pub(super) fn run(self) -> Option<(Arc<Job>, Result<Done>)> {
        let Self {
            job,
            row,
            device_time,
            head_time,
            computed,
            batch,
        } = self;
        let geometry = {
            let state = job.state.lock();
            if state.reply.as_ref().is_none_or(oneshot::Sender::is_closed) {
                return None;
            }
            state.geometry
        };
        let (Some(head), Some(geometry)) = (&job.head, geometry) else {
            let error = Error::new(Kind::Internal, "a head answered a job without one");
            return Some((job, Err(error)));
        };
        let begun = Instant::now();
        let work = std::panic::AssertUnwindSafe(|| {
            postprocess::run(&head.manifest, row, &geometry, &job.options)
        });
        let outcome = std::panic::catch_unwind(work)
            .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "postprocessing panicked")));
        let done = outcome.map(|outcome| Done {
            features: None,
            device_time,
            outcome: Some(outcome),
            head_time,
            postprocess_time: begun.elapsed(),
            computed,
            postprocess_begun: begun,
            batch,
        });
        Some((job, done))
    }
}
