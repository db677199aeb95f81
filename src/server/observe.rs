//! What every call is accompanied by: its place in a trace, its number in the logs, its duration by method and code.

use std::{
    future::Future,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context as Task, Poll, ready},
    time::Instant,
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::{Code, Status};
use tower::Service;
use tower_layer::Layer;
use tracing::Span;

use super::{
    methods::Methods,
    peer::Peer,
    quiet::Quiet,
    refusals::{Refusals, Refused},
    status::name,
};
use crate::{
    metrics::{InFlight, Metrics},
    trace::{self, Context, Tracer},
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Longest part of a message to a refused caller that is logged, characters.
const MOST_MESSAGE: usize = 300;
/// The longest number of a request that is taken from its caller.
pub const MAX_REQUEST_ID: usize = 128;

/// What a call is known by; in the extensions of its request.
#[derive(Debug, Clone)]
pub(super) struct CallRecord(Arc<Record>);

#[derive(Debug)]
struct Record {
    trace: Context,
    request_id: HeaderValue,
    identity: OnceLock<Arc<str>>,
    span: Span,
    /// Whether the server has the method.
    known: bool,
}

impl CallRecord {
    /// The call's place in a trace.
    pub(super) fn trace(&self) -> &Context {
        &self.0.trace
    }

    /// The call's number.
    pub(super) fn request_id(&self) -> String {
        self.0.request_id.to_str().unwrap_or_default().to_owned()
    }

    /// Whether the server has the method that is called.
    pub(super) fn known(&self) -> bool {
        self.0.known
    }

    /// Notes who calls, once that is known.
    pub(super) fn identify(&self, name: &Arc<str>) {
        if !name.is_empty() && self.0.identity.set(Arc::clone(name)).is_ok() {
            self.0.span.record("identity", &**name);
        }
    }
}

/// Adds [`Observe`] to a service.
#[derive(Debug, Clone)]
pub(super) struct ObserveLayer {
    pub(super) metrics: Arc<Metrics>,
    pub(super) tracer: Tracer,
    pub(super) methods: Methods,
    pub(super) refusals: Refusals,
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        let layer = self.clone();
        Observe { inner, layer }
    }
}

/// Accompanies each call of a service.
#[derive(Debug, Clone)]
pub(super) struct Observe<S> {
    inner: S,
    layer: ObserveLayer,
}

impl<S, B, R> Service<Request<B>> for Observe<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<Observed<R>>;
    type Error = S::Error;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let ObserveLayer {
            metrics,
            tracer,
            methods,
            refusals,
        } = &self.layer;
        let (method, known) = methods.get(request.uri().path());
        let text = |name: HeaderName| request.headers().get(name).and_then(|v| v.to_str().ok());
        let parent = text(TRACEPARENT).and_then(|parent| {
            let state = text(HeaderName::from_static("tracestate"));
            Context::from_headers(parent, state)
        });
        let request_id = request_id(request.headers());
        let mut call = tracer.call(&method, parent.unwrap_or_default());
        let span = tracing::info_span!(
            "call",
            method = &*method,
            request_id = request_id.to_str().unwrap_or_default(),
            trace_id = call.context().trace_id(),
            identity = tracing::field::Empty,
        );
        call.note(
            "request.id",
            request_id.to_str().unwrap_or_default().to_owned(),
        );
        let record = CallRecord(Arc::new(Record {
            trace: call.context().clone(),
            request_id: request_id.clone(),
            identity: OnceLock::new(),
            span: span.clone(),
            known,
        }));
        request.extensions_mut().insert(record.clone());
        let ending = Ending {
            method,
            started: Instant::now(),
            code: None,
            message: String::new(),
            peer: request.extensions().get::<Arc<Peer>>().cloned(),
            refusals: refusals.clone(),
            metrics: Arc::clone(metrics),
            call,
            record,
            _in_flight: metrics.call_begins(),
        };
        let inner = span.in_scope(|| self.inner.call(request));
        Answering {
            inner,
            span,
            request_id: Some(request_id),
            ending: Some(ending),
        }
    }
}

/// The caller's number for the request if it is printable and short, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    static PREFIX: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0_u8));
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let given = headers.get(REQUEST_ID).filter(|value| {
        let bytes = value.as_bytes();
        (1..=MAX_REQUEST_ID).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    });
    given.cloned().unwrap_or_else(|| {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        HeaderValue::try_from(format!("{:016x}-{number:x}", *PREFIX))
            .unwrap_or_else(|_| HeaderValue::from_static("-"))
    })
}

pin_project! {
    /// A call whose answer has not begun.
    pub(super) struct Answering<F> {
        #[pin]
        inner: F,
        span: Span,
        request_id: Option<HeaderValue>,
        ending: Option<Ending>,
    }
}

impl<F, R, E> Future for Answering<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<Observed<R>>, E>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let entered = this.span.enter();
        let answer = ready!(this.inner.poll(task));
        drop(entered);
        let mut ending = this.ending.take();
        let mut response = match answer {
            Ok(response) => response,
            Err(error) => {
                if let Some(ending) = &mut ending {
                    ending.code = Some(Code::Internal);
                }
                return Poll::Ready(Err(error));
            }
        };
        if let Some(ending) = &mut ending {
            // An answer without a body has its code here.
            ending.read(response.headers());
            let context = ending.call.context();
            let traceparent = context.traceparent().and_then(|text| text.try_into().ok());
            let headers = response.headers_mut();
            headers.extend(this.request_id.take().map(|id| (REQUEST_ID, id)));
            headers.extend(traceparent.map(|text| (TRACEPARENT, text)));
        }
        Poll::Ready(Ok(response.map(|inner| Observed { inner, ending })))
    }
}

pin_project! {
    /// The body of an answer, whose trailers have the call's code.
    pub(super) struct Observed<R> {
        #[pin]
        inner: R,
        ending: Option<Ending>,
    }
}

impl<R: Body> Body for Observed<R> {
    type Data = R::Data;
    type Error = R::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        task: &mut Task<'_>,
    ) -> Poll<Option<Result<Frame<R::Data>, R::Error>>> {
        let this = self.project();
        let mut frame = ready!(this.inner.poll_frame(task));
        if let (Some(Ok(frame)), Some(ending)) = (&mut frame, this.ending.as_ref())
            && let Some(trailers) = frame.trailers_mut()
            && trailers.get("grpc-status").is_none_or(|code| code != "0")
        {
            // Who gets an error looks at what comes with it, not at what came before.
            trailers.insert(REQUEST_ID, ending.record.0.request_id.clone());
        }
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(trailers), Some(mut ending)) = (
                    frame.trailers_ref(),
                    this.ending.take_if(|_| frame.is_trailers()),
                ) {
                    ending.read(trailers);
                }
            }
            Some(Err(_)) | None => drop(this.ending.take()),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Lines about calls that failed, and about those that the server could not take.
static FAULTS: Quiet = Quiet::new(10, 1);
static UNAVAILABLE: Quiet = Quiet::new(10, 1);

/// Says how a call ended when it is dropped; one that was dropped without a code was cancelled by its caller.
struct Ending {
    method: Arc<str>,
    started: Instant,
    code: Option<Code>,
    /// What a refused caller was told.
    message: String,
    peer: Option<Arc<Peer>>,
    refusals: Refusals,
    metrics: Arc<Metrics>,
    call: trace::Call,
    record: CallRecord,
    _in_flight: InFlight,
}

impl Ending {
    fn read(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            let code = Code::from_bytes(status.as_bytes());
            self.code = Some(code);
            if Refusals::concern(code)
                && let Some(status) = Status::from_header_map(headers)
            {
                self.message = status.message().chars().take(MOST_MESSAGE).collect();
            }
        }
    }

    /// Puts a refusal on record.
    fn refused(&self, code: Code) {
        let record = &self.record.0;
        let from = self.peer.as_ref();
        let from = from.map(|peer| peer.origin.host());
        self.refusals.tell(&Refused {
            code,
            method: &self.method,
            request_id: record.request_id.to_str().unwrap_or_default(),
            identity: record.identity.get().map_or("", |name| name),
            from: from.as_deref().unwrap_or_default(),
            message: &self.message,
        });
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        let (name, took) = (name(code), self.started.elapsed());
        let context = self.call.context();
        let trace = context.trace_id().filter(|_| context.sampled());
        self.metrics.call(&self.method, name, took, trace);
        let fault = matches!(code, Code::Unknown | Code::Internal | Code::DataLoss);
        if let Some(identity) = self.record.0.identity.get() {
            self.call.note("enduser.id", identity.to_string());
        }
        self.call.ended(code as i32, name, fault);
        let _entered = self.record.0.span.enter();
        let ms = took.as_secs_f64() * 1e3;
        if Refusals::concern(code) {
            self.refused(code);
        }
        match code {
            Code::Unknown | Code::Internal | Code::DataLoss => {
                if let Some(untold) = FAULTS.may_tell() {
                    tracing::error!(target: "frostline::call", code = name, ms, untold, "ended");
                }
            }
            Code::Unavailable => {
                if let Some(untold) = UNAVAILABLE.may_tell() {
                    tracing::warn!(target: "frostline::call", code = name, ms, untold, "ended");
                }
            }
            _ => tracing::debug!(target: "frostline::call", code = name, ms, "ended"),
        }
    }
}
