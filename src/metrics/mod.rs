//! What the server counts and measures, in the Prometheus (OpenMetrics) text format.
//!
//! Two kinds of numbers: instruments that the work itself writes (histograms and counters, atomics behind a table of
//! label sets), and a [`Sample`] that whoever answers a scrape takes of what the engine and the process hold anyway.
//! Every name stands in [`DEFINITIONS`], from which the reference page is made.

mod definitions;
mod end;
mod plain;
mod process;
mod sample;
mod stage;

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use parking_lot::RwLock;
use prometheus_client::{
    encoding::text,
    metrics::{
        counter::Counter, exemplar::HistogramWithExemplars, family::Family, gauge::Gauge,
        histogram::Histogram,
    },
    registry::{Metric, Registry, Unit},
};

pub use definitions::{DEFINITIONS, Definition, Kind};
pub use end::End;
pub use plain::plain;
pub use process::{host_memory, memory_limit, resident};
pub use sample::Sample;
pub use stage::Stage;

/// The media type of [`Metrics::render`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The media type of [`plain`]'s text.
pub const PLAIN_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Callers' names that become label values; those that come later are counted as `other`.
pub const MAX_IDENTITIES: usize = 100;

/// Upper bounds of the buckets for durations: 0.5 ms to 65 s, each twice the one before.
const SECONDS: [f64; 18] = {
    let mut bounds = [0.0005; 18];
    let mut index = 1;
    while index < bounds.len() {
        bounds[index] = bounds[index - 1] * 2.0;
        index += 1;
    }
    bounds
};

/// Upper bounds of the buckets for batch sizes.
const ROWS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// The gRPC codes, as label values.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// How a head's part of a request ends, where rules read it: each is there before it first happens.
const HEAD_CODES: [&str; 4] = ["OK", "HEAD_FAILED", "BACKBONE_FAILED", "INTERNAL"];

type Labels<const N: usize> = [(&'static str, Arc<str>); N];
type Histograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;
type Counters<const N: usize> = Family<Labels<N>, Counter>;
type Gauges<const N: usize> = Family<Labels<N>, Gauge>;
/// Durations, each bucket with a trace of a call that fell into it.
type Traced = HistogramWithExemplars<[(&'static str, String); 1]>;
type Seconds<const N: usize> = Family<Labels<N>, Counter<f64>>;

/// The metrics of a certificate's times, in the order of [`CertificateTimes`].
const CERTIFICATE_TIMES: [&str; 2] = [
    "frostline_certificate_not_before_seconds",
    "frostline_certificate_not_after_seconds",
];

/// From when until when a certificate holds.
#[derive(Debug, Clone)]
pub struct CertificateTimes {
    /// What it is for: `server`, `chain` or `client_ca`.
    pub usage: &'static str,
    /// What it is known by.
    pub name: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
}

/// Names that are label values again and again, so that none is allocated per event.
struct Words {
    stages: [Arc<str>; 6],
    ok: Arc<str>,
    other: Arc<str>,
}

/// The instruments. Cheap to use from any thread.
pub struct Metrics {
    registry: Registry,
    words: Words,
    identities: RwLock<HashSet<Arc<str>>>,
    stages: Histograms<3>,
    calls: Family<Labels<2>, Traced, fn() -> Traced>,
    ended: Counters<2>,
    calls_in_flight: Gauge,
    transport_bytes: Gauge,
    batch_images: Histogram,
    device_seconds: Seconds<3>,
    refused: Counters<1>,
    connections: Gauge,
    connections_ended: Counters<1>,
    resets: Counter,
    head_loads: Counters<2>,
    heads_current: Gauges<1>,
    files_current: Gauges<1>,
    reloads: Counters<2>,
    certificates: [Gauges<2>; 2],
    call_codes: RwLock<HashSet<Arc<str>>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

fn register(registry: &mut Registry, name: &str, metric: impl Metric) {
    let help = definitions::named(name).map_or("", |definition| definition.help);
    match parts(name) {
        (name, Some(unit)) => registry.register_with_unit(name, help, unit, metric),
        (name, None) => registry.register(name, help, metric),
    }
}

/// A metric's name less its unit and the ending of a counter, which the text format adds itself.
fn parts(name: &str) -> (&str, Option<Unit>) {
    let name = name.strip_suffix("_total").unwrap_or(name);
    match name.rsplit_once('_') {
        Some((name, "seconds")) => (name, Some(Unit::Seconds)),
        Some((name, "bytes")) => (name, Some(Unit::Bytes)),
        _ => (name, None),
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let durations: fn() -> Histogram = seconds;
        let traced: fn() -> Traced = || Traced::new(SECONDS.into_iter());
        let mut metrics = Self {
            registry: Registry::default(),
            words: Words {
                stages: Stage::ALL.map(|stage| stage.name().into()),
                ok: "OK".into(),
                other: "other".into(),
            },
            identities: RwLock::default(),
            stages: Family::new_with_constructor(durations),
            calls: Family::new_with_constructor(traced),
            ended: Family::default(),
            calls_in_flight: Gauge::default(),
            transport_bytes: Gauge::default(),
            batch_images: Histogram::new(ROWS),
            device_seconds: Family::default(),
            refused: Family::default(),
            connections: Gauge::default(),
            connections_ended: Family::default(),
            resets: Counter::default(),
            head_loads: Family::default(),
            heads_current: Family::default(),
            files_current: Family::default(),
            reloads: Family::default(),
            certificates: Default::default(),
            call_codes: RwLock::default(),
        };
        let registry = &mut metrics.registry;
        let (stages, calls) = (metrics.stages.clone(), metrics.calls.clone());
        let in_flight = metrics.calls_in_flight.clone();
        register(registry, "frostline_stage_duration_seconds", stages);
        register(registry, "frostline_call_duration_seconds", calls);
        register(registry, "frostline_calls_total", metrics.ended.clone());
        register(registry, "frostline_calls_in_flight", in_flight);
        let transport = metrics.transport_bytes.clone();
        register(registry, "frostline_transport_bytes", transport);
        register(
            registry,
            "frostline_batch_images",
            metrics.batch_images.clone(),
        );
        let device_seconds = metrics.device_seconds.clone();
        register(registry, "frostline_device_seconds_total", device_seconds);
        register(registry, "frostline_refused_total", metrics.refused.clone());
        for end in End::ALL {
            let labels = [("reason", end.name().into())];
            drop(metrics.connections_ended.get_or_create(&labels));
        }
        let (open, ended) = (
            metrics.connections.clone(),
            metrics.connections_ended.clone(),
        );
        register(registry, "frostline_connections", open);
        register(registry, "frostline_connections_ended_total", ended);
        register(registry, "frostline_resets_total", metrics.resets.clone());
        register(
            registry,
            "frostline_head_loads_total",
            metrics.head_loads.clone(),
        );
        let current = metrics.heads_current.clone();
        register(registry, "frostline_head_current", current);
        let current = metrics.files_current.clone();
        register(registry, "frostline_files_current", current);
        register(registry, "frostline_reloads_total", metrics.reloads.clone());
        for (name, family) in CERTIFICATE_TIMES.iter().zip(&metrics.certificates) {
            register(registry, name, family.clone());
        }
        metrics
    }
}

impl Metrics {
    /// A head's part of a request took `took` in `stage`; `code` is `None` where it went well, else the error's reason.
    pub fn stage(&self, stage: Stage, head: &Arc<str>, code: Option<&str>, took: Duration) {
        let labels = [
            ("stage", Arc::clone(&self.words.stages[stage as usize])),
            ("head", Arc::clone(head)),
            ("code", self.code(code)),
        ];
        self.stages
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }

    /// Requests in arrival and unread answers hold `bytes` now.
    pub fn transport_bytes(&self, bytes: u64) {
        self.transport_bytes.set(bytes as i64);
    }

    /// A call begins; drop the guard when it ends.
    pub fn call_begins(&self) -> InFlight {
        self.calls_in_flight.inc();
        InFlight(self.calls_in_flight.clone())
    }

    /// A call of `method` ended with the gRPC code of this name; `trace` is where it is recorded, if it is.
    pub fn call(&self, method: &Arc<str>, code: &str, took: Duration, trace: Option<String>) {
        let code = self.code((code != "OK").then_some(code));
        let service = self.code(Some(service(method)));
        let labels = [("service", service), ("code", Arc::clone(&code))];
        self.ended.get_or_create(&labels).inc();
        let labels = [("method", Arc::clone(method)), ("code", code)];
        let exemplar = trace.map(|id| [("trace_id", id)]);
        let calls = self.calls.get_or_create(&labels);
        calls.observe(took.as_secs_f64(), exemplar, None);
    }

    /// The services of these methods exist: their calls are counted from 0, so that a rate sees the first of each code.
    pub fn serves<'a>(&self, methods: impl Iterator<Item = &'a str>) {
        let services: HashSet<_> = methods.map(service).collect();
        for service in services {
            for code in CODES {
                let labels = [("service", service.into()), ("code", code.into())];
                drop(self.ended.get_or_create(&labels));
            }
        }
    }

    /// The backbone ran on a batch of `images`, padding left out.
    pub fn batch(&self, images: usize) {
        self.batch_images.observe(images as f64);
    }

    /// A lane spent `took` on a graph for `identity`'s use of `head`.
    pub fn device(&self, stage: Stage, head: &Arc<str>, identity: &Arc<str>, took: Duration) {
        let labels = [
            ("stage", Arc::clone(&self.words.stages[stage as usize])),
            ("head", Arc::clone(head)),
            ("identity", self.identity(identity)),
        ];
        self.device_seconds
            .get_or_create(&labels)
            .inc_by(took.as_secs_f64());
    }

    /// Work was refused before any of it was done.
    pub fn refused(&self, reason: &'static str) {
        self.refused
            .get_or_create(&[("reason", reason.into())])
            .inc();
    }

    /// Whether the newest version of the head in the repository serves. All that rules read of a head is there from now
    /// on, at 0 before it happens.
    pub fn head_current(&self, head: &str, serves: bool) {
        let name: Arc<str> = head.into();
        for result in ["loaded", "failed"] {
            let labels = [("head", Arc::clone(&name)), ("result", result.into())];
            drop(self.head_loads.get_or_create(&labels));
        }
        for code in HEAD_CODES {
            let labels = [
                (
                    "stage",
                    Arc::clone(&self.words.stages[Stage::Total as usize]),
                ),
                ("head", Arc::clone(&name)),
                ("code", code.into()),
            ];
            drop(self.stages.get_or_create(&labels));
        }
        let gauge = self.heads_current.get_or_create(&[("head", name)]);
        gauge.set(i64::from(serves));
    }

    /// The head is not to serve any more: it was unloaded, or is not in the repository.
    pub fn head_gone(&self, head: &str) {
        self.heads_current.remove(&[("head", head.into())]);
    }

    /// A connection has come; it is open until the result is dropped.
    #[must_use]
    pub fn connection(&self) -> InFlight {
        self.connections.inc();
        InFlight(self.connections.clone())
    }

    /// A connection was ended, and not by its caller.
    pub fn connection_ended(&self, end: End) {
        let labels = [("reason", end.name().into())];
        self.connections_ended.get_or_create(&labels).inc();
    }

    /// Callers gave up so many calls by resetting their streams.
    pub fn reset_by_callers(&self, calls: u64) {
        self.resets.inc_by(calls);
    }

    /// Files of this kind are read: from now on what becomes of them is told.
    pub fn files_read(&self, files: &str) {
        for result in ["done", "failed"] {
            let labels = [("files", files.into()), ("result", result.into())];
            drop(self.reloads.get_or_create(&labels));
        }
    }

    /// Whether all of what files of this kind say is in use.
    pub fn files_current(&self, files: &str, current: bool) {
        let gauge = self.files_current.get_or_create(&[("files", files.into())]);
        gauge.set(i64::from(current));
    }

    /// Files of this kind have changed, and were taken over in full or not.
    pub fn reloaded(&self, files: &str, done: bool) {
        let result = if done { "done" } else { "failed" };
        let labels = [("files", files.into()), ("result", result.into())];
        self.reloads.get_or_create(&labels).inc();
        self.files_current(files, done);
    }

    /// The certificates in use, and no others. Of several of one name the one that ends first is told.
    pub fn certificates(&self, mut certificates: Vec<CertificateTimes>) {
        certificates.sort_by_key(|one| std::cmp::Reverse(one.not_after));
        self.certificates.iter().for_each(Family::clear);
        for one in certificates {
            for (family, time) in self
                .certificates
                .iter()
                .zip([one.not_before, one.not_after])
            {
                let labels = [
                    ("usage", one.usage.into()),
                    ("name", one.name.as_str().into()),
                ];
                family.get_or_create(&labels).set(time);
            }
        }
    }

    /// A head was loaded while serving, or did not load.
    pub fn head_load(&self, head: &str, loaded: bool) {
        self.head_current(head, loaded);
        let result = if loaded { "loaded" } else { "failed" };
        let labels = [("head", head.into()), ("result", result.into())];
        self.head_loads.get_or_create(&labels).inc();
    }

    /// All of it as text; `sample` is what is not counted here.
    ///
    /// # Errors
    /// Never for what this crate registers: the formatter only fails if the text cannot grow.
    pub fn render(&self, mut sample: Sample) -> Result<String, fmt::Error> {
        process::sample(&mut sample);
        let mut text = String::with_capacity(64 << 10);
        text::encode_registry(&mut text, &self.registry)?;
        let mut sampled = Registry::default();
        sampled.register_collector(Box::new(sample));
        text::encode_registry(&mut text, &sampled)?;
        text::encode_eof(&mut text)?;
        Ok(text)
    }

    /// The name as a label value: itself for the first [`MAX_IDENTITIES`], `other` after that.
    fn identity(&self, name: &Arc<str>) -> Arc<str> {
        if name.is_empty() || self.identities.read().contains(name) {
            return Arc::clone(name);
        }
        let mut known = self.identities.write();
        if known.len() < MAX_IDENTITIES {
            known.insert(Arc::clone(name));
        }
        let value = known.get(name).unwrap_or(&self.words.other);
        Arc::clone(value)
    }

    fn code(&self, code: Option<&str>) -> Arc<str> {
        let Some(code) = code else {
            return Arc::clone(&self.words.ok);
        };
        if let Some(word) = self.call_codes.read().get(code) {
            return Arc::clone(word);
        }
        let word: Arc<str> = code.into();
        self.call_codes.write().insert(Arc::clone(&word));
        word
    }
}

/// The service of a method `package.Service/Method`.
fn service(method: &str) -> &str {
    method
        .split_once('/')
        .map_or(method, |(service, _)| service)
}

/// A call or a connection, counted while it is there.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
