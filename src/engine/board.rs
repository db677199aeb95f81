//! A request's images on their way: shared with equal ones, found in the cache, or new.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    Engine, FeatureSource, Head, Provenance, Request, Shared, Source, Timing,
    admission::Permit,
    flight::{Cost, Flight, Joined, Key},
    job::{Done, Job, stopped},
    queue::Ahead,
    request::{self, Looked, Looks},
    room::Room,
    sched::{
        estimate::{self, Stage, Steps},
        load::Load,
        rank::{Flow, Rank},
    },
};
use crate::{
    error::{Error, Kind, Result},
    media::{Filter, Preprocess, ResizeMode},
    repository::{BackboneManifest, Resize},
};

/// What a job of a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Position {
    /// Its head of this index.
    Head(usize),
    /// The last image's features, in the host's memory.
    Features,
    /// The last image's row of this size, to be kept where it lies.
    Row([u32; 2]),
}

/// The answer of one job.
pub(super) type Reply = (Position, oneshot::Receiver<Result<Done>>);

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
        Looked {
            images: looks,
            room,
        }: &Looked,
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
            let pixels = looks.last().map_or(0, Looks::pixels);
            let jobs = self.jobs(request, size, (pixels, room), &mut boarded.replies);
            let mut boarding = Boarding {
                shared: &self.shared,
                request,
                permit,
                flow,
                size,
                fresh: &mut fresh,
                complete: &mut complete,
            };
            for (index, ((source, _), looks)) in request.images.iter().zip(looks).enumerate() {
                let slots = slots(&jobs, index);
                if !slots.is_empty() {
                    let (flight, from) = boarding.join(source, looks, slots);
                    boarded.flights.push((flight, from, index));
                }
            }
        }
        // Only what has to be computed must fit into the time that is left.
        let in_time = match fresh.is_empty() {
            true => Ok(()),
            false => self.in_time(request, flow, &fresh),
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
    fn jobs(
        &self,
        request: &Request,
        size: [u32; 2],
        (pixels, room): (u64, &Arc<Room>),
        replies: &mut Vec<Reply>,
    ) -> Jobs {
        let count = request.images.len();
        let mut jobs = Jobs::new();
        let mut add = |position, head: Option<&Arc<Head>>, frames: Vec<usize>, keep| {
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
            let (mut job, reply) = {
                let trace = request.trace.clone();
                let options = match position {
                    Position::Head(index) => request.options_of(index),
                    Position::Features | Position::Row(_) => request.options,
                };
                let how = (options, pixels, Some(Arc::clone(room)));
                Job::new(head.cloned(), rank, frames.len(), how, trace)
            };
            job.keep = keep;
            replies.push((position, reply));
            jobs.push((Arc::new(job), frames));
        };
        for (index, head) in request.heads.iter().enumerate() {
            if head.manifest.input_size == size {
                let frames = request::frames_of(&head.manifest, count);
                add(Position::Head(index), Some(head), frames, None);
            }
        }
        if request.features == Some(size) {
            add(Position::Features, None, vec![count - 1], None);
        }
        for keep in request.live.keep.iter().filter(|keep| keep.size == size) {
            let maps = Some(Arc::clone(&keep.maps));
            add(Position::Row(size), None, vec![count - 1], maps);
        }
        jobs
    }

    /// Refuses at the door what cannot be answered before its deadline, `fresh` being its images that are yet to be
    /// computed, given what comes before it.
    fn in_time(&self, request: &Request, flow: &Flow, fresh: &[Arc<Flight>]) -> Result<()> {
        let Some(deadline) = request.deadline else {
            return Ok(());
        };
        let (shared, now) = (&self.shared, Instant::now());
        let ahead = shared.queue.ahead(&Rank {
            priority: request.priority,
            flow: flow.clone(),
            weights: shared.config.weights(&flow.caller, &flow.head),
            deadline: request.deadline,
        });
        let steps = shared.steps(&request.caller, fresh, ahead.images);
        let own = steps.from(Stage::Encoded);
        if now + own > deadline {
            if shared.trials.allow(own, now) {
                fresh.iter().for_each(|flight| flight.try_nevertheless());
                return Ok(());
            }
            let left = deadline.saturating_duration_since(now);
            let message = "the deadline cannot be met: the work takes longer than what is left";
            let error = Error::new(Kind::DeadlineExceeded, message)
                .with("left_ms", left.as_millis())
                .with("work_ms", own.as_millis());
            shared.turned_away("deadline");
            return Err(error);
        }
        let Ahead { images, wait } = ahead;
        if now + own + wait > deadline {
            shared.turned_away("deadline");
            let message = "the deadline cannot be met: other images come first";
            let delay = wait.clamp(Duration::from_millis(10), Duration::from_secs(5));
            let error = Error::new(Kind::Overloaded, message).retry_after(delay);
            return Err(error
                .with("images", images)
                .with("wait_ms", wait.as_millis()));
        }
        Ok(())
    }
}

impl Shared {
    /// What most requests with these images to compute do not exceed, where `ahead` images come first.
    fn steps(&self, caller: &str, fresh: &[Arc<Flight>], ahead: usize) -> Steps {
        let costs = &self.costs;
        let threads = match self.config.workers {
            0 => self.lanes,
            workers => workers,
        };
        let decode = |flight: &Arc<Flight>| {
            let work = flight.cost.work;
            match flight.cost.load.decode {
                0.0 => Duration::ZERO,
                _ => costs.decoding(work).most(caller, work.size),
            }
        };
        let waiting = ahead + fresh.len();
        let batch = |flight: &Arc<Flight>| costs.joined(flight.size(), waiting, self.lanes);
        Steps {
            decode: estimate::side_by_side(fresh.iter().map(decode), threads),
            batch: fresh.iter().map(batch).max().unwrap_or_default(),
            head: fresh
                .iter()
                .map(|flight| flight.most())
                .max()
                .unwrap_or_default(),
            delivery: costs.delivery.most(),
        }
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
    /// What an image is thought to take, with the jobs that wait for it. A clip's head counts with each of its frames for
    /// its part.
    fn cost(&self, source: &Source, looks: &Looks, slots: &[(Arc<Job>, usize)]) -> Cost {
        let (costs, work) = (&self.shared.costs, looks.work);
        let fits = [looks.height, looks.width] == self.size;
        let decode = match source {
            // Taken as it is.
            Source::Raw { .. } if fits => 0.0,
            // Some cost at least, so that it is told from what is not decoded.
            _ => costs
                .decodes(&self.request.caller, work)
                .as_secs_f64()
                .max(1e-6),
        };
        let heads = slots
            .iter()
            .map(|(job, _)| job.load() / job.frames() as f64);
        Cost {
            work,
            held: looks.held,
            load: Load {
                decode,
                rest: costs.share(self.size) + heads.sum::<f64>(),
            },
        }
    }

    /// Finds the image's features in the cache or in flight, or makes a new flight.
    fn join(
        &mut self,
        source: &Source,
        looks: &Looks,
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
        let cost = self.cost(source, looks, &slots);
        let make = |rank| {
            let preprocess = preprocess(shared.backbone.manifest(), self.size);
            Flight::new(
                key,
                source.clone(),
                preprocess,
                cost,
                rank,
                Arc::clone(self.permit),
            )
            .telling(self.request.live.begun.clone())
        };
        let further = (slots.len() as u64).saturating_sub(1);
        let mut saved = shared.counters.lock();
        saved.multi_head += further;
        drop(saved);
        let kept = || shared.cache.get(&key);
        let joined = shared.flights.join(key, slots, kept, || make(rank.clone()));
        if let (Some(begun), false) = (&self.request.live.begun, matches!(joined, Joined::New(_))) {
            begun.tell();
        }
        match joined {
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
