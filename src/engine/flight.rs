//! An image's way through the backbone, and the jobs that wait for it.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Head, Source, Timing, admission::Permit};
use crate::{
    backend::{FeatureRow, HeadRow},
    error::{Error, Kind, Result},
    media::{Geometry, Preprocess, geometry},
};

/// What makes two images equal: a keyed 256-bit hash of their bytes and their input size. The backbone and its
/// preprocessing are fixed for the life of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

impl Key {
    pub(super) fn new(secret: &[u8; 32], source: &Source, size: [u32; 2]) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(secret);
        let (kind, width, height, bytes) = match source {
            Source::Encoded(bytes) => (0_u32, 0, 0, bytes),
            Source::Raw { width, height, rgb } => (1, *width, *height, rgb),
        };
        for number in [kind, width, height, size[0], size[1]] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(bytes);
        Self(*hasher.finalize().as_bytes())
    }
}

/// A computed image.
#[derive(Debug, Clone)]
pub(super) struct Landed {
    pub(super) row: FeatureRow,
    pub(super) geometry: Geometry,
    pub(super) timing: Timing,
    pub(super) batch_size: usize,
}

/// An image on its way. Every caller with an equal image waits for the same flight.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) key: Key,
    pub(super) source: Source,
    pub(super) preprocess: Preprocess,
    pub(super) boarded: Instant,
    state: Mutex<State>,
    /// What the decoder found: how the image lies in the input, and how long that took.
    decoded: OnceLock<(Geometry, Duration)>,
    // The place at the door is held until the image is off memory, even when its first caller is gone.
    _permit: Arc<Permit>,
}

#[derive(Debug)]
enum State {
    /// Jobs that wait, each with the slot that this image fills.
    Open(Vec<(Arc<Job>, usize)>),
    Done(Result<Landed>),
}

impl Flight {
    pub(super) fn new(
        key: Key,
        source: Source,
        preprocess: Preprocess,
        permit: Arc<Permit>,
    ) -> Self {
        Self {
            key,
            source,
            preprocess,
            boarded: Instant::now(),
            state: Mutex::new(State::Open(Vec::new())),
            decoded: OnceLock::new(),
            _permit: permit,
        }
    }

    /// The flight of an image that needs no computing.
    pub(super) fn landed(flight: Self, landed: Landed) -> Self {
        *flight.state.lock() = State::Done(Ok(landed));
        flight
    }

    /// Notes how the image was fitted to the input.
    pub(super) fn set_decoded(&self, geometry: Geometry, took: Duration) {
        // Decoded once; a second note would say the same.
        let _ = self.decoded.set((geometry, took));
    }

    /// How the image lies in the input, and how long decoding took.
    pub(super) fn decoded(&self) -> (Geometry, Duration) {
        *self.decoded.get_or_init(|| {
            let (width, height) = (self.preprocess.width, self.preprocess.height);
            (geometry(width, height, &self.preprocess), Duration::ZERO)
        })
    }

    /// Adds jobs, and returns those that this image completes at once. `None`: the flight was given up.
    pub(super) fn attach(&self, slots: Vec<(Arc<Job>, usize)>) -> Option<Vec<Arc<Job>>> {
        match &mut *self.state.lock() {
            State::Open(waiting) => {
                waiting.extend(slots);
                Some(Vec::new())
            }
            State::Done(Ok(landed)) => Some(fill(slots, &landed.row)),
            State::Done(Err(error)) if error.kind() == Kind::Cancelled => None,
            State::Done(Err(error)) => {
                slots
                    .iter()
                    .for_each(|(job, _)| job.finish(Err(error.clone())));
                Some(Vec::new())
            }
        }
    }

    /// The image is computed. Returns the jobs that are now complete.
    pub(super) fn land(&self, landed: Landed) -> Vec<Arc<Job>> {
        let row = landed.row.clone();
        match std::mem::replace(&mut *self.state.lock(), State::Done(Ok(landed))) {
            State::Open(slots) => fill(slots, &row),
            State::Done(_) => Vec::new(),
        }
    }

    /// The image cannot be computed: every job that waits for it fails.
    pub(super) fn fail(&self, error: &Error) {
        let before = std::mem::replace(&mut *self.state.lock(), State::Done(Err(error.clone())));
        if let State::Open(slots) = before {
            slots
                .iter()
                .for_each(|(job, _)| job.finish(Err(error.clone())));
        }
    }

    /// Drops jobs whose caller is gone or too late; whether anybody still waits. Once nobody does, nobody can join.
    pub(super) fn wanted(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        if let State::Open(slots) = &mut *state {
            slots.retain(|(job, _)| job.wanted(now));
            if slots.is_empty() {
                let gone = Error::new(Kind::Cancelled, "nobody waits for this image");
                *state = State::Done(Err(gone));
                return false;
            }
            return true;
        }
        false
    }

    /// How it ended, once it has.
    pub(super) fn outcome(&self) -> Option<Result<Landed>> {
        match &*self.state.lock() {
            State::Open(_) => None,
            State::Done(outcome) => Some(outcome.clone()),
        }
    }
}

fn fill(slots: Vec<(Arc<Job>, usize)>, row: &FeatureRow) -> Vec<Arc<Job>> {
    slots
        .into_iter()
        .filter_map(|(job, slot)| job.fill(slot, row).then_some(job))
        .collect()
}

/// Flights under way, by key.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<Key, Arc<Flight>>>);

/// How an image got on its way.
pub(super) enum Joined {
    /// It is the first of its kind: the caller queues it.
    New(Arc<Flight>),
    /// An equal image was under way; these jobs are complete already.
    Shared(Arc<Flight>, Vec<Arc<Job>>),
}

impl Flights {
    /// Joins the flight of an equal image, or makes one.
    pub(super) fn join(
        &self,
        key: Key,
        slots: Vec<(Arc<Job>, usize)>,
        make: impl FnOnce() -> Flight,
    ) -> Joined {
        let mut flights = self.0.lock();
        if let Some(flight) = flights.get(&key)
            && let Some(ready) = flight.attach(slots.clone())
        {
            return Joined::Shared(Arc::clone(flight), ready);
        }
        let flight = Arc::new(make());
        flight.attach(slots);
        flights.insert(key, Arc::clone(&flight));
        Joined::New(flight)
    }

    /// The flight is over: later equal images start anew.
    pub(super) fn remove(&self, flight: &Arc<Flight>) {
        let mut flights = self.0.lock();
        if flights
            .get(&flight.key)
            .is_some_and(|current| Arc::ptr_eq(current, flight))
        {
            flights.remove(&flight.key);
        }
    }
}

/// One head of one request, or its wish for the features themselves. Finished exactly once.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) head: Option<Arc<Head>>,
    deadline: Option<Instant>,
    state: Mutex<JobState>,
}

#[derive(Debug)]
struct JobState {
    rows: Vec<Option<FeatureRow>>,
    missing: usize,
    reply: Option<oneshot::Sender<Result<JobDone>>>,
}

/// A finished job.
#[derive(Debug)]
pub(super) struct JobDone {
    /// The features that it read, in order.
    pub(super) rows: Vec<FeatureRow>,
    /// What the head gave, if it has one.
    pub(super) output: Option<HeadRow>,
    /// How long the head's batch took.
    pub(super) head_time: Duration,
}

impl Job {
    /// A job that waits for `rows` images.
    pub(super) fn new(
        head: Option<Arc<Head>>,
        rows: usize,
        deadline: Option<Instant>,
    ) -> (Self, oneshot::Receiver<Result<JobDone>>) {
        let (reply, receiver) = oneshot::channel();
        let state = JobState {
            rows: vec![None; rows],
            missing: rows,
            reply: Some(reply),
        };
        (
            Self {
                head,
                deadline,
                state: Mutex::new(state),
            },
            receiver,
        )
    }

    /// One image is there; whether it was the last one missing.
    fn fill(&self, slot: usize, row: &FeatureRow) -> bool {
        let mut state = self.state.lock();
        if state.rows[slot].replace(row.clone()).is_none() {
            state.missing -= 1;
        }
        state.missing == 0
    }

    /// Whether the caller still waits; one whose deadline has passed is told so.
    pub(super) fn wanted(&self, now: Instant) -> bool {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.finish(Err(Error::new(
                Kind::DeadlineExceeded,
                "the deadline passed",
            )));
            return false;
        }
        self.state
            .lock()
            .reply
            .as_ref()
            .is_some_and(|reply| !reply.is_closed())
    }

    /// Its images' features, once all are there.
    pub(super) fn rows(&self) -> Vec<FeatureRow> {
        self.state.lock().rows.iter().flatten().cloned().collect()
    }

    /// Answers the caller; only the first answer counts.
    pub(super) fn finish(&self, result: Result<JobDone>) {
        if let Some(reply) = self.state.lock().reply.take() {
            // An error means that the caller is gone, which is its right.
            let _ = reply.send(result);
        }
    }
}
