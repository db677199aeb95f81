//! What a step's end means for those who wait: features land, and what failed is told.

use std::{sync::Arc, time::Instant};

use super::FULL;
use crate::{
    backend::{BackendError, Fault, FeatureBatch, FeatureRow},
    engine::{
        Head, Shared, Timing,
        job::{Done, Extracted, Job},
        landed::{How, Landed},
        live::label,
        observe,
        queue::Ready,
    },
    error::{Error, Kind},
    metrics::Stage,
};

/// The answer of a job without a head.
pub(super) fn extracted(row: FeatureRow) -> Done {
    Done::Features(Extracted {
        row,
        geometry: None,
    })
}

/// Answers a job that keeps a row: a copy of the maps that it wants, so that the rest of the batch is let go of. On a device
/// the copy is enqueued before the memory is used again.
pub(super) fn keep(job: &Job, row: Option<FeatureRow>, maps: &[String]) {
    let wanted = |name: &str| maps.iter().any(|map| map == name);
    let copy = row.and_then(|row| row.detached_of(wanted));
    let Some(copy) = copy else {
        let error = Error::new(Kind::Overloaded, "there is no memory to keep a row");
        return job.finish(Err(error.retry_after(FULL)));
    };
    let geometry = job.geometry();
    let row = copy;
    job.finish(Ok(Done::Features(Extracted { row, geometry })));
}

/// The device is gone: everything that waits is told, and the server ends. Returns what they are told.
pub(super) fn lost(shared: &Shared, error: &BackendError) -> Error {
    tracing::error!(%error, "the device is lost");
    let failure = Error::new(Kind::Unavailable, "the device is lost");
    shared.fail(&failure);
    failure
}

pub(super) fn device_died() -> Error {
    Error::new(Kind::Unavailable, "the device thread died")
}

pub(super) fn land(
    shared: &Shared,
    batch: &[Ready],
    features: &Arc<FeatureBatch>,
    begun: Instant,
    complete: &mut Vec<Arc<Job>>,
) {
    let backbone = begun.elapsed();
    let served = observe::traces(shared, batch.iter().map(|ready| &ready.flight));
    let what = [("images", batch.len().into())];
    let tracer = &shared.config.tracer;
    let trace = tracer.batch("backbone batch", &served, begun, Instant::now(), &what);
    let each = backbone / u32::try_from(batch.len()).unwrap_or(u32::MAX).max(1);
    for (index, ready) in batch.iter().enumerate() {
        let flight = &ready.flight;
        let (geometry, decode) = flight.decoded();
        let landed = Landed {
            row: FeatureRow::new(features, index),
            geometry,
            how: How {
                timing: Timing {
                    queue: begun.duration_since(flight.boarded).saturating_sub(decode),
                    decode,
                    backbone,
                    ..Timing::default()
                },
                batch_size: batch.len(),
                begun: Some(begun),
                batch: trace.clone(),
            },
        };
        let flow = flight.rank().flow;
        shared
            .config
            .metrics
            .device(Stage::Backbone, &label(&flow.head), &flow.caller, each);
        shared.cache.put(flight.key, &landed);
        // Out of the table first: whoever comes later finds the cache or starts anew, never a row about to go.
        shared.flights.remove(flight);
        complete.extend(flight.land(landed));
    }
}

pub(super) fn fail(shared: &Shared, batch: &[Ready], error: &BackendError) {
    tracing::error!(%error, "the backbone failed on an image");
    let message = format!("the backbone failed on this image: {error}");
    let failure = match error.fault() {
        Fault::DeviceLost => Error::new(Kind::Unavailable, "the device is lost"),
        Fault::OutOfMemory => Error::new(Kind::Overloaded, message).retry_after(FULL),
        Fault::Graph => Error::new(Kind::BackboneFailed, message),
    };
    for ready in batch {
        shared.flights.remove(&ready.flight);
        ready.flight.fail(&failure);
    }
}

pub(super) fn refuse(head: &Head, jobs: &[Arc<Job>], error: &BackendError) {
    let name = &head.manifest.name;
    tracing::error!(%error, head = name, "a head failed");
    let message = format!("the head {name:?} failed: {error}");
    let failure = match error.fault() {
        Fault::DeviceLost => Error::new(Kind::Unavailable, "the device is lost"),
        Fault::OutOfMemory => Error::new(Kind::Overloaded, message).retry_after(FULL),
        Fault::Graph => Error::new(Kind::HeadFailed, message),
    };
    jobs.iter().for_each(|job| job.finish(Err(failure.clone())));
}
