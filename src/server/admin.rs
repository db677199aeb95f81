//! The admin port, over HTTP: `/livez`, `/readyz`, `/startedz`, `/metrics`, and `/log` to see and change the log's filter.
//!
//! It is up before the models are loaded, so that a long start can be watched. It speaks HTTP/1.1 alone, to so many
//! connections at once that a probe always finds a place, and not to pages that a browser was led here by.

use std::{
    collections::VecDeque,
    io::Write,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Extension, Router,
    extract::{ConnectInfo, DefaultBodyLimit, Request, State},
    http::{HeaderMap, StatusCode, header, uri::Authority},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use flate2::{Compression, write::GzEncoder};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::net::TcpListener;

use super::{
    admin_tokens::AdminTokens,
    life::{Life, Phase},
};
use crate::{
    engine::Engine,
    metrics::{self, CONTENT_TYPE, Metrics, PLAIN_CONTENT_TYPE, Sample},
    telemetry::{AUDIT, LogFilter},
};

/// Most connections at once; one more closes the oldest, so that a probe always finds a place.
const MOST_CONNECTIONS: usize = 64;

/// Time for a request's headers to come, and for a connection to bring its next request.
const HEADERS: Duration = Duration::from_secs(5);

/// Largest sum of a request's headers, bytes (the least that the library takes).
const HEADER_BYTES: usize = 8 << 10;

/// The longest filter of the log that the admin port takes, in bytes.
pub const MAX_LOG_FILTER: usize = 4096;

/// The admin port.
#[derive(Clone)]
pub struct Admin(Arc<Shared>);

struct Shared {
    life: Life,
    metrics: Arc<Metrics>,
    engine: OnceLock<Arc<Engine>>,
    log: LogFilter,
    access: AdminAccess,
}

/// Whom the admin port serves.
#[derive(Debug, Clone)]
pub struct AdminAccess {
    /// Whether others than this machine may change the log's filter.
    pub remote_log: bool,
    /// Names under which it is called, beside addresses, `localhost` and names without a dot; `*.suffix` stands for all
    /// that end so. A page whose name was made to lead here (DNS rebinding) is refused by them.
    pub hosts: Vec<String>,
    /// Who may read metrics and the log's filter, and change that; whoever reaches them if unset. Probes ask nobody.
    pub tokens: Option<Arc<AdminTokens>>,
}

impl Default for AdminAccess {
    fn default() -> Self {
        Self {
            remote_log: false,
            hosts: vec!["*.svc".to_owned(), "*.cluster.local".to_owned()],
            tokens: None,
        }
    }
}

impl AdminAccess {
    /// Whether a request that names `host` was meant for this server.
    fn knows(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else {
            return false;
        };
        let name = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let address = name.trim_start_matches('[').trim_end_matches(']');
        address.parse::<IpAddr>().is_ok()
            || !name.contains('.')
            || name.ends_with(".localhost")
            || self
                .hosts
                .iter()
                .any(|known| match known.strip_prefix('*') {
                    Some(suffix) => name.ends_with(&suffix.to_ascii_lowercase()),
                    None => name.eq_ignore_ascii_case(known),
                })
    }
}

impl Admin {
    /// An admin port that tells of `life` and `metrics`, and changes `log`.
    #[must_use]
    pub fn new(life: Life, metrics: Arc<Metrics>, log: LogFilter, access: AdminAccess) -> Self {
        Self(Arc::new(Shared {
            life,
            metrics,
            engine: OnceLock::new(),
            log,
            access,
        }))
    }

    /// Tells of this engine too from now on.
    pub fn attach(&self, engine: Arc<Engine>) {
        // One engine serves for the life of a process; a second attempt would tell of another's work.
        let _ = self.0.engine.set(engine);
    }

    /// Answers on `listener` for ever.
    pub async fn serve(self, listener: TcpListener) {
        let told = Router::new()
            .route("/metrics", get(scraped))
            .route("/log", get(log).put(set_log))
            .layer(middleware::from_fn_with_state(self.clone(), only_known));
        let router = Router::new()
            .route("/livez", get(live))
            .route("/readyz", get(ready))
            .route("/startedz", get(started))
            .merge(told)
            .layer(DefaultBodyLimit::max(MAX_LOG_FILTER))
            .layer(middleware::from_fn_with_state(self.clone(), only_meant))
            .with_state(self);
        let mut open: VecDeque<tokio::task::AbortHandle> = VecDeque::new();
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "the admin port cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let service = router.clone().layer(Extension(ConnectInfo(from)));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS)
                .max_buf_size(HEADER_BYTES)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
            open.retain(|connection| !connection.is_finished());
            if open.len() >= MOST_CONNECTIONS
                && let Some(oldest) = open.pop_front()
            {
                oldest.abort();
            }
            // How a connection ends is its caller's matter.
            open.push_back(tokio::spawn(async move { drop(connection.await) }).abort_handle());
        }
    }

    /// Why requests should go elsewhere although the server is up.
    fn lacks(&self) -> Option<String> {
        self.0.engine.get()?.lacks()
    }

    /// What a scrape gets.
    ///
    /// # Errors
    /// Text that cannot be formatted.
    pub fn metrics(&self) -> Result<String, std::fmt::Error> {
        let mut sample = Sample::default();
        let ready = self.0.life.get() == Phase::Ready && self.lacks().is_none();
        sample.add("frostline_ready", f64::from(u8::from(ready)));
        if let Some(engine) = self.0.engine.get() {
            engine.sample(&mut sample);
        }
        self.0.metrics.render(sample)
    }
}

/// Refuses what a browser sends from a page of somebody else's: one that names its origin, or a host that is not this one.
async fn only_meant(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    match stray(&admin.0.access, request.headers()) {
        None => next.run(request).await,
        Some(reason) => (StatusCode::FORBIDDEN, reason).into_response(),
    }
}

/// Refuses whoever brings no token, where there are tokens.
async fn only_known(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let tokens = admin.0.access.tokens.as_ref();
    if tokens.is_none_or(|tokens| tokens.admit(request.headers())) {
        return next.run(request).await;
    }
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    let message = "needs one of the tokens in telemetry.admin_tokens";
    (StatusCode::UNAUTHORIZED, challenge, message).into_response()
}

fn stray(access: &AdminAccess, headers: &HeaderMap) -> Option<&'static str> {
    if headers.contains_key(header::ORIGIN) {
        return Some("not for pages of a browser");
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    // Without a host it is no browser.
    let host = hosts.next()?;
    let known = host.to_str().is_ok_and(|host| access.knows(host)) && hosts.next().is_none();
    (!known).then_some("not known under this host's name: see telemetry.admin_hosts")
}

/// Alive unless the device is gone: a start that takes long and a drain are no reason to kill the process.
async fn live(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    answer(admin.0.life.get(), |phase| phase != Phase::Failed)
}

/// Whether the start is over, however it went on: heads that are missing may come, and no restart brings them.
async fn started(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    answer(admin.0.life.get(), |phase| {
        phase != Phase::Starting && phase != Phase::Failed
    })
}

async fn ready(State(admin): State<Admin>) -> Response {
    let phase = admin.0.life.get();
    match admin.lacks() {
        Some(lacks) if phase == Phase::Ready => {
            (StatusCode::SERVICE_UNAVAILABLE, lacks).into_response()
        }
        _ => answer(phase, |phase| phase == Phase::Ready).into_response(),
    }
}

fn answer(phase: Phase, good: impl Fn(Phase) -> bool) -> (StatusCode, &'static str) {
    let status = match good(phase) {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, phase.name())
}

/// A scrape, in the format and packed as it asks for.
async fn scraped(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let text = match admin.metrics() {
        Ok(text) => text,
        Err(error) => {
            return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
        }
    };
    let asks = |name, what: &str| {
        let values = headers.get_all(name).iter();
        let mut values = values.filter_map(|value| value.to_str().ok());
        values.any(|value| value.split(',').any(|one| accepts(one, what)))
    };
    let (kind, text) = match asks(header::ACCEPT, "application/openmetrics-text") {
        true => (CONTENT_TYPE, text),
        false => (PLAIN_CONTENT_TYPE, metrics::plain(&text)),
    };
    let vary = (header::VARY, "accept, accept-encoding");
    if !asks(header::ACCEPT_ENCODING, "gzip") {
        return ([(header::CONTENT_TYPE, kind), vary], text).into_response();
    }
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    match packed
        .write_all(text.as_bytes())
        .and_then(|()| packed.finish())
    {
        Ok(packed) => {
            let encoding = (header::CONTENT_ENCODING, "gzip");
            ([(header::CONTENT_TYPE, kind), encoding, vary], packed).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Whether one part of a header asks for `what`, and not with a weight of 0 (RFC 9110, 12.4.2).
fn accepts(part: &str, what: &str) -> bool {
    let mut parts = part.split(';').map(str::trim);
    let named = parts
        .next()
        .is_some_and(|name| name.eq_ignore_ascii_case(what));
    let weight = parts.find_map(|parameter| parameter.strip_prefix("q="));
    named && weight.is_none_or(|weight| weight.parse::<f32>().is_ok_and(|weight| weight > 0.0))
}

async fn log(State(admin): State<Admin>) -> String {
    admin.0.log.get()
}

async fn set_log(
    State(admin): State<Admin>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    filter: String,
) -> (StatusCode, String) {
    if !from.ip().to_canonical().is_loopback() && !admin.0.access.remote_log {
        let message = "only from this machine, unless telemetry.remote_log is set";
        let (action, outcome) = ("log", "refused");
        tracing::warn!(target: AUDIT, action, %from, outcome, error = message, "the log's filter stays");
        return (StatusCode::FORBIDDEN, message.to_owned());
    }
    let (action, old) = ("log", admin.0.log.get());
    match admin.0.log.set(&filter) {
        Ok(()) => {
            let (filter, outcome) = (admin.0.log.get(), "done");
            tracing::info!(target: AUDIT, action, %from, old, filter, outcome, "the log's filter was changed");
            (StatusCode::OK, filter)
        }
        Err(error) => {
            tracing::warn!(target: AUDIT, action, %from, old, outcome = "failed", %error, "the log's filter stays");
            (StatusCode::BAD_REQUEST, error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_a_stranger_can_name_are_not_known() {
        let access = AdminAccess {
            hosts: vec!["*.svc".to_owned(), "probe.example".to_owned()],
            ..AdminAccess::default()
        };
        let known = "127.0.0.1:9464 10.1.2.3 [::1]:9464 localhost:1 LOCALHOST frostline a.localhost \
                     frostline.team.svc:9464 probe.example PROBE.example:80 probe.example.";
        for host in known.split_whitespace() {
            assert!(access.knows(host), "{host}");
        }
        let strange = "evil.example svc.evil.example probe.example.evil.org xprobe.example 127.0.0.1.evil.org \
                       user@evil.example @@ localhost.evil.org";
        for host in strange.split_whitespace() {
            assert!(!access.knows(host), "{host}");
        }
    }
}
