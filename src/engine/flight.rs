//! An image's way through the backbone.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use highway::{HighwayHash, HighwayHasher};
use parking_lot::Mutex;

use super::{
    admission::Permit,
    job::Job,
    landed::{How, Landed},
    live::Begun,
    request::Source,
    sched::{load::Load, rank::Rank},
};
use crate::{
    error::{Error, Kind, Result},
    media::{Geometry, Preprocess, Work, geometry},
    trace::Context,
};

/// What makes two images equal: a keyed 256-bit hash of their bytes, their input size and who may share them. The
/// backbone and its preprocessing are fixed for the life of an engine.
///
/// The hash is HighwayHash (Alakuijala, Cox and Wassenberg, "Fast keyed hash/pseudo-random function using SIMD multiply
/// and permute", 2016): two images of one key cannot be made without knowing the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    hash: [u64; 4],
    scope: u64,
}

impl Key {
    /// `scope` keeps callers apart who must not share.
    pub(super) fn new(secret: &[u64; 4], scope: &str, source: &Source, size: [u32; 2]) -> Self {
        let mut hasher = HighwayHasher::new(highway::Key(*secret));
        let (kind, width, height, bytes) = match source {
            Source::Encoded(bytes) => (0_u32, 0, 0, bytes),
            Source::Raw { width, height, rgb } => (1, *width, *height, rgb),
        };
        let mut head = [0; 28];
        let scope_length = scope.len() as u64;
        let numbers = [kind, width, height, size[0], size[1]];
        for (out, number) in head.chunks_exact_mut(4).zip(numbers) {
            out.copy_from_slice(&number.to_le_bytes());
        }
        head[20..].copy_from_slice(&scope_length.to_le_bytes());
        for part in [&head[..], scope.as_bytes(), bytes] {
            hasher.append(part);
        }
        let secret = highway::Key(*secret);
        Self {
            hash: hasher.finalize256(),
            scope: HighwayHasher::new(secret).hash64(scope.as_bytes()),
        }
    }

    /// Who may share it.
    pub(super) fn scope(&self) -> u64 {
        self.scope
    }

    #[cfg(test)]
    pub(super) fn of(scope: u64, number: u64) -> Self {
        Self {
            hash: [number; 4],
            scope,
        }
    }
}

/// What an image is thought to take, as seen when it came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    /// How much decoding it is.
    pub(super) work: Work,
    /// Bytes that it holds.
    pub(super) held: u64,
    /// Seconds of the threads, the heads' of its first caller among them.
    pub(super) load: Load,
}

/// An image on its way. Every caller with an equal image waits for the same flight.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) key: Key,
    pub(super) source: Source,
    pub(super) preprocess: Preprocess,
    pub(super) cost: Cost,
    pub(super) boarded: Instant,
    /// Counts up, for the queue's own notes.
    pub(super) number: u64,
    rank: Mutex<Rank>,
    state: Mutex<State>,
    /// What the decoder found: how the image lies in the input, and how long that took.
    decoded: OnceLock<(Geometry, Duration)>,
    /// When that ended.
    decoded_at: OnceLock<Instant>,
    /// Told when it no longer waits.
    begun: Option<Begun>,
    // The place at the door is held until the image is off memory, even when its first caller is gone.
    _permit: Arc<Permit>,
}

#[derive(Debug)]
enum State {
    /// Jobs that wait, each with the slot that this image fills.
    Open(Vec<(Arc<Job>, usize)>),
    /// From the cache.
    Kept(Landed),
    /// Its jobs have its features, and let go of them when their heads have run: their memory, still in the
    /// processor's caches, is the next batch's.
    Done(Result<How>),
}

impl Flight {
    pub(super) fn new(
        key: Key,
        source: Source,
        preprocess: Preprocess,
        cost: Cost,
        rank: Rank,
        permit: Arc<Permit>,
    ) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            key,
            source,
            preprocess,
            cost,
            boarded: Instant::now(),
            rank: Mutex::new(rank),
            state: Mutex::new(State::Open(Vec::new())),
            decoded: OnceLock::new(),
            decoded_at: OnceLock::new(),
            begun: None,
            _permit: permit,
        }
    }

    /// The same, telling `begun` when work on it begins.
    pub(super) fn telling(mut self, begun: Option<Begun>) -> Self {
        self.begun = begun;
        self
    }

    /// The flight of an image that needs no computing.
    pub(super) fn landed(flight: Self, landed: Landed) -> Self {
        *flight.state.lock() = State::Kept(landed);
        flight
    }

    /// How urgent it is.
    pub(super) fn rank(&self) -> Rank {
        self.rank.lock().clone()
    }

    /// Takes over the urgency of a more urgent follower; whether it was one. The flow that pays stays.
    pub(super) fn promote(&self, rank: Rank) -> bool {
        let mut own = self.rank.lock();
        let more = rank.before(&own);
        if more {
            *own = own.clone().joined(&rank);
        }
        more
    }

    /// Whether it was computed, or given up.
    pub(super) fn is_done(&self) -> bool {
        !matches!(*self.state.lock(), State::Open(_))
    }

    /// Tells whoever wants to know that work on it begins.
    pub(super) fn tell_begun(&self) {
        if let Some(begun) = &self.begun {
            begun.tell();
        }
    }

    /// Its input's `[height, width]` in pixels.
    pub(super) fn size(&self) -> [u32; 2] {
        [self.preprocess.height, self.preprocess.width]
    }

    /// Jobs that wait for it, as `(head, job, slot)`: rows in this order lie next to each other for their heads.
    pub(super) fn order(&self) -> Option<(Arc<str>, u64, usize)> {
        match &*self.state.lock() {
            State::Open(slots) => slots
                .iter()
                .map(|(job, slot)| (Arc::clone(&job.rank.flow.head), job.number, *slot))
                .min(),
            State::Kept(_) | State::Done(_) => None,
        }
    }

    /// How long most of the heads take that wait for it, and their results.
    pub(super) fn most(&self) -> Duration {
        match &*self.state.lock() {
            State::Open(slots) => {
                let all = slots.iter().map(|(job, _)| job.most());
                all.max().unwrap_or_default()
            }
            State::Kept(_) | State::Done(_) => Duration::ZERO,
        }
    }

    /// Lets those who wait go on as long as their deadlines have not passed.
    pub(super) fn try_nevertheless(&self) {
        if let State::Open(slots) = &*self.state.lock() {
            slots.iter().for_each(|(job, _)| job.try_nevertheless());
        }
    }

    /// Notes how the image was fitted to the input.
    pub(super) fn set_decoded(&self, geometry: Geometry, took: Duration) {
        // Decoded once; a second note would say the same.
        let _ = self.decoded.set((geometry, took));
        let _ = self.decoded_at.set(Instant::now());
    }

    /// When it was decoded, from and to.
    pub(super) fn decoding(&self) -> Option<(Instant, Instant)> {
        let (ended, (_, took)) = (*self.decoded_at.get()?, *self.decoded.get()?);
        Some((ended - took, ended))
    }

    /// Where the calls are that wait for it and are recorded.
    pub(super) fn traces(&self) -> Vec<Context> {
        match &*self.state.lock() {
            State::Open(slots) => {
                let all = slots.iter().map(|(job, _)| &job.trace);
                all.filter(|trace| trace.sampled()).cloned().collect()
            }
            State::Kept(_) | State::Done(_) => Vec::new(),
        }
    }

    /// How the image lies in the input, and how long decoding took.
    pub(super) fn decoded(&self) -> (Geometry, Duration) {
        *self.decoded.get_or_init(|| {
            let (width, height) = (self.preprocess.width, self.preprocess.height);
            (geometry(width, height, &self.preprocess), Duration::ZERO)
        })
    }

    /// Adds jobs, and returns those that this image completes at once. `None`: the flight is over.
    pub(super) fn attach(&self, slots: Vec<(Arc<Job>, usize)>) -> Option<Vec<Arc<Job>>> {
        match &mut *self.state.lock() {
            State::Open(waiting) => {
                waiting.extend(slots);
                Some(Vec::new())
            }
            State::Kept(landed) => Some(fill(slots, landed)),
            State::Done(Ok(_)) => None,
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
        let done = State::Done(Ok(landed.how.clone()));
        match std::mem::replace(&mut *self.state.lock(), done) {
            State::Open(slots) => fill(slots, &landed),
            State::Kept(_) | State::Done(_) => Vec::new(),
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

    /// Drops jobs whose caller is gone or cannot be answered in time, `ahead` being the steps before and after their
    /// heads that are to come; whether anybody still waits. Once nobody does, nobody can join.
    pub(super) fn wanted(&self, now: Instant, ahead: Duration) -> bool {
        let mut state = self.state.lock();
        if let State::Open(slots) = &mut *state {
            slots.retain(|(job, _)| job.wanted(now, ahead));
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
    pub(super) fn outcome(&self) -> Option<Result<How>> {
        match &*self.state.lock() {
            State::Open(_) => None,
            State::Kept(landed) => Some(Ok(landed.how.clone())),
            State::Done(outcome) => Some(outcome.clone()),
        }
    }
}

fn fill(slots: Vec<(Arc<Job>, usize)>, landed: &Landed) -> Vec<Arc<Job>> {
    slots
        .into_iter()
        .filter_map(|(job, slot)| job.fill(slot, landed).then_some(job))
        .collect()
}

/// Flights under way, by key.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<Key, Arc<Flight>>>);

/// How an image got on its way.
pub(super) enum Joined {
    /// It is the first of its kind: the caller queues it.
    New(Arc<Flight>),
    /// It had been computed before; these jobs are complete already.
    Kept(Arc<Flight>, Vec<Arc<Job>>),
    /// An equal image was under way; these jobs are complete already.
    Shared(Arc<Flight>, Vec<Arc<Job>>),
}

impl Flights {
    /// Joins the flight of an equal image, or makes one: one that is over at once if the cache has the image, which `kept`
    /// asks. What lands is in the cache before it leaves the table, so that an image between the two is found.
    pub(super) fn join(
        &self,
        key: Key,
        slots: Vec<(Arc<Job>, usize)>,
        kept: impl FnOnce() -> Option<Landed>,
        make: impl FnOnce() -> Flight,
    ) -> Joined {
        let mut flights = self.0.lock();
        if let Some(flight) = flights.get(&key)
            && let Some(ready) = flight.attach(slots.clone())
        {
            return Joined::Shared(Arc::clone(flight), ready);
        }
        if let Some(landed) = kept() {
            let flight = Arc::new(Flight::landed(make(), landed));
            let ready = flight.attach(slots).unwrap_or_default();
            return Joined::Kept(flight, ready);
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

#[cfg(test)]
pub(super) mod tests {
    use super::{
        super::{
            admission::{Admission, AdmissionLimits},
            sched::rank::{Flow, Priority},
        },
        *,
    };
    use crate::media::{Filter, ResizeMode};

    /// One for an image of 8 x 8 pixels, for which nobody waits yet.
    pub(in crate::engine) fn flight(key: Key, source: Source) -> Flight {
        flight_of(key, source, "", 0, Load::rest(0.010))
    }

    /// One of this caller, decoding which holds so many bytes.
    pub(in crate::engine) fn flight_of(
        key: Key,
        source: Source,
        caller: &str,
        held: u64,
        load: Load,
    ) -> Flight {
        let flow = Flow {
            caller: caller.into(),
            head: "".into(),
        };
        let permit = Admission::new(AdmissionLimits::default())
            .admit(&flow, 1.0, 1, 1, || Duration::ZERO)
            .expect("it is empty");
        let rank = Rank {
            priority: Priority::Normal,
            flow,
            weights: (1.0, 1.0),
            deadline: None,
        };
        let preprocess = Preprocess {
            mode: ResizeMode::Stretch,
            filter: Filter::Bilinear,
            pad: 0,
            height: 8,
            width: 8,
        };
        let cost = Cost {
            work: Work::raw(8, 8),
            held,
            load,
        };
        Flight::new(key, source, preprocess, cost, rank, permit)
    }

    /// An image that leaves the table after the one look and enters the cache before the other would be computed again.
    #[test]
    fn nothing_lands_between_the_look_at_the_table_and_at_the_cache() {
        let source = Source::Encoded("image".into());
        let key = Key::new(&[1, 2, 3, 4], "", &source, [8, 8]);
        let (flights, mut asked) = (Flights::default(), false);
        let kept = || {
            asked = true;
            assert!(flights.0.try_lock().is_none(), "the table is open");
            None
        };
        let first = flights.join(key, Vec::new(), kept, || flight(key, source));
        assert!(asked && matches!(first, Joined::New(_)));
        let no = || panic!("an equal image is under way");
        let second = flights.join(key, Vec::new(), no, || panic!("no other is made"));
        assert!(matches!(second, Joined::Shared(..)));
    }
}
