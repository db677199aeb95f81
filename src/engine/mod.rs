//! Shares, batches and schedules frozen features.
//!
//! A request names images and heads. Each image becomes a [`flight`](flight::Flight): its way through decoding and the
//! backbone, joined by every caller with an equal image. Each head of the request becomes a [`job`](flight::Job) that
//! waits for its flights' rows. Lanes, one thread each, take decoded images in batches, run the backbone, and run
//! the heads of the jobs that became complete on the rows where they lie.
//!
//! ```text
//! Engine::run -> admission -> cache? -> flight (shared?) -> queue -> decoder -> queue -> lane -> job -> postprocess
//! ```

mod admission;
mod cache;
mod flight;
mod lane;
mod postprocess;
mod queue;
mod request;

use std::{collections::BTreeMap, sync::Arc, thread::JoinHandle, time::Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use crate::{
    backend::{BackendError, Lane, LaneOptions, Runtime},
    error::{Error, Kind, Result},
    media::{self, Filter, Preprocess, ResizeMode},
    repository::{BackboneManifest, Repository, Resize, Task},
};
use admission::Admission;
use cache::Cache;
use flight::{Flight, Flights, Job, Key};
use queue::Queue;

pub use admission::AdmissionLimits;
pub use postprocess::{Options, Outcome};
pub use request::{Analysis, FeatureSource, Head, Provenance, Request, Source, Timing};

/// How the engine uses the machine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Threads that run graphs; 0 for one per core.
    pub lanes: usize,
    /// Threads that one lane's operators use.
    pub threads_per_lane: usize,
    /// Threads that decode images; 0 for one per core.
    pub decoders: usize,
    /// Largest number of images in one backbone batch.
    pub max_batch: usize,
    /// Bytes of finished features to keep; 0 for none.
    pub cache_bytes: usize,
    /// Bounds on what is accepted.
    pub admission: AdmissionLimits,
    /// Bounds on one image.
    pub media: media::Limits,
    /// Most frames of a clip.
    pub max_frames: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            lanes: 0,
            threads_per_lane: 1,
            decoders: 0,
            max_batch: 8,
            cache_bytes: 0,
            admission: AdmissionLimits::default(),
            media: media::Limits::default(),
            max_frames: 64,
        }
    }
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Images that the backbone ran on.
    pub backbone_rows: u64,
    /// Batches that it ran.
    pub backbone_batches: u64,
    /// Images that joined a flight of an equal image.
    pub shared: u64,
    /// Images found in the cache.
    pub cached: u64,
    /// Requests refused at the door.
    pub refused: u64,
    /// Images dropped because nobody waited for them any more.
    pub abandoned: u64,
}

struct Shared {
    backbone: BackboneManifest,
    heads: RwLock<BTreeMap<String, Arc<Head>>>,
    config: EngineConfig,
    admission: Admission,
    flights: Flights,
    cache: Cache,
    queue: Queue,
    hash_key: [u8; 32],
    counters: Mutex<Counters>,
}

/// The engine. Dropping it stops its threads; what is in flight then fails.
pub struct Engine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Engine {
    /// Loads every graph of `repository` on every lane and starts the threads.
    ///
    /// # Errors
    /// A graph that does not load or is not what its manifest says.
    pub fn start(
        runtime: &Runtime,
        repository: &Repository,
        config: EngineConfig,
    ) -> Result<Self, BackendError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let auto = |count: usize| if count == 0 { cores } else { count };
        let lanes = build_lanes(runtime, repository, auto(config.lanes), &config)?;
        let heads = repository
            .heads
            .iter()
            .map(|entry| {
                let head = Head {
                    manifest: entry.manifest.clone(),
                };
                (entry.manifest.name.clone(), Arc::new(head))
            })
            .collect();
        let decoders = auto(config.decoders);
        let ready = config.max_batch.max(1) * (lanes.len() + 1);
        let shared = Arc::new(Shared {
            backbone: repository.backbone.clone(),
            heads: RwLock::new(heads),
            admission: Admission::new(config.admission),
            flights: Flights::default(),
            cache: Cache::new(config.cache_bytes),
            queue: Queue::new(lanes.len(), decoders, ready),
            hash_key: hash_key(),
            counters: Mutex::default(),
            config,
        });
        let mut threads = Vec::new();
        for (index, lane) in lanes.into_iter().enumerate() {
            let shared = Arc::clone(&shared);
            threads.push(spawn(format!("lane-{index}"), move || {
                lane::run(&shared, lane)
            })?);
        }
        for index in 0..decoders {
            let shared = Arc::clone(&shared);
            threads.push(spawn(format!("decode-{index}"), move || {
                lane::decode(&shared)
            })?);
        }
        Ok(Self {
            shared,
            threads: Mutex::new(threads),
        })
    }

    /// The backbone's manifest.
    #[must_use]
    pub fn backbone(&self) -> &BackboneManifest {
        &self.shared.backbone
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

    /// Counts since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        *self.shared.counters.lock()
    }

    /// Images accepted and not yet answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.admission.held()
    }

    /// The configuration it runs with.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    /// Completes once the engine cannot serve any more: a lane died.
    pub async fn failed(&self) {
        self.shared.queue.failed().await;
    }

    /// Runs `request`. Dropping the future gives up: work that nobody else waits for is not begun.
    ///
    /// # Errors
    /// The first image that cannot be read or computed, a full server, a missed deadline. A head that fails makes its
    /// own entry of the answer an error.
    pub async fn run(&self, request: Request) -> Result<Analysis> {
        let started = Instant::now();
        let shared = &self.shared;
        request::check(&request, &shared.config)?;
        let bytes = request.images.iter().map(|(source, _)| source.len()).sum();
        let permit = shared
            .admission
            .admit(request.images.len(), bytes)
            .inspect_err(|_| {
                shared.counters.lock().refused += 1;
            })?;

        let sizes = request::sizes(&request);
        let mut tickets = Tickets {
            flights: Vec::new(),
            fields: Vec::new(),
        };
        let mut replies = Vec::new();
        for size in sizes {
            let joined = self.board(&request, size, &permit, &mut replies);
            let fields = request.images.iter().map(|(_, field)| field.clone());
            tickets.fields.extend(fields.take(joined.len()));
            tickets.flights.extend(joined);
        }

        let answers = async {
            let mut answers = Vec::with_capacity(replies.len());
            for (position, reply) in replies {
                let gone = || Error::new(Kind::Unavailable, "the server stopped");
                answers.push((position, reply.await.unwrap_or_else(|_| Err(gone()))));
            }
            answers
        };
        let answers = match request.deadline {
            Some(deadline) => tokio::time::timeout_at(deadline.into(), answers)
                .await
                .map_err(|_| Error::new(Kind::DeadlineExceeded, "the deadline passed"))?,
            None => answers.await,
        };

        for ((flight, _), field) in tickets.flights.iter().zip(&tickets.fields) {
            if let Some(Err(error)) = flight.outcome() {
                let named =
                    if error.kind() == Kind::InvalidImage || error.kind() == Kind::LimitExceeded {
                        error.at(field.clone())
                    } else {
                        error
                    };
                return Err(named);
            }
        }
        let mut provenance = tickets.provenance();
        let geometry = tickets.geometry()?;

        let mut features = None;
        let mut rows = Vec::with_capacity(request.heads.len());
        for (position, answer) in answers {
            match (position, answer) {
                (None, Ok(done)) => features = done.rows.into_iter().next_back(),
                (None, Err(error)) => return Err(error),
                (Some(index), Ok(done)) => {
                    provenance.timing.head = provenance.timing.head.max(done.head_time);
                    rows.push((
                        index,
                        done.output
                            .ok_or_else(|| Error::new(Kind::Internal, "the head gave no output")),
                    ));
                }
                (Some(index), Err(error)) => rows.push((index, Err(error))),
            }
        }
        rows.sort_by_key(|(index, _)| *index);
        let begun = Instant::now();
        let heads = postprocess::run_all(request.heads, rows, geometry, request.options).await?;
        provenance.timing.postprocess = begun.elapsed();
        provenance.timing.total = started.elapsed();
        drop(permit);
        Ok(Analysis {
            heads,
            features,
            provenance,
        })
    }

    /// Puts the request's images of `size` on their way and attaches the jobs that read them.
    fn board(
        &self,
        request: &Request,
        size: [u32; 2],
        permit: &Arc<admission::Permit>,
        replies: &mut Vec<(Option<usize>, oneshot::Receiver<Result<flight::JobDone>>)>,
    ) -> Vec<(Arc<Flight>, FeatureSource)> {
        let shared = &self.shared;
        let count = request.images.len();
        let mut jobs: Vec<(Arc<Job>, Vec<usize>)> = Vec::new();
        let mut add = |position, head: Option<Arc<Head>>, frames: Vec<usize>| {
            let (job, reply) = Job::new(head, frames.len(), request.deadline);
            replies.push((position, reply));
            jobs.push((Arc::new(job), frames));
        };
        for (index, head) in request.heads.iter().enumerate() {
            if head.manifest.input_size == size {
                let frames = match head.manifest.task {
                    Task::Action => request::sample_frames(count, head.manifest.frames()),
                    _ => vec![count - 1],
                };
                add(Some(index), Some(Arc::clone(head)), frames);
            }
        }
        if request.features == Some(size) {
            add(None, None, vec![count - 1]);
        }
        let preprocess = preprocess(&shared.backbone, size);
        let mut joined = Vec::with_capacity(count);
        let mut complete = Vec::new();
        for (index, (source, _)) in request.images.iter().enumerate() {
            let slots: Vec<(Arc<Job>, usize)> = jobs
                .iter()
                .flat_map(|(job, frames)| {
                    let reads = frames
                        .iter()
                        .enumerate()
                        .filter(move |(_, frame)| **frame == index);
                    reads.map(|(slot, _)| (Arc::clone(job), slot))
                })
                .collect();
            if slots.is_empty() {
                continue;
            }
            let key = Key::new(&shared.hash_key, source, size);
            let (flight, from) = self.join(key, source, preprocess, permit, slots, &mut complete);
            joined.push((flight, from));
        }
        if !complete.is_empty() {
            shared.queue.push_jobs(complete);
        }
        joined
    }

    /// Finds the image's features in the cache or in flight, or sends them on their way.
    fn join(
        &self,
        key: Key,
        source: &Source,
        preprocess: Preprocess,
        permit: &Arc<admission::Permit>,
        slots: Vec<(Arc<Job>, usize)>,
        complete: &mut Vec<Arc<Job>>,
    ) -> (Arc<Flight>, FeatureSource) {
        let shared = &self.shared;
        let make = || Flight::new(key, source.clone(), preprocess, Arc::clone(permit));
        if let Some(done) = shared.cache.get(&key) {
            shared.counters.lock().cached += 1;
            let flight = Arc::new(Flight::landed(make(), done));
            complete.extend(flight.attach(slots).unwrap_or_default());
            return (flight, FeatureSource::Cached);
        }
        match shared.flights.join(key, slots, make) {
            flight::Joined::New(flight) => {
                shared
                    .queue
                    .push(Arc::clone(&flight), |flight| flight.fail(&stopped()));
                (flight, FeatureSource::Computed)
            }
            flight::Joined::Shared(flight, ready) => {
                shared.counters.lock().shared += 1;
                complete.extend(ready);
                (flight, FeatureSource::Shared)
            }
        }
    }

    /// Stops the threads after what they hold is done. Requests that still wait fail.
    pub fn stop(&self) {
        for flight in self.shared.queue.close() {
            flight.fail(&stopped());
        }
        let threads: Vec<_> = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
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

fn stopped() -> Error {
    Error::new(Kind::Unavailable, "the server is stopping")
}

/// The flights that one request takes part in.
struct Tickets {
    flights: Vec<(Arc<Flight>, FeatureSource)>,
    fields: Vec<String>,
}

impl Tickets {
    fn geometry(&self) -> Result<media::Geometry> {
        self.flights
            .iter()
            .rev()
            .find_map(|(flight, _)| flight.outcome()?.ok())
            .map(|done| done.geometry)
            .ok_or_else(|| Error::new(Kind::Internal, "no image was computed"))
    }

    fn provenance(&self) -> Provenance {
        let landed: Vec<_> = self
            .flights
            .iter()
            .filter_map(|(flight, source)| Some((flight.outcome()?.ok()?, *source)))
            .collect();
        let computed = landed
            .iter()
            .filter(|(_, s)| *s == FeatureSource::Computed)
            .count();
        let last = landed.last().map(|(done, source)| (done.clone(), *source));
        let mut timing = Timing::default();
        let mut batch_size = 0;
        if let Some((done, source)) = last.filter(|(_, source)| *source != FeatureSource::Cached) {
            debug_assert_ne!(source, FeatureSource::Cached);
            timing = done.timing;
            batch_size = done.batch_size;
        }
        Provenance {
            source: landed
                .iter()
                .map(|(_, s)| *s)
                .max()
                .unwrap_or(FeatureSource::Computed),
            backbone_rows: computed,
            batch_size,
            timing,
        }
    }
}

fn preprocess(backbone: &BackboneManifest, [height, width]: [u32; 2]) -> Preprocess {
    Preprocess {
        mode: match backbone.input.resize {
            Resize::Letterbox => ResizeMode::Letterbox,
            Resize::Stretch => ResizeMode::Stretch,
            Resize::CenterCrop => ResizeMode::CenterCrop,
        },
        filter: match backbone.input.filter {
            crate::repository::Filter::Bilinear => Filter::Bilinear,
            crate::repository::Filter::Bicubic => Filter::Bicubic,
        },
        pad: backbone.input.pad,
        height,
        width,
    }
}

/// A key that callers cannot know: equal keys then mean equal images, not an attack on the cache.
fn hash_key() -> [u8; 32] {
    use std::hash::{BuildHasher, RandomState};
    let mut key = [0; 32];
    for chunk in key.chunks_exact_mut(8) {
        chunk.copy_from_slice(&RandomState::new().hash_one(0_u8).to_ne_bytes());
    }
    key
}

fn build_lanes(
    runtime: &Runtime,
    repository: &Repository,
    count: usize,
    config: &EngineConfig,
) -> Result<Vec<Lane>, BackendError> {
    let build = || -> Result<Lane, BackendError> {
        let options = LaneOptions {
            threads: config.threads_per_lane.max(1),
        };
        let mut lane = Lane::new(runtime, &repository.backbone, &repository.graph, options)?;
        for entry in &repository.heads {
            lane.load_head(entry)?;
        }
        Ok(lane)
    };
    std::thread::scope(|scope| {
        let builders: Vec<_> = (0..count).map(|_| scope.spawn(build)).collect();
        builders
            .into_iter()
            .map(|builder| {
                builder.join().unwrap_or_else(|_| {
                    Err(BackendError::Library(
                        "a session's thread panicked".to_owned(),
                    ))
                })
            })
            .collect()
    })
}

fn spawn(
    name: String,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, BackendError> {
    std::thread::Builder::new()
        .name(name)
        .spawn(body)
        .map_err(|error| BackendError::Library(format!("a thread cannot be started: {error}")))
}
