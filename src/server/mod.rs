//! The gRPC server: listeners, services, shutdown. The only module besides the client that sees tonic.
//!
//! An adapter extracts a request, calls the engine and converts the answer; nothing else happens here.

mod accept;
mod admin;
mod admin_tokens;
mod answer;
mod audit;
mod auth;
mod batch;
mod budget;
mod call;
mod config;
mod connection;
mod convert;
mod expiry;
mod features;
mod foreign;
mod frames;
#[cfg(fuzzing)]
pub mod fuzzing;
mod greeting;
mod guard;
mod health;
mod identity;
mod life;
mod masks;
mod message;
mod methods;
mod model;
mod observe;
mod oip;
mod packing;
mod party;
mod peer;
mod places;
mod preflight;
mod quiet;
mod quota;
mod refusals;
mod registry;
mod routes;
mod socket;
mod status;
mod stream;
mod tls;
mod unpacked;
mod vision;
mod watched;

use std::{future::Future, sync::Arc, time::Duration};

use tonic::transport::Server;

use observe::ObserveLayer;

pub use admin::{Admin, AdminAccess, MAX_LOG_FILTER};
pub use admin_tokens::{AdminTokens, check_admin_tokens};
pub use budget::LONE_SHARE;
pub use convert::{MAX_DETECTIONS, MAX_TOP_K};
pub use life::{Life, Phase};
pub use observe::MAX_REQUEST_ID;
pub use preflight::check_files;
pub use registry::SPARE_CONNECTIONS;
pub use socket::{Address, Listener, UnixSocket, check_unix};
pub use stream::STREAM_BYTES;

use crate::{engine::Engine, error::Kind};

pub use auth::{Grant, KeyEntry, new_token};
pub use config::{
    AuthConfig, CertificateName, ServerConfig, StreamLimits, TlsConfig, TransportLimits,
};

/// Streams of a connection that the server may have to reset for their caller's mistakes.
const MOST_ERRORS: usize = 1024;

/// Bytes of a call that are on no account: what is free of its message and its answer, and a piece in the transport's hands.
/// Its headers are beside them.
pub const CALL_BYTES: u64 = (2 * budget::FREE + answer::PIECE) as u64;

/// Bytes of a connection: TLS, HTTP/2's frames and tables, and what is corked.
pub const CONNECTION_BYTES: u64 = 96 << 10;

/// The gRPC code of a kind of error, as the specification writes it.
#[must_use]
pub fn code_name(kind: Kind) -> &'static str {
    status::name(status::code(kind))
}

/// As [`serve_on`], on one socket.
///
/// # Errors
/// As [`serve_on`].
pub async fn serve(
    listener: impl Into<Listener>,
    engine: Arc<Engine>,
    config: ServerConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    serve_on(vec![listener.into()], engine, config, shutdown).await
}

/// Serves `engine` on `listeners` until `shutdown` completes, then lets calls under way finish.
///
/// # Errors
/// The transport's failure, the engine's death, or a drain that took too long.
pub async fn serve_on(
    listeners: Vec<Listener>,
    engine: Arc<Engine>,
    config: ServerConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let (life, limits) = (config.life.clone(), &config.transport);
    let metrics = &engine.config().metrics;
    let routes = routes::routes(&engine, &config)?;
    let (methods, streaming) = routes::methods()?;
    metrics.serves(methods.names());
    let guard = guard::Guard::new(&config, streaming, methods.clone(), Arc::clone(metrics))?;
    let observe = ObserveLayer {
        metrics: Arc::clone(metrics),
        tracer: engine.config().tracer.clone(),
        methods,
        refusals: refusals::Refusals::default(),
    };
    let settings = config.tls.as_ref();
    let settings = settings.map(|tls| tls::settings(tls, metrics));
    let incoming = accept::accept(
        listeners,
        settings.transpose()?,
        limits.clone(),
        Arc::clone(metrics),
    );
    let leave = leave(
        Arc::clone(&engine),
        life.clone(),
        config.lame_duck,
        shutdown,
    );
    let serving = http2(limits, config.max_streams)
        .layer(observe)
        .layer(guard)
        .serve_with_incoming_shutdown(routes, incoming, leave);
    life.enter(Phase::Ready);
    let overdue = async {
        life.reaches(Phase::Draining).await;
        tokio::time::sleep(config.drain_timeout).await;
    };
    tokio::select! {
        result = serving => result?,
        () = overdue => anyhow::bail!("calls were still under way {:?} after the drain began", config.drain_timeout),
    }
    match tokio::time::timeout(Duration::ZERO, engine.failed()).await {
        Ok(error) => Err(error.into()),
        Err(_) => Ok(()),
    }
}

/// HTTP/2 within these limits.
fn http2(limits: &TransportLimits, max_streams: u32) -> Server {
    let some = |duration: Duration| (!duration.is_zero()).then_some(duration);
    let server = Server::builder()
        .max_concurrent_streams(max_streams)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        // Raw pixels come in few pieces.
        .max_frame_size(Some(256 << 10))
        .http2_keepalive_interval(some(limits.keepalive))
        .http2_keepalive_timeout(Some(limits.keepalive_timeout))
        // Room beyond the limit, so that a call that is over it is answered in gRPC; what is over this is told by HTTP alone.
        .http2_max_header_list_size(limits.header_bytes.saturating_mul(foreign::HEADER_ROOM))
        // Under overload every call on a connection may pass its deadline, and be reset, before it is looked at: that is
        // no attack, and must not cost the calls beside it their connection. The bound is as many as streams by default.
        .http2_max_pending_accept_reset_streams(Some(limits.pending_resets))
        // Streams that the server has to reset for what came on them; one more ends the connection.
        .http2_max_local_error_reset_streams(Some(MOST_ERRORS));
    match some(limits.age) {
        // Without tonic's own grace, which would close connections that were never told to go: ours is the connection's.
        Some(age) => server.max_connection_age(age),
        None => server,
    }
}

/// Completes when no more calls are to be taken: some time, the `lame_duck`, after `shutdown`, or when the engine dies.
async fn leave(
    engine: Arc<Engine>,
    life: Life,
    lame_duck: Duration,
    shutdown: impl Future<Output = ()>,
) {
    tokio::select! {
        () = shutdown => {
            let lame_duck_ms = lame_duck.as_secs_f64() * 1e3;
            tracing::info!(in_flight = engine.in_flight(), lame_duck_ms, "draining");
            life.enter(Phase::Leaving);
            tokio::select! {
                () = tokio::time::sleep(lame_duck) => {}
                _ = engine.failed() => {}
            }
            life.enter(Phase::Draining);
        }
        error = engine.failed() => {
            tracing::error!(%error, "the engine cannot serve any more");
            life.enter(Phase::Failed);
        }
    }
}
