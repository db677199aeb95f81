//! The threads: decoders, and lanes that run graphs.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    Shared, Source, Timing,
    flight::{Flight, Job, JobDone, Landed},
    queue::{Ready, Work},
};
use crate::{
    backend::{BackendError, FeatureBatch, FeatureRow, HeadRow, Lane},
    error::{Error, Kind, Result},
    media::{self, RgbView},
};

/// A decoder's life.
pub(super) fn decode(shared: &Shared) {
    while let Some(flight) = shared.queue.next_encoded() {
        let ready = decode_one(shared, &flight);
        if ready.is_none() {
            shared.flights.remove(&flight);
        }
        shared.queue.decoded(ready);
    }
}

fn decode_one(shared: &Shared, flight: &Arc<Flight>) -> Option<Ready> {
    if !flight.wanted(Instant::now()) {
        shared.counters.lock().abandoned += 1;
        return None;
    }
    // A decoder that panics on a hostile file must cost one image, not a thread.
    let pixels = catch_unwind(AssertUnwindSafe(|| pixels(shared, flight))).unwrap_or_else(|_| {
        Err(Error::new(
            Kind::InvalidImage,
            "the image cannot be decoded",
        ))
    });
    match pixels {
        Ok(pixels) => Some(Ready {
            flight: Arc::clone(flight),
            pixels,
        }),
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

/// A lane's life. When it dies, the engine is over: everything that waits is told.
pub(super) fn run(shared: &Shared, mut lane: Lane) {
    let most = shared.config.max_batch;
    while let Some(work) = shared.queue.next_work(most) {
        let flights: Vec<_> = match &work {
            Work::Batch(batch) => batch
                .iter()
                .map(|ready| Arc::clone(&ready.flight))
                .collect(),
            Work::Jobs(_) => Vec::new(),
        };
        let jobs = match &work {
            Work::Jobs(jobs) => jobs.clone(),
            Work::Batch(_) => Vec::new(),
        };
        let step = AssertUnwindSafe(|| match work {
            Work::Jobs(jobs) => run_jobs(&mut lane, jobs),
            Work::Batch(batch) => run_batch(shared, &mut lane, batch),
        });
        if catch_unwind(step).is_err() {
            let error = Error::new(Kind::Unavailable, "the device thread died");
            let (waiting, complete) = shared.queue.fail();
            flights
                .iter()
                .chain(&waiting)
                .for_each(|flight| flight.fail(&error));
            jobs.iter()
                .chain(&complete)
                .for_each(|job| job.finish(Err(error.clone())));
            return;
        }
    }
}

fn run_batch(shared: &Shared, lane: &mut Lane, mut batch: Vec<Ready>) {
    let now = Instant::now();
    batch.retain(|ready| {
        let wanted = ready.flight.wanted(now);
        if !wanted {
            shared.counters.lock().abandoned += 1;
            shared.flights.remove(&ready.flight);
        }
        wanted
    });
    let mut complete = Vec::new();
    // Callers may have left a batch of a size that is not warmed; it still runs.
    match compute(shared, lane, &batch) {
        Ok(features) => land(shared, &batch, &features, now, &mut complete),
        Err(error) if batch.len() > 1 => {
            tracing::warn!(%error, rows = batch.len(), "a batch failed; its rows are retried alone");
            for ready in batch.chunks(1) {
                let begun = Instant::now();
                match compute(shared, lane, ready) {
                    Ok(features) => land(shared, ready, &features, begun, &mut complete),
                    Err(error) => fail(shared, ready, &error),
                }
            }
        }
        Err(error) => fail(shared, &batch, &error),
    }
    run_jobs(lane, complete);
}

fn compute(
    shared: &Shared,
    lane: &mut Lane,
    batch: &[Ready],
) -> Result<Option<Arc<FeatureBatch>>, BackendError> {
    let Some(first) = batch.first() else {
        return Ok(None);
    };
    let size = [
        first.flight.preprocess.height,
        first.flight.preprocess.width,
    ];
    let features = match batch {
        [one] => lane.run_backbone(size, &one.pixels, 1)?,
        _ => {
            let mut input = Vec::with_capacity(first.pixels.len() * batch.len());
            batch
                .iter()
                .for_each(|ready| input.extend_from_slice(&ready.pixels));
            lane.run_backbone(size, &input, batch.len())?
        }
    };
    let mut counters = shared.counters.lock();
    counters.backbone_rows += batch.len() as u64;
    counters.backbone_batches += 1;
    Ok(Some(Arc::new(features)))
}

fn land(
    shared: &Shared,
    batch: &[Ready],
    features: &Option<Arc<FeatureBatch>>,
    begun: Instant,
    complete: &mut Vec<Arc<Job>>,
) {
    let Some(features) = features else { return };
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

/// Runs complete jobs: those without a head are done, the others batch by head.
fn run_jobs(lane: &mut Lane, jobs: Vec<Arc<Job>>) {
    let now = Instant::now();
    let mut by_head: HashMap<String, Vec<Arc<Job>>> = HashMap::new();
    for job in jobs.into_iter().filter(|job| job.wanted(now)) {
        match &job.head {
            Some(head) => by_head
                .entry(head.manifest.name.clone())
                .or_default()
                .push(job),
            None => {
                let rows = job.rows();
                job.finish(Ok(JobDone {
                    rows,
                    output: None,
                    head_time: Duration::ZERO,
                }));
            }
        }
    }
    for (name, jobs) in by_head {
        run_head(lane, &name, jobs);
    }
}

/// Jobs of one head, each distinct set of rows computed once.
fn run_head(lane: &mut Lane, name: &str, jobs: Vec<Arc<Job>>) {
    let mut calls: Vec<(Vec<FeatureRow>, Vec<Arc<Job>>)> = Vec::new();
    let mut seen: HashMap<Vec<(usize, usize)>, usize> = HashMap::new();
    for job in jobs {
        let rows = job.rows();
        let id = rows.iter().map(FeatureRow::id).collect();
        let index = *seen.entry(id).or_insert_with(|| {
            calls.push((rows, Vec::new()));
            calls.len() - 1
        });
        calls[index].1.push(job);
    }
    let begun = Instant::now();
    if let Err(error) = answer(lane, name, &calls, begun) {
        if calls.len() == 1 {
            refuse(name, &calls[0].1, &error);
            return;
        }
        tracing::warn!(%error, head = name, "a head's batch failed; its calls are retried alone");
        for call in calls.chunks(1) {
            if let Err(error) = answer(lane, name, call, Instant::now()) {
                refuse(name, &call[0].1, &error);
            }
        }
    }
}

fn answer(
    lane: &mut Lane,
    name: &str,
    calls: &[(Vec<FeatureRow>, Vec<Arc<Job>>)],
    begun: Instant,
) -> Result<(), BackendError> {
    let rows: Vec<_> = calls
        .iter()
        .flat_map(|(rows, _)| rows.iter().cloned())
        .collect();
    let batch = Arc::new(lane.run_head(name, &rows, calls.len())?);
    let head_time = begun.elapsed();
    for (index, (rows, jobs)) in calls.iter().enumerate() {
        for job in jobs {
            let output = Some(HeadRow::new(&batch, index));
            job.finish(Ok(JobDone {
                rows: rows.clone(),
                output,
                head_time,
            }));
        }
    }
    Ok(())
}

fn refuse(name: &str, jobs: &[Arc<Job>], error: &BackendError) {
    tracing::error!(%error, head = name, "a head failed");
    let message = format!("the head {name:?} failed: {error}");
    jobs.iter()
        .for_each(|job| job.finish(Err(Error::new(Kind::HeadFailed, message.clone()))));
}
