//! A request's images on their way: shared with equal ones, found in the cache, or new.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    Engine, FeatureSource, Head, Provenance, Request, Shared, Source, Timing,
    admission::Permit,
    flight::{Flight, Joined, Key},
    job::{Done, Job},
    request,
    schedule::{Flow, Rank},
};
use crate::{
    error::{Error, Kind, Result},
    media::{Filter, Preprocess, ResizeMode, sample_frames},
    repository::{BackboneManifest, Resize, Task},
};

/// The answer of one job; `None` is the wish for features.
type Reply = (Option<usize>, oneshot::Receiver<Result<Done>>);

/// A request's jobs, each with the images that it reads.
type Jobs = Vec<(Arc<Job>, Vec<usize>)>;

/// A request on its way. Dropping it gives up: images that nobody else waits for are taken out of the queue.
pub(super) struct Boarded {
    pub(super) shared: Arc<Shared>,
    pub(super) replies: Vec<Reply>,
    /// Each image's flight, where its features come from, and its field.
    pub(super) flights: Vec<(Arc<Flight>, FeatureSource, usize)>,
}

impl Engine {
    /// Puts the request's images on their way and attaches the jobs that read them.
    pub(super) fn board(
        &self,
        request: &Request,
        permit: &Arc<Permit>,
        flow: &Flow,
    ) -> Result<Boarded> {
        let mut boarded = Boarded {
            shared: Arc::clone(&self.shared),
            replies: Vec::new(),
            flights: Vec::with_capacity(request.images.len()),
        };
        let (mut fresh, mut complete) = (Vec::new(), Vec::new());
        for size in request::sizes(request) {
            let jobs = self.jobs(request, size, &mut boarded.replies);
            let mut boarding = Boarding {
                shared: &self.shared,
                request,
                permit,
                flow,
                size,
                fresh: &mut fresh,
                complete: &mut complete,
            };
            for (index, (source, _)) in request.images.iter().enumerate() {
                let slots = slots(&jobs, index);
                if !slots.is_empty() {
                    let (flight, from) = boarding.join(source, slots);
                    boarded.flights.push((flight, from, index));
                }
            }
        }
        // Only what has to be computed must fit into the time that is left.
        let in_time = match fresh.is_empty() {
            true => Ok(()),
            false => self.in_time(request),
        };
        if in_time.is_err() {
            // Others may have joined meanwhile; theirs go on.
            boarded.replies.clear();
            let now = Instant::now();
            fresh.retain(|flight| {
                let wanted = flight.wanted(now, Duration::ZERO);
                if !wanted {
                    self.shared.flights.remove(flight);
                }
                wanted
            });
        }
        if let Err(refused) = self.shared.queue.push(fresh, &self.shared.costs) {
            self.shared.give_up(&refused, &stopped());
        }
        in_time?;
        if !complete.is_empty() {
            self.shared.queue.push_jobs(complete);
        }
        Ok(boarded)
    }

    /// The jobs of the request that read images of `size`.
    fn jobs(&self, request: &Request, size: [u32; 2], replies: &mut Vec<Reply>) -> Jobs {
        let count = request.images.len();
        let mut jobs = Jobs::new();
        let mut add = |position, head: Option<&Arc<Head>>, frames: Vec<usize>| {
            let name = head.map_or_else(|| Arc::from(""), |head| Arc::clone(&head.name));
            let rank = Rank {
                priority: request.priority,
                weights: self.shared.config.weights(&request.caller, &name),
                flow: Flow {
                    caller: Arc::clone(&request.caller),
                    head: name,
                },
                deadline: request.deadline,
            };
            let (job, reply) = {
                let trace = request.trace.clone();
                Job::new(head.cloned(), rank, frames.len(), request.options, trace)
            };
            replies.push((position, reply));
            jobs.push((Arc::new(job), frames));
        };
        for (index, head) in request.heads.iter().enumerate() {
            if head.manifest.input_size == size {
                let frames = match head.manifest.task {
                    Task::Action => sample_frames(
                        count,
                        head.manifest.frames(),
                        head.manifest.postprocess.frame_stride,
                    ),
                    _ => vec![count - 1],
                };
                add(Some(index), Some(head), frames);
            }
        }
        if request.features == Some(size) {
            add(None, None, vec![count - 1]);
        }
        jobs
    }

    /// Refuses at the door what cannot be answered before its deadline, given what waits before it.
    fn in_time(&self, request: &Request) -> Result<()> {
        let Some(deadline) = request.deadline else {
            return Ok(());
        };
        let (shared, now) = (&self.shared, Instant::now());
        let ahead = shared.queue.ahead(request.priority, request.deadline);
        let heads = request.heads.iter().map(|head| head.cost.most()).max();
        let sizes = request::sizes(request);
        let with = ahead.waiting + request.images.len();
        let joined = |size: &[u32; 2]| shared.costs.joined(*size, with, shared.lanes);
        let batch = sizes.iter().map(joined).max();
        let encoded = |(source, _): &(Source, String)| matches!(source, Source::Encoded(_));
        let decode = match request.images.iter().any(encoded) {
            true => shared.costs.decode.get(),
            false => Duration::ZERO,
        };
        let own = decode
            + batch.unwrap_or_default()
            + heads.unwrap_or_default()
            + shared.costs.finish.most();
        if now + own > deadline {
            let left = deadline.saturating_duration_since(now);
            let message = format!(
                "the deadline cannot be met: {left:.1?} are left and the work takes {own:.1?}"
            );
            let error = Error::new(Kind::DeadlineExceeded, message);
            shared.refused(&error);
            return Err(error);
        }
        let images = ahead.images();
        let wait = shared.wait(images);
        if now + own + wait > deadline {
            shared.counters.lock().refused += 1;
            shared.config.metrics.refused("deadline");
            let message = format!(
                "the deadline cannot be met: {images} images come first, which take about {wait:.1?}"
            );
            let delay = wait.clamp(Duration::from_millis(10), Duration::from_secs(5));
            return Err(Error::new(Kind::Overloaded, message).retry_after(delay));
        }
        Ok(())
    }
}

/// The jobs that read image `index`, each with the slot it fills.
fn slots(jobs: &Jobs, index: usize) -> Vec<(Arc<Job>, usize)> {
    let reads = |(job, frames): &(Arc<Job>, Vec<usize>)| {
        let slots = frames.iter().enumerate().filter(|(_, f)| **f == index);
        let job = Arc::clone(job);
        slots
            .map(move |(slot, _)| (Arc::clone(&job), slot))
            .collect::<Vec<_>>()
    };
    jobs.iter().flat_map(reads).collect()
}

/// What boarding one input size needs.
struct Boarding<'a> {
    shared: &'a Shared,
    request: &'a Request,
    permit: &'a Arc<Permit>,
    flow: &'a Flow,
    size: [u32; 2],
    fresh: &'a mut Vec<Arc<Flight>>,
    complete: &'a mut Vec<Arc<Job>>,
}

impl Boarding<'_> {
    /// Finds the image's features in the cache or in flight, or makes a new flight.
    fn join(
        &mut self,
        source: &Source,
        slots: Vec<(Arc<Job>, usize)>,
    ) -> (Arc<Flight>, FeatureSource) {
        let shared = self.shared;
        let scope = match shared.config.share_across_callers {
            true => "",
            false => &*self.request.caller,
        };
        let key = Key::new(&shared.hash_key, scope, source, self.size);
        let rank = Rank {
            priority: self.request.priority,
            flow: self.flow.clone(),
            weights: shared.config.weights(&self.flow.caller, &self.flow.head),
            deadline: self.request.deadline,
        };
        let make = |rank| {
            let preprocess = preprocess(shared.backbone.manifest(), self.size);
            Flight::new(
                key,
                source.clone(),
                preprocess,
                rank,
                Arc::clone(self.permit),
            )
        };
        let further = (slots.len() as u64).saturating_sub(1);
        let mut saved = shared.counters.lock();
        saved.multi_head += further;
        drop(saved);
        let kept = || shared.cache.get(&key);
        match shared.flights.join(key, slots, kept, || make(rank.clone())) {
            Joined::Kept(flight, ready) => {
                shared.counters.lock().cached += 1;
                self.complete.extend(ready);
                (flight, FeatureSource::Cached)
            }
            Joined::New(flight) => {
                self.fresh.push(Arc::clone(&flight));
                (flight, FeatureSource::Computed)
            }
            Joined::Shared(flight, ready) => {
                shared.counters.lock().shared += 1;
                shared.queue.promote(&flight, rank);
                self.complete.extend(ready);
                (flight, FeatureSource::Shared)
            }
        }
    }
}

impl Boarded {
    /// The first image that could not be computed, with the index of its field.
    pub(super) fn failure(&self) -> Option<(Error, usize)> {
        self.flights
            .iter()
            .filter_map(|(flight, _, field)| Some((flight.outcome()?.err()?, *field)))
            // Given up because its jobs were: those tell why.
            .find(|(error, _)| error.kind() != Kind::Cancelled)
    }

    /// Where the features came from and what the last image's took.
    pub(super) fn provenance(&self) -> Provenance {
        let landed: Vec<_> = self
            .flights
            .iter()
            .filter_map(|(flight, source, _)| Some((flight.outcome()?.ok()?, *source)))
            .collect();
        let computed = landed
            .iter()
            .filter(|(_, source)| *source == FeatureSource::Computed);
        let (timing, batch_size) = match landed.last() {
            Some((how, source)) if *source != FeatureSource::Cached => (how.timing, how.batch_size),
            _ => (Timing::default(), 0),
        };
        Provenance {
            source: landed
                .iter()
                .map(|(_, source)| *source)
                .max()
                .unwrap_or(FeatureSource::Computed),
            backbone_rows: computed.count(),
            batch_size,
            timing,
        }
    }
}

impl Drop for Boarded {
    fn drop(&mut self) {
        // Gone first, so that the jobs see that nobody waits for them.
        self.replies.clear();
        let now = Instant::now();
        let mut left: Vec<_> = self
            .flights
            .drain(..)
            .map(|(flight, ..)| flight)
            .filter(|flight| !flight.is_done() && !flight.wanted(now, Duration::ZERO))
            .collect();
        left.iter()
            .for_each(|flight| self.shared.flights.remove(flight));
        // Those that no longer wait are noticed, and counted, by the thread that holds them.
        left.retain(|flight| self.shared.queue.forget(flight));
        self.shared.drop_flights(&mut left);
    }
}

pub(super) fn stopped() -> Error {
    Error::new(Kind::Unavailable, "the server is stopping")
}

pub(super) fn preprocess(backbone: &BackboneManifest, [height, width]: [u32; 2]) -> Preprocess {
    Preprocess {
        mode: match backbone.input.resize {
            Resize::Letterbox => ResizeMode::Letterbox,
            Resize::Stretch => ResizeMode::Stretch,
            Resize::CenterCrop => ResizeMode::CenterCrop {
                fraction: backbone.input.crop_fraction(),
            },
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
