//! The door that every call passes, whichever service it is for: who calls, whether it may, how much of it is under way,
//! and a time for its message to come and for its answer to be read.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{HeaderName, Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

use super::{
    ServerConfig,
    answer::{Answer, Permits},
    auth::Authenticator,
    budget::{Budget, Ledger},
    foreign,
    identity::Identity,
    message::{Bounds, Framing, Message},
    methods::Methods,
    observe::CallRecord,
    packing::{self, Aside, Packing},
    party::Party,
    peer::Peer,
    places::{Eviction, Places},
    quota::Quotas,
    status::status,
    unpacked::Unpacked,
};
use crate::{
    error::{Error, Result},
    metrics::Metrics,
};

/// Bytes of the largest message to the health service, and to others whose messages are names.
const HEALTH_BYTES: usize = 4 << 10;
const NAMES_BYTES: usize = 64 << 10;

/// Time for the message of a call that comes without an identity to a method open to all.
const OPEN_READ: Duration = Duration::from_secs(5);

/// Makes the door in front of the services.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    auth: Option<Authenticator>,
    quotas: Arc<Quotas>,
    metrics: Arc<Metrics>,
    places: Arc<Places>,
    budget: Arc<Budget>,
    most_bytes: usize,
    read: Duration,
    write: Duration,
    most_headers: usize,
    /// Paths of methods whose caller sends many messages.
    streaming: Vec<String>,
    methods: Methods,
    /// Whether messages may be packed.
    packing: bool,
    aside: Aside,
}

impl Guard {
    /// `streaming` are the paths of those of the `methods` whose caller sends many messages.
    ///
    /// # Errors
    /// A file of keys that cannot be used.
    pub(super) fn new(
        config: &ServerConfig,
        streaming: Vec<String>,
        methods: Methods,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let auth = config.auth.as_ref();
        let auth = auth.map(|auth| Authenticator::new(auth, &metrics));
        Ok(Self {
            shared: Arc::new(Shared {
                auth: auth.transpose()?,
                quotas: Arc::new(Quotas::new(Arc::clone(&metrics))),
                places: Places::new(config.transport.calls, config.transport.connections),
                budget: Budget::new(config.transport.bytes, Arc::clone(&metrics)),
                metrics,
                most_bytes: config.max_request_bytes,
                read: config.transport.read,
                write: config.transport.write,
                most_headers: config.transport.header_bytes as usize,
                streaming,
                methods,
                packing: config.compression,
                aside: Aside::default(),
            }),
        })
    }
}

/// A call that has been let in.
struct Admitted {
    identity: Identity,
    party: Party,
    permits: Permits,
    /// What ends it early, if it is an open one.
    eviction: Option<Eviction>,
}

impl Shared {
    /// How many messages come of a call of this path.
    fn framing(&self, path: &str) -> Framing {
        match self.streaming.iter().any(|streaming| streaming == path) {
            true => Framing::Stream,
            false => Framing::One,
        }
    }

    /// Lets a call in, or says why not.
    fn admit(&self, request: &Request<Body>) -> Result<Admitted> {
        foreign::check_headers(request.headers(), self.most_headers)?;
        let peer = request.extensions().get::<Arc<Peer>>();
        let method = method(request.uri().path());
        let identity = match &self.auth {
            None => Identity::default(),
            Some(auth) => {
                let certificate = peer.and_then(|peer| peer.certificate.as_ref());
                let strike = |_: &Error| peer.into_iter().for_each(|peer| peer.state.strike());
                let identity = auth.identify(method, request.headers(), certificate);
                let identity = identity.inspect_err(strike)?;
                // Before anything is refused to it, so that it is known to whom.
                let record = request.extensions().get::<CallRecord>();
                if let Some(record) = record {
                    record.identify(&identity.name());
                }
                // What there is not is told to whoever is let in.
                if record.is_none_or(CallRecord::known) {
                    auth.permit(&identity, method).inspect_err(strike)?;
                }
                identity
            }
        };
        let party = Party::of(&identity, peer);
        let quota = match method.starts_with("Health/") {
            // A probe late by its sender's own rate would say that the server is not well.
            true => self.quotas.enter(&identity.unhurried(), Instant::now())?,
            false => self.quotas.enter(&identity, Instant::now())?,
        };
        let (place, eviction) = if identity.name().is_empty() && asks_for_state(method) {
            let (place, eviction) = self.places.enter_open(&party);
            (place, Some(eviction))
        } else {
            self.budget.check(&party)?;
            let connection = peer.map_or(0, |peer| Arc::as_ptr(&peer.state).addr());
            let place = self.places.enter(&party, connection);
            let place = place.inspect_err(|_| self.metrics.refused("full"))?;
            (place, None)
        };
        let permits = Permits::new(place, quota);
        Ok(Admitted {
            identity,
            party,
            permits,
            eviction,
        })
    }

    /// What bounds the messages to `method`.
    fn bounds(&self, method: &str, open: bool) -> Bounds {
        let most_bytes = match method {
            _ if method.starts_with("Health/") => HEALTH_BYTES,
            "GRPCInferenceService/ModelInfer" | "GRPCInferenceService/ModelStreamInfer" => {
                self.most_bytes
            }
            _ if method.starts_with("VisionService/") => self.most_bytes,
            _ => NAMES_BYTES,
        };
        Bounds {
            most_bytes: most_bytes.min(self.most_bytes),
            read: if open {
                self.read.min(OPEN_READ)
            } else {
                self.read
            },
        }
    }
}

/// Whether `Service/Method` tells how the server is, or what it has: methods that are open to all by default.
fn asks_for_state(method: &str) -> bool {
    method.starts_with("Health/") || method.starts_with("ServerReflection/")
}

/// `Service/Method` of a call's path, without the package.
fn method(path: &str) -> &str {
    let path = path.strip_prefix('/').unwrap_or(path);
    let end = path.find('/').unwrap_or(path.len());
    let start = path[..end].rfind('.').map_or(0, |dot| dot + 1);
    &path[start..]
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded {
            inner,
            shared: Arc::clone(&self.shared),
        }
    }
}

/// The services behind the door.
#[derive(Debug, Clone)]
pub(super) struct Guarded<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = &self.shared;
        let refuse = |refusal| -> Self::Future { Box::pin(async move { Ok(refusal) }) };
        if let Some(foreign) = foreign::answer(&request) {
            shared.metrics.refused("not_grpc");
            return refuse(foreign);
        }
        let Admitted {
            identity,
            party,
            permits,
            eviction,
        } = match shared.admit(&request) {
            Ok(admitted) => admitted,
            Err(error) => return refuse(status(&error).into_http()),
        };
        let record = request.extensions().get::<CallRecord>();
        if record.is_some_and(|record| !record.known()) {
            let unknown = foreign::unknown_method(request.uri().path(), &shared.methods);
            return refuse(unknown.into_http());
        }
        let active = request
            .extensions()
            .get::<Arc<Peer>>()
            .map(|peer| peer.begin());
        let framing = shared.framing(request.uri().path());
        let packed = match Packing::of_request(request.headers(), shared.packing) {
            Ok(packed) => packed,
            Err(refusal) => return refuse(refusal.into_http()),
        };
        let asked = Packing::of_answer(request.headers(), packed);
        let asked = asked.filter(|_| shared.packing);
        let asked = asked.map(|packing| (packing, shared.aside.clone()));
        let write = shared.write;
        let bounds = shared.bounds(method(request.uri().path()), eviction.is_some());
        let account = shared.budget.account(party.clone());
        let ledger = (framing == Framing::Stream).then(|| Ledger::new(&shared.budget, &party));
        let unread = shared.budget.account(party);
        let mut request = request.map(|body| {
            let message = Message::new(body, framing, packed.is_some(), bounds, account);
            match packed {
                None => Body::new(message),
                Some(packing) => {
                    let aside = shared.aside.clone();
                    Body::new(Unpacked::new(message, packing, bounds.most_bytes, aside))
                }
            }
        });
        if packed.is_some() {
            // The services see plain messages.
            request.headers_mut().remove(packing::ENCODING);
        }
        if let Some(pixels) = shared.quotas.pixels(&identity) {
            request.extensions_mut().insert(pixels);
        }
        request.extensions_mut().insert(identity);
        if let Some(ledger) = ledger {
            request.extensions_mut().insert(ledger);
        }
        let answering = self.inner.call(request);
        Box::pin(async move {
            let mut eviction = eviction;
            let answer = match &mut eviction {
                None => answering.await?,
                Some(eviction) => tokio::select! {
                    answer = answering => answer?,
                    error = eviction => return Ok(status(&error).into_http()),
                },
            };
            let mut response = foreign::refine(answer);
            if let Some((packing, _)) = &asked {
                let encoding = HeaderName::from_static(packing::ENCODING);
                response.headers_mut().insert(encoding, packing.header());
            }
            Ok(response.map(|body| {
                let answer = Answer::new(body, asked, write, unread, permits, active, eviction);
                Body::new(answer)
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_named_without_their_package() {
        assert_eq!(
            method("/frostline.v1.VisionService/Detect"),
            "VisionService/Detect"
        );
        assert_eq!(method("/Health/Check"), "Health/Check");
        assert_eq!(method("/a.b/c.d/e"), "b/c.d/e");
        assert_eq!(method(""), "");
        assert_eq!(method("/"), "");
    }
}
