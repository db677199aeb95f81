//! The threads: lanes run graphs, workers decode and postprocess; on a CPU the lanes do both.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    Shared, Source, Timing,
    cost::Plan,
    flight::{Flight, Landed},
    job::{Done, Finish, Job},
    queue::{Ready, Role, Work},
    request::Head,
};
use crate::{
    backend::{BackendError, FeatureBatch, FeatureRow, HeadRow},
    error::{Error, Kind, Result},
    media::{self, RgbView},
};

/// One thread of the engine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thread {
    pub(super) role: Role,
    /// Which sessions are its own.
    pub(super) lane: usize,
}

impl Thread {
    /// The thread's life. When one that runs graphs dies, the engine is over: everything that waits is told.
    pub(super) fn run(self, shared: &Shared) {
        let mut busy = false;
        let mut dropped = Vec::new();
        // Work on the CPU since the last batch: what a lane does for its images beside running graphs.
        let mut beside = Duration::ZERO;
        while let Some(work) = shared
            .queue
            .next(self.role, &mut busy, &shared.costs, &mut dropped)
        {
            shared.drop_flights(&mut dropped);
            let begun = Instant::now();
            match work {
                Work::Nothing => {}
                Work::Finish(finish) => finish.run(),
                Work::Decode(flight) => {
                    let ready = decode(shared, &flight);
                    if ready.is_none() {
                        shared.flights.remove(&flight);
                    }
                    shared.queue.decoded(ready);
                }
                Work::Jobs(jobs) => {
                    let held = jobs.clone();
                    if !self.guarded(shared, || self.run_jobs(shared, jobs)) {
                        let error = device_died();
                        held.iter().for_each(|job| job.finish(Err(error.clone())));
                        return;
                    }
                    device_time(shared, begun.elapsed());
                }
                Work::Batch(batch, plan) => {
                    let rows = batch.len() as u32;
                    let held: Vec<_> = batch.iter().map(|r| Arc::clone(&r.flight)).collect();
                    if !self.guarded(shared, || self.run_batch(shared, batch, plan)) {
                        let error = device_died();
                        held.iter().for_each(|flight| flight.fail(&error));
                        return;
                    }
                    device_time(shared, begun.elapsed());
                    let all = begun.elapsed() + std::mem::take(&mut beside);
                    shared.costs.row.add(all / rows.max(1));
                    continue;
                }
            }
            beside += begun.elapsed();
        }
    }

    /// Runs a step with the device; `false` if it panicked, everything that waits then being told.
    fn guarded(self, shared: &Shared, step: impl FnOnce()) -> bool {
        if catch_unwind(AssertUnwindSafe(step)).is_ok() {
            return true;
        }
        shared.fail(&device_died());
        false
    }

    fn run_batch(self, shared: &Shared, mut batch: Vec<Ready>, plan: Plan) {
        // Rows of one head, and a clip's frames, next to each other: their heads then read them in place.
        if batch.len() > 2 {
            batch.sort_by_cached_key(|ready| ready.flight.order());
        }
        let mut complete = Vec::new();
        let begun = Instant::now();
        match self.compute(shared, &batch, plan.bucket) {
            Ok(features) => land(shared, &batch, &features, begun, &mut complete),
            Err(error) if batch.len() > 1 => {
                tracing::warn!(%error, rows = batch.len(), "a batch failed; its rows are retried alone");
                for ready in batch.chunks(1) {
                    let begun = Instant::now();
                    match self.compute(shared, ready, shared.costs.fit(size(ready), 1)) {
                        Ok(features) => land(shared, ready, &features, begun, &mut complete),
                        Err(error) => fail(shared, ready, &error),
                    }
                }
            }
            Err(error) => fail(shared, &batch, &error),
        }
        drop(batch);
        self.run_jobs(shared, complete);
    }

    fn compute(
        self,
        shared: &Shared,
        batch: &[Ready],
        bucket: usize,
    ) -> Result<Arc<FeatureBatch>, BackendError> {
        let size = size(batch);
        let begun = Instant::now();
        let features = match batch {
            [one] if bucket == 1 => shared.backbone.run(self.lane, size, &one.pixels, 1)?,
            _ => {
                let row = batch.first().map_or(0, |ready| ready.pixels.len());
                let mut input = Vec::with_capacity(row * bucket);
                batch
                    .iter()
                    .for_each(|ready| input.extend_from_slice(&ready.pixels));
                input.resize(row * bucket, 0);
                shared.backbone.run(self.lane, size, &input, bucket)?
            }
        };
        shared.costs.ran(size, bucket, begun.elapsed());
        let mut counters = shared.counters.lock();
        counters.backbone_rows += batch.len() as u64;
        counters.backbone_padding += (bucket - batch.len()) as u64;
        counters.backbone_batches += 1;
        Ok(Arc::new(features))
    }

    /// Runs complete jobs: those without a head are done, the others batch by head.
    fn run_jobs(self, shared: &Shared, jobs: Vec<Arc<Job>>) {
        let now = Instant::now();
        let mut by_head: Vec<(Arc<Head>, Vec<Arc<Job>>)> = Vec::new();
        for job in jobs {
            if !job.wanted(now, Duration::ZERO) {
                continue;
            }
            let Some(head) = &job.head else {
                job.finish(Ok(Done {
                    features: job.rows().pop(),
                    outcome: None,
                    head_time: Duration::ZERO,
                    postprocess_time: Duration::ZERO,
                    computed: now,
                }));
                continue;
            };
            match by_head.iter_mut().find(|(h, _)| Arc::ptr_eq(h, head)) {
                Some((_, jobs)) => jobs.push(job),
                None => by_head.push((Arc::clone(head), vec![job])),
            }
        }
        for (head, jobs) in by_head {
            self.run_head(shared, &head, jobs);
        }
    }

    /// Jobs of one head, each distinct set of rows computed once.
    fn run_head(self, shared: &Shared, head: &Arc<Head>, jobs: Vec<Arc<Job>>) {
        let mut calls: Vec<Call> = Vec::with_capacity(jobs.len());
        for job in jobs {
            let rows = job.rows();
            if rows.is_empty() {
                // Finished meanwhile: its caller gave up.
                continue;
            }
            let same = |call: &&mut Call| {
                let pairs = call.rows.iter().zip(&rows);
                pairs.clone().count() == rows.len() && pairs.clone().all(|(a, b)| a.id() == b.id())
            };
            match calls.iter_mut().find(same) {
                Some(call) => call.jobs.push(job),
                None => calls.push(Call {
                    rows,
                    jobs: vec![job],
                }),
            }
        }
        if calls.is_empty() {
            return;
        }
        let most = shared.config.max_batch.max(1);
        for calls in calls.chunks(most) {
            let Err(error) = self.answer(shared, head, calls) else {
                continue;
            };
            if let [call] = calls {
                refuse(head, &call.jobs, &error);
                continue;
            }
            let name = &head.manifest.name;
            tracing::warn!(%error, head = name, "a head's batch failed; its calls are retried alone");
            for call in calls.chunks(1) {
                if let Err(error) = self.answer(shared, head, call) {
                    refuse(head, &call[0].jobs, &error);
                }
            }
        }
    }

    fn answer(self, shared: &Shared, head: &Arc<Head>, calls: &[Call]) -> Result<(), BackendError> {
        let begun = Instant::now();
        let rows: Vec<_> = calls.iter().flat_map(|c| c.rows.iter().cloned()).collect();
        let batch = head.model.run(self.lane, &rows, calls.len())?;
        let (batch, head_time, computed) = (Arc::new(batch), begun.elapsed(), Instant::now());
        head.cost.add(head_time);
        let mut finishes = Vec::with_capacity(calls.len());
        for (index, call) in calls.iter().enumerate() {
            finishes.extend(call.jobs.iter().map(|job| Finish {
                job: Arc::clone(job),
                row: HeadRow::new(&batch, index),
                head_time,
                computed,
            }));
        }
        let here = shared.queue.push_finishes(finishes, self.role.cpu);
        here.into_iter().flatten().for_each(Finish::run);
        Ok(())
    }
}

/// One call of a head's batch, and the jobs that want it.
struct Call {
    rows: Vec<FeatureRow>,
    jobs: Vec<Arc<Job>>,
}

fn size(batch: &[Ready]) -> [u32; 2] {
    batch.first().map_or([0, 0], |ready| {
        let preprocess = &ready.flight.preprocess;
        [preprocess.height, preprocess.width]
    })
}

fn device_died() -> Error {
    Error::new(Kind::Unavailable, "the device thread died")
}

fn device_time(shared: &Shared, took: Duration) {
    let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    shared.device_nanos.fetch_add(nanos, Ordering::Relaxed);
}

fn decode(shared: &Shared, flight: &Arc<Flight>) -> Option<Ready> {
    // A decoder that panics on a hostile file must cost one image, not a thread.
    let begun = Instant::now();
    let pixels = catch_unwind(AssertUnwindSafe(|| pixels(shared, flight))).unwrap_or_else(|_| {
        Err(Error::new(
            Kind::InvalidImage,
            "the image cannot be decoded",
        ))
    });
    match pixels {
        Ok(pixels) => {
            shared.costs.decode.add(begun.elapsed());
            Some(Ready {
                flight: Arc::clone(flight),
                pixels,
                decoded: true,
            })
        }
        Err(error) => {
            flight.fail(&error);
            None
        }
    }
}

fn pixels(shared: &Shared, flight: &Flight) -> Result<Bytes> {
    let preprocess = &flight.preprocess;
    let begun = Instant::now();
    let mut row = vec![0; preprocess.height as usize * preprocess.width as usize * 3];
    let geometry = match &flight.source {
        Source::Encoded(bytes) => {
            let image = media::decode(bytes, &shared.config.media)?;
            media::preprocess_into(image.view(), preprocess, &mut row)?
        }
        Source::Raw { width, height, rgb } => {
            let view = RgbView::new(*width, *height, rgb)?;
            media::preprocess_into(view, preprocess, &mut row)?
        }
    };
    flight.set_decoded(geometry, begun.elapsed());
    Ok(row.into())
}

fn land(
    shared: &Shared,
    batch: &[Ready],
    features: &Arc<FeatureBatch>,
    begun: Instant,
    complete: &mut Vec<Arc<Job>>,
) {
    let backbone = begun.elapsed();
    for (index, ready) in batch.iter().enumerate() {
        let flight = &ready.flight;
        let (geometry, decode) = flight.decoded();
        let landed = Landed {
            row: FeatureRow::new(features, index),
            geometry,
            timing: Timing {
                queue: begun.duration_since(flight.boarded).saturating_sub(decode),
                decode,
                backbone,
                ..Timing::default()
            },
            batch_size: batch.len(),
        };
        shared.cache.put(flight.key, &landed);
        // Out of the table first: whoever comes later finds the cache or starts anew, never a row about to go.
        shared.flights.remove(flight);
        complete.extend(flight.land(landed));
    }
}

fn fail(shared: &Shared, batch: &[Ready], error: &BackendError) {
    tracing::error!(%error, "the backbone failed on an image");
    for ready in batch {
        shared.flights.remove(&ready.flight);
        let message = format!("the backbone failed on this image: {error}");
        ready
            .flight
            .fail(&Error::new(Kind::BackboneFailed, message));
    }
}

fn refuse(head: &Head, jobs: &[Arc<Job>], error: &BackendError) {
    let name = &head.manifest.name;
    tracing::error!(%error, head = name, "a head failed");
    let message = format!("the head {name:?} failed: {error}");
    jobs.iter()
        .for_each(|job| job.finish(Err(Error::new(Kind::HeadFailed, message.clone()))));
}
