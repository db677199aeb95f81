//! What the engine tells of its work: numbers for a scrape, and the stages of a request.

use std::{sync::Arc, time::Instant};

use super::{Analysis, Engine, Shared, board::Boarded, flight::Flight, job::Computed};
use crate::{
    error::Result,
    metrics::{self, Sample, Stage},
    trace::Context,
};

impl Engine {
    /// Adds what the engine holds and has counted to `out`.
    pub fn sample(&self, out: &mut Sample) {
        let (load, counters, config) = (self.load(), self.counters(), self.config());
        for (name, value) in [
            ("frostline_backbone_images_total", counters.backbone_rows),
            ("frostline_batch_padding_total", counters.backbone_padding),
            ("frostline_images_dropped_total", counters.abandoned),
            ("frostline_cache_hits_total", counters.cached),
            ("frostline_cache_misses_total", self.shared.cache.misses()),
            (
                "frostline_cache_evictions_total",
                self.shared.cache.evictions(),
            ),
        ] {
            out.add(name, value as f64);
        }
        for (reason, value) in [
            ("multi_head", counters.multi_head),
            ("in_flight", counters.shared),
            ("cache", counters.cached),
        ] {
            let labels = vec![("reason", reason.to_owned())];
            out.labelled("frostline_backbone_runs_saved_total", labels, value as f64);
        }
        for (name, value) in [
            ("frostline_cache_bytes", load.cache_bytes),
            ("frostline_cache_limit_bytes", self.shared.cache.capacity()),
            ("frostline_queued_images", load.queued),
            ("frostline_images_in_flight", load.in_flight),
            ("frostline_images_in_flight_limit", config.admission.images),
            ("frostline_lanes", load.lanes),
            ("frostline_workers", load.workers),
        ] {
            out.add(name, value as f64);
        }
        let queued = load.queued_work.as_secs_f64();
        out.add("frostline_queued_work_seconds", queued);
        for (name, spent) in [
            ("frostline_lane_busy_seconds_total", load.lanes_busy),
            ("frostline_worker_busy_seconds_total", load.workers_busy),
        ] {
            for (work, spent) in spent.by_kind() {
                let labels = vec![("work", work.to_owned())];
                out.labelled(name, labels, spent.as_secs_f64());
            }
        }
        self.sample_models(out);
        self.sample_device(out);
    }

    /// What is served, and what its batches cost.
    fn sample_models(&self, out: &mut Sample) {
        for (curve, used) in self.curves() {
            for (images, seconds) in &curve.points {
                let labels = vec![
                    ("height", curve.size[0].to_string()),
                    ("width", curve.size[1].to_string()),
                    ("images", images.to_string()),
                    ("used", used.contains(images).to_string()),
                ];
                out.labelled("frostline_batch_cost_seconds", labels, *seconds);
            }
        }
        for head in self.heads() {
            let labels = vec![
                ("head", head.manifest.name.clone()),
                ("version", head.manifest.version.clone()),
                ("task", head.manifest.task.to_string()),
            ];
            out.labelled("frostline_head_info", labels, 1.0);
        }
        let backbone = self.backbone();
        let labels = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("backbone", backbone.name.clone()),
            ("backbone_version", backbone.version.clone()),
            ("fingerprint", self.identity().to_owned()),
        ];
        out.labelled("frostline_build_info", labels, 1.0);
    }
    /// Memory, and what was copied to a device and back.
    fn sample_device(&self, out: &mut Sample) {
        let device = self.shared.runtime.device();
        match device.memory() {
            Some((free, total)) => {
                for (kind, bytes) in [("used", total.saturating_sub(free)), ("total", total)] {
                    let labels = vec![("kind", kind.to_owned())];
                    out.labelled("frostline_device_memory_bytes", labels, bytes as f64);
                }
            }
            None => metrics::host_memory(out),
        }
        let copied = device.copied();
        for (direction, bytes) in [("to_device", copied.to_device), ("to_host", copied.to_host)] {
            let labels = vec![("direction", direction.to_owned())];
            out.labelled("frostline_device_copy_bytes_total", labels, bytes as f64);
        }
    }
}

impl Shared {
    /// Counts a request that was turned away at the door, and why.
    pub(super) fn turned_away(&self, reason: &'static str) {
        self.config.metrics.refused(reason);
        self.counters.lock().refused += 1;
    }

    /// Notes how a request went, for each of its heads; one that only wanted features counts under an empty name.
    pub(super) fn note(&self, heads: &[Arc<str>], started: Instant, answer: &Result<Analysis>) {
        let metrics = &self.config.metrics;
        let none = [Arc::<str>::from("")];
        let heads = if heads.is_empty() { &none } else { heads };
        let took = started.elapsed();
        let analysis = match answer {
            Ok(analysis) => analysis,
            Err(error) => {
                let reason = Some(error.kind().reason());
                return heads
                    .iter()
                    .for_each(|head| metrics.stage(Stage::Total, head, reason, took));
            }
        };
        let timing = &analysis.provenance.timing;
        for (index, head) in heads.iter().enumerate() {
            let result = analysis.heads.get(index).map(|(_, result)| result);
            if let Some(Err(error)) = result {
                metrics.stage(Stage::Total, head, Some(error.kind().reason()), took);
                continue;
            }
            metrics.stage(Stage::Total, head, None, took);
            metrics.stage(Stage::Queue, head, None, timing.queue);
            // A cached or shared image was decoded and computed for somebody else.
            if analysis.provenance.backbone_rows > 0 {
                metrics.stage(Stage::Decode, head, None, timing.decode);
                metrics.stage(Stage::Backbone, head, None, timing.backbone);
            }
        }
    }

    /// Notes a head's own stages.
    pub(super) fn note_head(&self, head: &Arc<str>, done: &Computed, trace: &Context) {
        let (metrics, tracer) = (&self.config.metrics, &self.config.tracer);
        metrics.stage(Stage::Head, head, None, done.head_time);
        metrics.stage(Stage::Postprocess, head, None, done.postprocess_time);
        if trace.sampled() {
            let begun = done.computed - done.head_time;
            let name = [("head", head.into())];
            tracer.share("head", trace, begun, done.computed, &done.batch, &name);
            let begun = done.postprocess_begun;
            let ended = begun + done.postprocess_time;
            tracer.stage("postprocess", trace, begun, ended, &name);
        }
    }
}

impl Boarded {
    /// Records the stages of each image under the call's span.
    pub(super) fn spans(&self, started: Instant, trace: &Context) {
        if !trace.sampled() {
            return;
        }
        let tracer = &self.shared.config.tracer;
        for (flight, source, _) in &self.flights {
            let Some(Ok(how)) = flight.outcome() else {
                continue;
            };
            let from = [("features", format!("{source:?}").to_lowercase().into())];
            let from = from.map(|(key, text): (_, Arc<str>)| (key, (&text).into()));
            let Some(computing) = how
                .begun
                .filter(|_| *source != super::FeatureSource::Cached)
            else {
                tracer.stage("cache", trace, started, started, &from);
                continue;
            };
            // A shared image may have been on its way before this request came.
            let boarded = flight.boarded.max(started);
            tracer.stage("queue", trace, boarded, computing.max(boarded), &from);
            if let Some((begun, ended)) = flight.decoding() {
                tracer.stage("decode", trace, begun, ended, &[]);
            }
            let ended = computing + how.timing.backbone;
            tracer.share("backbone", trace, computing, ended, &how.batch, &[]);
        }
    }
}

/// Where the calls are that wait for these images; nothing where no spans are made.
pub(super) fn traces<'a>(
    shared: &Shared,
    flights: impl Iterator<Item = &'a Arc<Flight>>,
) -> Vec<Context> {
    match shared.config.tracer.is_on() {
        true => flights.flat_map(|flight| flight.traces()).collect(),
        false => Vec::new(),
    }
}
