//! Shares, batches and schedules frozen features.
//!
//! A request names images and heads. Each image becomes a [`flight`](flight::Flight): its way through decoding and the
//! backbone, joined by every caller with an equal image. Each head of the request becomes a [`job`](job::Job) that
//! waits for its flights' rows. Lanes, one thread each, take decoded images in batches, run the backbone, and run
//! the heads of the jobs that became complete on the rows where they lie.
//!
//! ```text
//! Engine::run -> admission -> cache? -> flight (shared?) -> queue -> decode -> queue -> lane -> job -> postprocess
//! ```
//!
//! Who is next, how large a batch is and what a thread does is [`sched`]'s matter; what work costs is [`cost`]'s.

mod admission;
mod board;
mod busy;
mod cache;
mod config;
mod cost;
mod decoding;
mod flight;
mod heads;
mod job;
mod kept;
mod known;
mod landed;
mod lane;
mod live;
mod look;
mod mean;
mod observe;
mod postprocess;
mod queue;
mod request;
mod room;
mod sched;
mod shelves;
mod start;
mod warm;
mod watchdog;

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::{
    backend::{Backbone, Device, Runtime, SessionOptions, TensorSpec},
    error::{Error, Kind, Result},
    repository::{BackboneManifest, Location, Stamp},
};
use admission::Admission;
use board::Position;
use busy::Busy;
use cache::Cache;
use cost::Costs;
use flight::{Flight, Flights};
use job::stopped;
use mean::Trials;
use queue::Queue;
use room::Rooms;
use watchdog::Steps;

pub use admission::AdmissionLimits;
pub use busy::Spent;
pub use config::{Counters, EngineConfig, WorstCase};
pub use cost::Curve;
pub use kept::{KeptRequest, Seconds};
pub use live::{Begun, Keep, Kept, Live, Part, Parts, flow};
pub use postprocess::{LabelMapAs, Labels, Options, Outcome, Segmentation};
pub use request::{
    Analysis, FeatureSource, Head, Looked, Meter, Provenance, Request, Source, Timing,
};
pub use room::Room;
pub use sched::rank::Priority;

/// How long a stop waits for the threads of an engine that has failed.
const GRACE: Duration = Duration::from_millis(200);

/// What the threads and the callers share.
struct Shared {
    runtime: Runtime,
    location: Location,
    options: SessionOptions,
    backbone: Backbone,
    heads: RwLock<BTreeMap<String, Arc<Head>>>,
    /// Why the newest version of a head does not serve, where it does not.
    faults: RwLock<BTreeMap<String, Arc<str>>>,
    /// How the heads' files looked before they were read at the start.
    stamps: BTreeMap<String, Stamp>,
    loading: Mutex<()>,
    /// Tells whoever follows them that the heads have changed.
    changes: watch::Sender<()>,
    admission: Admission,
    rooms: Rooms,
    /// Bytes of one image's features in the host's memory, by input size.
    features_bytes: Vec<([u32; 2], u64)>,
    flights: Flights,
    cache: Cache,
    queue: Queue,
    costs: Costs,
    trials: Trials,
    curves: Vec<Curve>,
    lanes: usize,
    steps: Steps,
    hash_key: [u64; 4],
    counters: Mutex<Counters>,
    /// Time that lanes spent.
    on_lanes: Busy,
    /// Time that threads beside them spent.
    on_workers: Busy,
    config: EngineConfig,
}

/// How busy the engine is.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Images accepted and not yet answered.
    pub in_flight: usize,
    /// Images that wait for a lane, decoded or not.
    pub queued: usize,
    /// About how long those take.
    pub queued_work: Duration,
    /// Time that lanes have spent on each kind of work since the start, over all lanes.
    pub lanes_busy: Spent,
    /// Lanes.
    pub lanes: usize,
    /// The same of the threads that decode and postprocess beside the lanes.
    pub workers_busy: Spent,
    /// How many there are of these; none where the lanes do that work.
    pub workers: usize,
    /// Bytes of features in the cache.
    pub cache_bytes: usize,
    /// Bytes set aside for results of calls under way.
    pub result_bytes: u64,
}

/// The engine. Dropping it stops its threads; what is in flight then fails.
pub struct Engine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Engine {
    /// The backbone's manifest.
    #[must_use]
    pub fn backbone(&self) -> &BackboneManifest {
        self.shared.backbone.manifest()
    }

    /// The loaded heads, by name.
    #[must_use]
    pub fn heads(&self) -> Vec<Arc<Head>> {
        self.shared.heads.read().values().cloned().collect()
    }

    /// The head called `name`.
    #[must_use]
    pub fn head(&self, name: &str) -> Option<Arc<Head>> {
        self.shared.heads.read().get(name).cloned()
    }

    /// What the backbone's features of one image of `[height, width]` look like; `None` for a size that it does not take.
    #[must_use]
    pub fn features(&self, size: [u32; 2]) -> Option<Vec<TensorSpec>> {
        let blank = self.shared.backbone.blank(size)?;
        Some(blank.maps().map(|map| map.spec()).collect())
    }

    /// Names of the heads that the repository has, loaded or not. Reads the folder.
    ///
    /// # Errors
    /// `Internal` if it cannot be read.
    pub fn repository_heads(&self) -> Result<Vec<String>> {
        let names = self.shared.location.heads();
        names.map_err(|error| Error::new(Kind::Internal, error.to_string()))
    }

    /// Changes whenever a head was loaded, replaced or unloaded.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.shared.changes.subscribe()
    }

    /// Counts since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        *self.shared.counters.lock()
    }

    /// What graphs run on.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.shared.backbone.device()
    }

    /// How busy it is.
    #[must_use]
    pub fn load(&self) -> Load {
        let shared = &self.shared;
        Load {
            in_flight: shared.admission.held(),
            queued: shared.queue.len(),
            queued_work: shared.queue.backlog(),
            lanes_busy: shared.on_lanes.get(),
            lanes: shared.lanes,
            workers_busy: shared.on_workers.get(),
            workers: shared.config.workers,
            cache_bytes: shared.cache.bytes(),
            result_bytes: shared.rooms.held(),
        }
    }

    /// Images accepted and not yet answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.admission.held()
    }

    /// What each batch size costs at each input size, as measured at warm-up, and the batch sizes in use.
    pub fn curves(&self) -> impl Iterator<Item = (&Curve, Vec<usize>)> {
        self.shared
            .curves
            .iter()
            .map(|curve| (curve, self.shared.costs.buckets(curve.size)))
    }

    /// The configuration it runs with.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    /// Completes once the engine cannot serve any more because a lane died or hangs, with the reason.
    pub async fn failed(&self) -> Error {
        self.shared.queue.failed().await
    }

    /// Runs `request`. Dropping the future gives up: work that nobody else waits for is not begun.
    ///
    /// # Errors
    /// The first image that cannot be read or computed, a full server, a missed deadline. A head that fails makes its
    /// own entry of the answer an error.
    pub async fn run(&self, request: Request) -> Result<Analysis> {
        let started = Instant::now();
        let heads: Vec<_> = request.heads.iter().map(|h| Arc::clone(&h.name)).collect();
        let answer = self.answer(request, started).await;
        self.shared.note(&heads, started, &answer);
        answer
    }

    async fn answer(&self, mut request: Request, started: Instant) -> Result<Analysis> {
        let shared = &self.shared;
        if request.looked.is_none() {
            self.look(std::slice::from_mut(&mut request))?;
        }
        let Some(looked) = request.looked.take() else {
            return Err(Error::new(Kind::Internal, "a request was not looked at"));
        };
        let bytes = request.images.iter().map(|(source, _)| source.len()).sum();
        let names = request.heads.iter().map(|head| Arc::clone(&head.name));
        let of = |head| sched::rank::Flow {
            caller: Arc::clone(&request.caller),
            head,
        };
        let flow = match &request.live.flow {
            Some(stream) => of(Arc::clone(stream)),
            None => {
                (shared.admission.flow(&request.caller, names)).unwrap_or_else(|| of("".into()))
            }
        };
        let (caller_weight, head_weight) = shared.config.weights(&flow.caller, &flow.head);
        let permit = shared
            .admission
            .admit(
                &flow,
                caller_weight * head_weight,
                request.images.len(),
                bytes,
                || shared.queue.backlog(),
            )
            .inspect_err(|error| {
                shared.turned_away(match error.kind() {
                    Kind::LimitExceeded => "too_large",
                    _ => "full",
                });
            })?;
        let mut boarded = self.board(&request, &looked, &permit, &flow)?;

        let replies = std::mem::take(&mut boarded.replies);
        let answers = shared.gather(replies, request.live.parts.as_ref(), &request.caller);
        // A lane that hangs never answers what it holds.
        let answers = async {
            tokio::select! {
                biased;
                answers = answers => Ok(answers),
                error = self.failed() => Err(error),
            }
        };
        let answers = match request.deadline {
            Some(deadline) => tokio::time::timeout_at(deadline.into(), answers)
                .await
                .map_err(|_| Error::new(Kind::DeadlineExceeded, "the deadline passed"))??,
            None => answers.await?,
        };
        if let Some((error, index)) = boarded.failure() {
            let kind = error.kind();
            let of_image = kind == Kind::InvalidImage || kind == Kind::LimitExceeded;
            return Err(match request.images.get(index) {
                Some((_, field)) if of_image => error.at(field),
                _ => error,
            });
        }
        let mut provenance = boarded.provenance();
        let mut features = None;
        let mut results: Vec<Option<Result<Outcome>>> = Vec::new();
        results.resize_with(request.heads.len(), || None);
        for (position, answer) in answers {
            // Of an image that came from the cache there is none.
            if provenance.batch_size > 0
                && let Ok(Some(took)) = answer.as_ref().map(|done| done.device_time)
            {
                provenance.timing.backbone = took;
            }
            let index = match position {
                Position::Head(index) => index,
                Position::Row(_) => continue,
                Position::Features => {
                    features = answer?.features;
                    continue;
                }
            };
            if let Ok(done) = &answer {
                let timing = &mut provenance.timing;
                timing.head = timing.head.max(done.head_time);
                timing.postprocess = timing.postprocess.max(done.postprocess_time);
                let finished = done.postprocess_begun + done.postprocess_time;
                shared.costs.delivery.add(finished.elapsed());
                shared.note_head(&request.heads[index].name, done, &request.trace);
            }
            let missing = || Error::new(Kind::Internal, "the head gave no output");
            results[index] = Some(answer.and_then(|done| done.outcome.ok_or_else(missing)));
        }
        provenance.timing.total = started.elapsed();
        boarded.spans(started, &request.trace);
        let heads = request.heads.into_iter().zip(results);
        let heads: Vec<_> = heads
            .map(|(head, result)| (head, result.unwrap_or_else(|| Err(stopped()))))
            .collect();
        // A deadline that nothing could meet is the call's, not one head's.
        if !heads.is_empty()
            && features.is_none()
            && let Some(error) = late(&heads)
        {
            return Err(error);
        }
        drop((boarded, permit));
        Ok(Analysis {
            heads,
            features,
            provenance,
            room: Some(looked.room),
        })
    }

    /// Stops the threads after what they hold is done. Requests that still wait fail. A thread that does not come back
    /// within [`EngineConfig::step_limit`] is left behind.
    pub fn stop(&self) {
        let (flights, jobs) = self.shared.queue.close();
        self.shared.give_up(&flights, &stopped());
        jobs.iter().for_each(|job| job.finish(Err(stopped())));
        let threads: Vec<_> = std::mem::take(&mut *self.threads.lock());
        let limit = self.shared.config.step_limit;
        let patience = match limit.is_zero() {
            true => None,
            // A lane that has been given up is not waited for once more.
            false => Some(
                Instant::now()
                    + if self.shared.queue.has_failed() {
                        GRACE
                    } else {
                        limit
                    },
            ),
        };
        for thread in threads {
            let over = || patience.is_some_and(|until| Instant::now() > until);
            while !thread.is_finished() && !over() {
                std::thread::sleep(Duration::from_millis(1));
            }
            if !thread.is_finished() {
                tracing::error!("an engine thread hangs and is left behind");
            } else if thread.join().is_err() {
                tracing::error!("an engine thread had panicked");
            }
        }
    }
}

/// The error of a request whose every head was too late or was given up.
fn late(heads: &[(Arc<Head>, Result<Outcome>)]) -> Option<Error> {
    let of_call = |kind| matches!(kind, Kind::DeadlineExceeded | Kind::Unavailable);
    let errors: Option<Vec<_>> = heads
        .iter()
        .map(|(_, result)| result.as_ref().err().filter(|e| of_call(e.kind())))
        .collect();
    errors?.first().copied().cloned()
}

impl Shared {
    /// Lets go of images that left the queue without being computed.
    fn drop_flights(&self, dropped: &mut Vec<Arc<Flight>>) {
        if dropped.is_empty() {
            return;
        }
        self.counters.lock().abandoned += dropped.len() as u64;
        for flight in dropped.drain(..) {
            self.flights.remove(&flight);
        }
    }

    /// Images that will never be computed fail with `error` and give back their places.
    fn give_up(&self, flights: &[Arc<Flight>], error: &Error) {
        for flight in flights {
            self.flights.remove(flight);
            flight.fail(error);
        }
    }

    /// The engine is over: everything that waits is told `error`.
    fn fail(&self, error: &Error) {
        let (flights, jobs) = self.queue.fail(error);
        self.give_up(&flights, error);
        jobs.iter().for_each(|job| job.finish(Err(error.clone())));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}
