//! The admin port, over HTTP: `/livez`, `/readyz`, `/metrics`, and `/log` to see and change the log's filter.
//!
//! It is up before the models are loaded, so that a long start can be watched.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};

use axum::{
    Router,
    extract::{ConnectInfo, DefaultBodyLimit, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use crate::{
    engine::Engine,
    metrics::{CONTENT_TYPE, Metrics, Sample},
    telemetry::LogFilter,
};

/// The longest filter of the log that the admin port takes, in bytes.
pub const MAX_LOG_FILTER: usize = 4096;

/// Whether requests are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Loading and warming up.
    Starting,
    /// Taking requests.
    Ready,
    /// Finishing what was accepted.
    Draining,
    /// The device is gone; nothing can be served.
    Failed,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Starting, Self::Ready, Self::Draining, Self::Failed];

    fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }
}

/// The server's phase, told by who serves and read by the probes.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicU8>);

impl Readiness {
    /// The phase now.
    #[must_use]
    pub fn get(&self) -> Phase {
        Phase::ALL[usize::from(self.0.load(Ordering::Acquire)).min(3)]
    }

    /// Enters a phase.
    pub fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Release);
    }
}

/// The admin port.
#[derive(Clone)]
pub struct Admin(Arc<Shared>);

struct Shared {
    readiness: Readiness,
    metrics: Arc<Metrics>,
    engine: OnceLock<Arc<Engine>>,
    log: LogFilter,
    remote_log: bool,
}

impl Admin {
    /// An admin port that tells of `readiness` and `metrics`, and changes `log`: for callers on this machine, and with
    /// `remote_log` for others too.
    #[must_use]
    pub fn new(
        readiness: Readiness,
        metrics: Arc<Metrics>,
        log: LogFilter,
        remote_log: bool,
    ) -> Self {
        Self(Arc::new(Shared {
            readiness,
            metrics,
            engine: OnceLock::new(),
            log,
            remote_log,
        }))
    }

    /// Tells of this engine too from now on.
    pub fn attach(&self, engine: Arc<Engine>) {
        // One engine serves for the life of a process; a second attempt would tell of another's work.
        let _ = self.0.engine.set(engine);
    }

    /// Answers on `listener` for ever.
    ///
    /// # Errors
    /// The listener's failure.
    pub async fn serve(self, listener: TcpListener) -> std::io::Result<()> {
        let router = Router::new()
            .route("/livez", get(live))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .route("/log", get(log).put(set_log))
            .layer(DefaultBodyLimit::max(MAX_LOG_FILTER))
            .with_state(self);
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        axum::serve(listener, service).await
    }

    /// What a scrape gets.
    ///
    /// # Errors
    /// Text that cannot be formatted.
    pub fn metrics(&self) -> Result<String, std::fmt::Error> {
        let mut sample = Sample::default();
        let ready = self.0.readiness.get() == Phase::Ready;
        sample.add("frostline_ready", f64::from(u8::from(ready)));
        if let Some(engine) = self.0.engine.get() {
            engine.sample(&mut sample);
        }
        self.0.metrics.render(sample)
    }
}

/// Alive unless the device is gone: a start that takes long and a drain are no reason to kill the process.
async fn live(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    answer(admin.0.readiness.get(), |phase| phase != Phase::Failed)
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    answer(admin.0.readiness.get(), |phase| phase == Phase::Ready)
}

fn answer(phase: Phase, good: impl Fn(Phase) -> bool) -> (StatusCode, &'static str) {
    let status = match good(phase) {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, phase.name())
}

async fn metrics(State(admin): State<Admin>) -> Response {
    match admin.metrics() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn log(State(admin): State<Admin>) -> String {
    admin.0.log.get()
}

async fn set_log(
    State(admin): State<Admin>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    filter: String,
) -> (StatusCode, String) {
    if !from.ip().to_canonical().is_loopback() && !admin.0.remote_log {
        let message = "only from this machine, unless telemetry.remote_log is set";
        return (StatusCode::FORBIDDEN, message.to_owned());
    }
    match admin.0.log.set(&filter) {
        Ok(()) => {
            let filter = admin.0.log.get();
            tracing::info!(%from, filter, "the log's filter was changed");
            (StatusCode::OK, filter)
        }
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()),
    }
}
