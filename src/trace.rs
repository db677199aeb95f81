//! Spans of requests and batches, sent to an OpenTelemetry collector. The only module that sees OpenTelemetry.
//!
//! A call's span continues its caller's trace (`traceparent`), the stages of its images are its children, and a batch,
//! which belongs to many traces, is a trace of its own with links to the calls that it serves. Where tracing is off
//! or a call is not sampled, nothing is recorded and a span costs a comparison.

use std::{
    borrow::Cow,
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use opentelemetry::{
    Context as Parents, KeyValue,
    trace::{
        Link, Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags,
        TraceId, TraceState, Tracer as _, TracerProvider as _,
    },
};
use opentelemetry_otlp::{
    SpanExporter, WithExportConfig, WithTonicConfig,
    tonic_types::transport::{Certificate, ClientTlsConfig},
};
use opentelemetry_sdk::{
    Resource,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SamplingDecision, SamplingResult,
        SdkTracer, SdkTracerProvider, ShouldSample, Span,
    },
};
use thiserror::Error;

use crate::files;

/// Largest file of the collector's authorities, bytes.
const MOST_AUTHORITIES: u64 = 4 << 20;

/// A collector that cannot be used.
#[derive(Debug, Error)]
#[error("cannot send traces to {endpoint}: {detail}")]
pub struct TraceError {
    endpoint: String,
    detail: String,
}

/// How traces are sent.
#[derive(Debug, Clone)]
pub struct TraceConfig {
    /// The collector's OTLP address over gRPC, such as `http://127.0.0.1:4317`, or over TLS, `https://…`.
    pub endpoint: String,
    /// File of authorities that its certificate may come from, PEM; the system's if unset.
    pub authorities: Option<PathBuf>,
    /// Share of the calls without a caller's decision that are recorded, 0 to 1.
    pub ratio: f64,
    /// Spans that wait to be sent; those beyond are dropped.
    pub queue: usize,
    /// Time between two sendings.
    pub interval: Duration,
    /// The name of this service.
    pub service: String,
}

/// Where in a trace something happens; outside any trace by default.
#[derive(Debug, Clone, Default)]
pub struct Context(Option<Arc<SpanContext>>);

impl From<&SpanContext> for Context {
    fn from(context: &SpanContext) -> Self {
        Self(context.is_valid().then(|| Arc::new(context.clone())))
    }
}

impl Context {
    /// Reads the headers `traceparent` and `tracestate`; `None` if the first is not of the form that W3C Trace Context
    /// gives it.
    #[must_use]
    pub fn from_headers(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let mut parts = traceparent.split('-');
        let (version, trace, span, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let lower = |text: &str, length: usize| {
            text.len() == length
                && text
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        // Later versions may add parts; this one has none.
        let whole = lower(version, 2) && lower(trace, 32) && lower(span, 16) && lower(flags, 2);
        if !whole || version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
        let state = tracestate.and_then(|state| state.parse::<TraceState>().ok());
        let context = SpanContext::new(
            TraceId::from_hex(trace).ok()?,
            SpanId::from_hex(span).ok()?,
            flags,
            true,
            state.unwrap_or_default(),
        );
        context.is_valid().then(|| Self::from(&context))
    }

    /// The header `traceparent` for those called from here; `None` outside any trace.
    #[must_use]
    pub fn traceparent(&self) -> Option<String> {
        self.0.as_ref().map(|context| {
            let (trace, span) = (context.trace_id(), context.span_id());
            format!("00-{trace}-{span}-{:02x}", context.trace_flags())
        })
    }

    /// The trace's number in hexadecimal; `None` outside any trace.
    #[must_use]
    pub fn trace_id(&self) -> Option<String> {
        self.0
            .as_ref()
            .map(|context| context.trace_id().to_string())
    }

    /// Whether what happens here is recorded.
    #[must_use]
    pub fn sampled(&self) -> bool {
        self.0.as_ref().is_some_and(|context| context.is_sampled())
    }
}

/// An attribute's value.
#[derive(Debug, Clone)]
pub enum Value {
    /// A number.
    Count(usize),
    /// A text.
    Text(Arc<str>),
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Count(value)
    }
}

impl From<&Arc<str>> for Value {
    fn from(value: &Arc<str>) -> Self {
        Self::Text(Arc::clone(value))
    }
}

impl From<Value> for opentelemetry::Value {
    fn from(value: Value) -> Self {
        match value {
            Value::Count(count) => Self::I64(i64::try_from(count).unwrap_or(i64::MAX)),
            Value::Text(text) => Self::String(text.into()),
        }
    }
}

/// What is said of a span beside its name and time.
pub type Attributes<'a> = &'a [(&'static str, Value)];

/// Makes spans, or nothing where tracing is off.
#[derive(Clone, Default)]
pub struct Tracer(Option<Inner>);

#[derive(Clone)]
struct Inner {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.0.is_some() { "on" } else { "off" };
        f.debug_tuple("Tracer").field(&state).finish()
    }
}

impl Tracer {
    /// Sends spans as `config` says. Call it inside the async runtime, which then carries the connection; a collector
    /// that is away is tried again with each batch of spans.
    ///
    /// # Errors
    /// An address that is not one, or authorities that cannot be read.
    pub fn start(config: &TraceConfig) -> Result<Self, TraceError> {
        let failed = |detail: String| TraceError {
            endpoint: config.endpoint.clone(),
            detail,
        };
        let mut exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&config.endpoint)
            .with_timeout(Duration::from_secs(5));
        if config.endpoint.starts_with("https://") {
            let tls = match &config.authorities {
                None => ClientTlsConfig::new().with_native_roots(),
                Some(path) => {
                    let pem = files::read(path, MOST_AUTHORITIES)
                        .map_err(|error| failed(format!("{}: {error}", path.display())))?;
                    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
                }
            };
            exporter = exporter.with_tls_config(tls);
        }
        let exporter = exporter
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(config.queue)
            .with_max_export_batch_size(config.queue.min(512))
            .with_scheduled_delay(config.interval)
            .build();
        let processor = BatchSpanProcessor::builder(exporter)
            .with_batch_config(batches)
            .build();
        let resource = Resource::builder()
            .with_service_name(config.service.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(LinksOrParent(Sampler::ParentBased(Box::new(
                Sampler::TraceIdRatioBased(config.ratio),
            ))))
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("frostline");
        Ok(Self(Some(Inner { provider, tracer })))
    }

    /// Begins the span of a call that came with `parent`.
    #[must_use]
    pub fn call(&self, method: &str, parent: Context) -> Call {
        let Some(inner) = &self.0 else {
            return Call {
                span: None,
                context: parent,
            };
        };
        let method = method.trim_start_matches('/');
        let mut attributes = vec![KeyValue::new("rpc.system", "grpc")];
        if let Some((service, name)) = method.rsplit_once('/') {
            attributes.push(KeyValue::new("rpc.service", service.to_owned()));
            attributes.push(KeyValue::new("rpc.method", name.to_owned()));
        }
        let span = inner
            .tracer
            .span_builder(method.to_owned())
            .with_kind(SpanKind::Server)
            .with_attributes(attributes)
            .start_with_context(&inner.tracer, &parent.parents());
        Call {
            context: span.span_context().into(),
            span: Some(span),
        }
    }

    /// Records something that happened under `parent` from `begun` to `ended`, if `parent` is recorded.
    pub fn stage(
        &self,
        name: &'static str,
        parent: &Context,
        begun: Instant,
        ended: Instant,
        attributes: Attributes<'_>,
    ) {
        if let Some(inner) = &self.0
            && parent.sampled()
        {
            inner.record(name, parent, (begun, ended), attributes, Vec::new());
        }
    }

    /// Records a batch that served the calls `served`, if one of them is recorded: a trace of its own with a link to each
    /// of those. Returns where it is, to be linked to by the calls' own spans.
    pub fn batch(
        &self,
        name: &'static str,
        served: &[Context],
        begun: Instant,
        ended: Instant,
        attributes: Attributes<'_>,
    ) -> Context {
        let Some(inner) = &self.0 else {
            return Context::default();
        };
        let sampled = served.iter().filter(|context| context.sampled());
        let links: Vec<_> = sampled.filter_map(Context::link).collect();
        if links.is_empty() {
            return Context::default();
        }
        inner.record(name, &Context::default(), (begun, ended), attributes, links)
    }

    /// Records a call's share of the batch at `batch`.
    pub fn share(
        &self,
        name: &'static str,
        parent: &Context,
        begun: Instant,
        ended: Instant,
        batch: &Context,
        attributes: Attributes<'_>,
    ) {
        if let Some(inner) = &self.0
            && parent.sampled()
        {
            let links = batch.link().into_iter().collect();
            inner.record(name, parent, (begun, ended), attributes, links);
        }
    }

    /// Whether spans are made at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Sends what waits. Blocks for at most `limit`.
    pub fn stop(&self, limit: Duration) {
        if let Some(inner) = &self.0
            && let Err(error) = inner.provider.shutdown_with_timeout(limit)
        {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

impl Inner {
    fn record(
        &self,
        name: &'static str,
        parent: &Context,
        (begun, ended): (Instant, Instant),
        attributes: Attributes<'_>,
        links: Vec<Link>,
    ) -> Context {
        let at = |instant: Instant| SystemTime::now().checked_sub(instant.elapsed());
        let (Some(start), Some(end)) = (at(begun), at(ended)) else {
            return Context::default();
        };
        let attributes = attributes
            .iter()
            .map(|(key, value)| KeyValue::new(*key, value.clone()));
        let mut span = self
            .tracer
            .span_builder(name)
            .with_kind(SpanKind::Internal)
            .with_start_time(start)
            .with_attributes(attributes)
            .with_links(links)
            .start_with_context(&self.tracer, &parent.parents());
        span.end_with_timestamp(end);
        span.span_context().into()
    }
}

impl Context {
    fn parents(&self) -> Parents {
        match &self.0 {
            Some(context) => Parents::new().with_remote_span_context((**context).clone()),
            None => Parents::new(),
        }
    }

    fn link(&self) -> Option<Link> {
        let context = self.0.as_ref()?;
        Some(Link::with_context((**context).clone()))
    }
}

/// The span of a call under way; it ends when dropped.
#[derive(Debug)]
pub struct Call {
    span: Option<Span>,
    context: Context,
}

impl Call {
    /// Where its stages are recorded; the caller's own context where tracing is off.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Notes something about the call.
    pub fn note(&mut self, key: &'static str, value: impl Into<Cow<'static, str>>) {
        if let Some(span) = &mut self.span
            && span.is_recording()
        {
            span.set_attribute(KeyValue::new(key, value.into()));
        }
    }

    /// Notes how the call ended: its gRPC code by number and name, and whether that is the server's fault.
    pub fn ended(&mut self, code: i32, name: &'static str, fault: bool) {
        if let Some(span) = &mut self.span
            && span.is_recording()
        {
            span.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(code)));
            if fault {
                span.set_status(Status::error(name));
            }
        }
    }
}

/// Samples what its parent is sampled for or the ratio picks, and whatever links to something sampled: a batch.
#[derive(Debug, Clone)]
struct LinksOrParent(Sampler);

impl ShouldSample for LinksOrParent {
    fn should_sample(
        &self,
        parent: Option<&Parents>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        if links.iter().any(|link| link.span_context.is_sampled()) {
            return SamplingResult {
                decision: SamplingDecision::RecordAndSample,
                attributes: Vec::new(),
                trace_state: TraceState::default(),
            };
        }
        self.0
            .should_sample(parent, trace, name, kind, attributes, links)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_and_written_as_it_was() {
        let context = Context::from_headers(GOOD, Some("vendor=1"));
        assert_eq!(
            context.as_ref().and_then(Context::traceparent).as_deref(),
            Some(GOOD)
        );
        assert!(context.is_some_and(|context| context.sampled()));
    }

    #[test]
    fn what_is_not_a_traceparent_starts_a_trace_of_its_own() {
        let zeros = format!("00-{}-{}-01", "0".repeat(32), "0".repeat(16));
        let long = format!("{GOOD}-00");
        for bad in [
            "",
            "00",
            "00-0af7-b7ad-01",
            &GOOD.to_uppercase(),
            &zeros,
            &long,
            &GOOD.replace("00-", "ff-"),
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333\u{e9}-01",
        ] {
            assert!(Context::from_headers(bad, None).is_none(), "{bad}");
        }
        // A later version may say more.
        let later = GOOD.replace("00-0af", "01-0af") + "-what";
        assert!(Context::from_headers(&later, None).is_some());
    }

    #[test]
    fn without_a_collector_the_callers_context_goes_through() {
        let tracer = Tracer::default();
        let parent = Context::from_headers(GOOD, None).unwrap_or_default();
        let call = tracer.call("/a/b", parent);
        assert_eq!(call.context().traceparent().as_deref(), Some(GOOD));
    }
}
