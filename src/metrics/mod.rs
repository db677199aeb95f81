//! What the server counts and measures, in the Prometheus (OpenMetrics) text format.
//!
//! Two kinds of numbers: instruments that the work itself writes (histograms and counters, atomics behind a table of
//! label sets), and a [`Sample`] that whoever answers a scrape takes of what the engine and the process hold anyway.
//! Every name stands in [`DEFINITIONS`], from which the reference page is made.

mod definitions;
mod process;
mod sample;

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use parking_lot::RwLock;
use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Metric, Registry},
};

pub use definitions::{DEFINITIONS, Definition, Kind};
pub use process::host_memory;
pub use sample::Sample;

/// The media type of [`Metrics::render`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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
type Seconds<const N: usize> = Family<Labels<N>, Counter<f64>>;

/// A step of a request's way, as the label `stage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for a lane, decoding left out.
    Queue,
    /// Decoding and resizing the image.
    Decode,
    /// The backbone's batch.
    Backbone,
    /// The head's batch.
    Head,
    /// From the head's output to the result.
    Postprocess,
    /// From the request's arrival in the engine to its answer.
    Total,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 6] = [
        Self::Queue,
        Self::Decode,
        Self::Backbone,
        Self::Head,
        Self::Postprocess,
        Self::Total,
    ];

    /// The label's value.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Decode => "decode",
            Self::Backbone => "backbone",
            Self::Head => "head",
            Self::Postprocess => "postprocess",
            Self::Total => "total",
        }
    }
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
    calls: Histograms<2>,
    ended: Counters<2>,
    calls_in_flight: Gauge,
    batch_images: Histogram,
    device_seconds: Seconds<3>,
    refused: Counters<1>,
    head_loads: Counters<2>,
    heads_current: Gauges<1>,
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
    // The text format adds the ending of a counter itself.
    registry.register(name.strip_suffix("_total").unwrap_or(name), help, metric);
}

impl Default for Metrics {
    fn default() -> Self {
        let durations: fn() -> Histogram = seconds;
        let mut metrics = Self {
            registry: Registry::default(),
            words: Words {
                stages: Stage::ALL.map(|stage| stage.name().into()),
                ok: "OK".into(),
                other: "other".into(),
            },
            identities: RwLock::default(),
            stages: Family::new_with_constructor(durations),
            calls: Family::new_with_constructor(durations),
            ended: Family::default(),
            calls_in_flight: Gauge::default(),
            batch_images: Histogram::new(ROWS),
            device_seconds: Family::default(),
            refused: Family::default(),
            head_loads: Family::default(),
            heads_current: Family::default(),
            call_codes: RwLock::default(),
        };
        let registry = &mut metrics.registry;
        let (stages, calls) = (metrics.stages.clone(), metrics.calls.clone());
        let in_flight = metrics.calls_in_flight.clone();
        register(registry, "frostline_stage_duration_seconds", stages);
        register(registry, "frostline_call_duration_seconds", calls);
        register(registry, "frostline_calls_total", metrics.ended.clone());
        register(registry, "frostline_calls_in_flight", in_flight);
        register(
            registry,
            "frostline_batch_images",
            metrics.batch_images.clone(),
        );
        let device_seconds = metrics.device_seconds.clone();
        register(registry, "frostline_device_seconds_total", device_seconds);
        register(registry, "frostline_refused_total", metrics.refused.clone());
        register(
            registry,
            "frostline_head_loads_total",
            metrics.head_loads.clone(),
        );
        let current = metrics.heads_current.clone();
        register(registry, "frostline_head_current", current);
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

    /// A call begins; drop the guard when it ends.
    pub fn call_begins(&self) -> InFlight {
        self.calls_in_flight.inc();
        InFlight(self.calls_in_flight.clone())
    }

    /// A call of `method` ended with the gRPC code of this name.
    pub fn call(&self, method: &Arc<str>, code: &str, took: Duration) {
        let code = self.code((code != "OK").then_some(code));
        let service = self.code(Some(service(method)));
        let labels = [("service", service), ("code", Arc::clone(&code))];
        self.ended.get_or_create(&labels).inc();
        let labels = [("method", Arc::clone(method)), ("code", code)];
        self.calls
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
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

/// A call under way.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn callers_beyond_the_bound_share_one_label() {
        let metrics = Metrics::default();
        for caller in 0..MAX_IDENTITIES + 50 {
            let name: Arc<str> = format!("caller-{caller}").into();
            metrics.device(Stage::Head, &"h".into(), &name, Duration::from_secs(1));
        }
        let text = metrics.render(Sample::default()).unwrap();
        let series = text
            .lines()
            .filter(|line| line.starts_with("frostline_device_seconds_total{"));
        assert_eq!(series.count(), MAX_IDENTITIES + 1);
        let other =
            r#"frostline_device_seconds_total{stage="head",head="h",identity="other"} 50.0"#;
        assert!(text.contains(other), "{text}");
    }

    #[test]
    fn what_names_hold_cannot_break_the_format() {
        let metrics = Metrics::default();
        let name: Arc<str> = "a\"b\n\\c".into();
        metrics.device(Stage::Head, &"h".into(), &name, Duration::from_secs(1));
        let text = metrics.render(Sample::default()).unwrap();
        assert!(text.contains(r#"identity="a\"b\n\\c""#), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_call_is_in_flight_until_its_guard_is_dropped() {
        let metrics = Metrics::default();
        let guard = metrics.call_begins();
        let text = |metrics: &Metrics| metrics.render(Sample::default()).unwrap();
        assert!(text(&metrics).contains("frostline_calls_in_flight 1\n"));
        drop(guard);
        assert!(text(&metrics).contains("frostline_calls_in_flight 0\n"));
    }
}
