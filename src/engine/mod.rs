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
//!
//! In a process of one's own, here with the demo models:
//!
//! ```
//! # #[cfg(feature = "demo-models")]
//! # #[tokio::main]
//! # async fn main() -> anyhow::Result<()> {
//! use frostline::{
//!     backend::Runtime,
//!     engine::{Engine, EngineConfig, Outcome, Request, Source},
//!     repository::Repository,
//! };
//!
//! let runtime = Runtime::load(None)?;
//! let engine = Engine::start(&runtime, &Repository::embedded()?, EngineConfig::default())?;
//! let photo = Source::Encoded(std::fs::read("models/demo/samples/scene-1.jpg")?.into());
//! let request = Request {
//!     images: vec![(photo, "photo".to_owned())],
//!     heads: engine.head("objects").into_iter().collect(),
//!     ..Request::default()
//! };
//! let analysis = engine.run(request).await?;
//! let (_, outcome) = &analysis.heads[0];
//! assert!(matches!(outcome, Ok(Outcome::Detection(found)) if !found.is_empty()));
//! assert_eq!(analysis.provenance.backbone_rows, 1);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "demo-models"))]
//! # fn main() {}
//! ```

mod admission;
mod assemble;
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
mod shared;
mod shelves;
mod start;
mod steps;
mod trial;
mod warm;
mod watchdog;

use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::watch;

pub use crate::task::{LabelMapAs, Labels, Options, Segmentation};
use crate::{
    backend::{Device, TensorSpec},
    error::{Error, Kind, Result},
    repository::BackboneManifest,
};
use admission::Permit;
use assemble::Answers;
use board::Boarded;
use job::stopped;
use sched::rank::Flow;
use shared::Shared;

pub use admission::AdmissionLimits;
pub use busy::Spent;
pub use config::{Counters, EngineConfig, WorstCase};
pub use cost::Curve;
pub use kept::{KeptRequest, Seconds};
pub use live::{Begun, Keep, Kept, Live, Part, Parts, flow};
pub use postprocess::Outcome;
pub use request::{
    Analysis, FeatureSource, Head, Looked, Meter, Provenance, Request, Source, Timing,
};
pub use room::Room;
pub use sched::rank::Priority;
pub use trial::{Trial, TrialOptions, Tried, choose};

/// How long a stop waits for the threads of an engine that has failed.
const GRACE: Duration = Duration::from_millis(200);

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

    /// What the backbone's features are of: its hash, and what they are computed in where that is not what its graph says,
    /// such as `1f…+bf16`.
    #[must_use]
    pub fn identity(&self) -> &str {
        self.shared.backbone.identity()
    }

    /// What the backbone is computed in, such as `fp32`.
    #[must_use]
    pub fn precision(&self) -> String {
        let computed = self.device().precision();
        computed.map_or_else(|| self.backbone().precision.clone(), |p| p.to_string())
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
        if request.looked.is_none() {
            self.look(std::slice::from_mut(&mut request))?;
        }
        let looked = request.looked.take();
        let looked =
            looked.ok_or_else(|| Error::new(Kind::Internal, "a request was not looked at"))?;
        let (permit, flow) = self.admit(&request)?;
        let mut boarded = self.board(&request, &looked, &permit, &flow)?;
        let answers = self.wait(&request, &looked.room, &mut boarded).await?;
        let analysis = self.assemble(request, looked, &boarded, answers, started);
        drop((boarded, permit));
        analysis
    }

    /// A place at the door, and the flow that pays for it.
    fn admit(&self, request: &Request) -> Result<(Arc<Permit>, Flow)> {
        let shared = &self.shared;
        let bytes = request.images.iter().map(|(source, _)| source.len()).sum();
        let names = request.heads.iter().map(|head| Arc::clone(&head.name));
        let of = |head| Flow {
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
        let (weight, images) = (caller_weight * head_weight, request.images.len());
        let permit = shared
            .admission
            .admit(&flow, weight, images, bytes, || shared.queue.backlog())
            .inspect_err(|error| {
                shared.turned_away(match error.kind() {
                    Kind::LimitExceeded => "too_large",
                    _ => "full",
                });
            })?;
        Ok((permit, flow))
    }

    /// Waits for the answers of a request's jobs, as long as its deadline and the engine last.
    async fn wait(
        &self,
        request: &Request,
        room: &Arc<Room>,
        boarded: &mut Boarded,
    ) -> Result<Answers> {
        let replies = std::mem::take(&mut boarded.replies);
        let parts = request.live.parts.as_ref();
        let caller = &request.caller;
        let answers = self.shared.gather(replies, parts, (caller, room));
        // A lane that hangs never answers what it holds.
        let answers = async {
            tokio::select! {
                biased;
                answers = answers => Ok(answers),
                error = self.failed() => Err(error),
            }
        };
        match request.deadline {
            Some(deadline) => tokio::time::timeout_at(deadline.into(), answers)
                .await
                .map_err(|_| Error::new(Kind::DeadlineExceeded, "the deadline passed"))?,
            None => answers.await,
        }
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

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}
