//! One head's part of a request: waits for its images' features, then for its head.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    landed::Landed,
    postprocess::{self, Outcome},
    request::Head,
    room::Room,
    sched::rank::Rank,
};
use crate::{
    backend::{FeatureRow, HeadRow},
    error::{Error, Kind, Result},
    media::Geometry,
    task::Options,
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
    /// Feature maps that it keeps, where it is for a row alone that is to stay where it lies.
    pub(super) keep: Option<Arc<[String]>>,
    options: Options,
    /// Room for its result.
    room: Option<Arc<Room>>,
    /// How many images it reads.
    frames: usize,
    /// How large its result may be; see [`Head::output_size`].
    output: u64,
    /// Whether it was let in to see how long it takes, though it is thought to come too late.
    trial: AtomicBool,
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
pub(super) enum Done {
    /// Features, of a job without a head.
    Features(Extracted),
    /// What a head found.
    Head(Computed),
}

/// The last image's features.
#[derive(Debug)]
pub(super) struct Extracted {
    pub(super) row: FeatureRow,
    /// How the image lies in the input.
    pub(super) geometry: Option<Geometry>,
}

/// What a head found, and how long it took.
#[derive(Debug)]
pub(super) struct Computed {
    pub(super) outcome: Outcome,
    /// How long a device took for the last image's batch.
    pub(super) device_time: Option<Duration>,
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

impl Done {
    /// How long a device took for the last image's batch.
    pub(super) fn device_time(&self) -> Option<Duration> {
        match self {
            Self::Features(features) => features.row.device_time(),
            Self::Head(computed) => computed.device_time,
        }
    }
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
    /// A job that waits for `rows` images, of which the last has so many `pixels`, with room for its result.
    pub(super) fn new(
        head: Option<Arc<Head>>,
        rank: Rank,
        rows: usize,
        (options, pixels, room): (Options, u64, Option<Arc<Room>>),
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
        let output = head.as_ref();
        let output = output.map_or(1, |head| head.output_size(pixels, &options));
        let job = Self {
            frames: rows,
            output,
            trial: AtomicBool::new(false),
            head,
            rank,
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            trace,
            keep: None,
            options,
            room,
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

    /// How many images it reads; one at least.
    pub(super) fn frames(&self) -> usize {
        self.frames.max(1)
    }

    /// How long most heads of this kind take, and their results.
    pub(super) fn most(&self) -> Duration {
        let head = self.head.as_ref();
        head.map_or(Duration::ZERO, |head| {
            head.most(&self.rank.flow.caller, self.output)
        })
    }

    /// What its head and its result take of a thread, in seconds.
    pub(super) fn load(&self) -> f64 {
        self.head
            .as_ref()
            .map_or(0.0, |head| head.takes(&self.rank.flow.caller, self.output))
    }

    /// What its result alone takes.
    pub(super) fn finishing(&self) -> Duration {
        let head = self.head.as_ref();
        head.map_or(Duration::ZERO, |head| {
            head.finishing(&self.rank.flow.caller, self.output)
        })
    }

    /// Lets it go on as long as its deadline has not passed, whatever it is thought to take.
    pub(super) fn try_nevertheless(&self) {
        self.trial.store(true, Ordering::Relaxed);
    }

    /// Whether the caller still waits and can be answered in time, `steps` being those before and after its head that are
    /// to come. One who cannot is told so.
    pub(super) fn wanted(&self, now: Instant, steps: Duration) -> bool {
        if let Some(deadline) = self.rank.deadline {
            let needed = match self.trial.load(Ordering::Relaxed) {
                true => Duration::ZERO,
                false => steps + self.most(),
            };
            let error = if deadline <= now {
                Some(Error::new(Kind::DeadlineExceeded, "the deadline passed"))
            } else if deadline < now + needed {
                let message = "the deadline cannot be met: the work takes longer than what is left";
                let error = Error::new(Kind::DeadlineExceeded, message);
                let left = deadline - now;
                Some(
                    error
                        .with("left_ms", left.as_millis())
                        .with("work_ms", needed.as_millis()),
                )
            } else {
                None
            };
            if let Some(error) = error {
                self.finish(Err(error));
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

    /// How the last image lies in the input, once it is there.
    pub(super) fn geometry(&self) -> Option<Geometry> {
        self.state.lock().geometry
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
            let keep = || job.wanted(Instant::now(), Duration::ZERO);
            postprocess::run(&head.manifest, row, &geometry, &job.options, &keep)
        });
        let outcome = std::panic::catch_unwind(work)
            .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "postprocessing panicked")));
        let outcome = outcome.and_then(|outcome| {
            let room = job.room.as_ref();
            room.map_or(Ok(()), |room| room.grow(outcome.grown()))?;
            Ok(outcome)
        });
        let took = begun.elapsed();
        // Here, and not by the caller, who may have given up: what takes too long must be known as well.
        head.finish.add(&job.rank.flow.caller, job.output, took);
        let done = outcome.map(|outcome| Computed {
            outcome,
            device_time,
            head_time,
            postprocess_time: took,
            computed,
            postprocess_begun: begun,
            batch,
        });
        Some((job, done.map(Done::Head)))
    }
}

/// What whoever waits is told when the engine stops.
pub(super) fn stopped() -> Error {
    Error::new(Kind::Unavailable, "the server is stopping")
}
