//! The gRPC server: listeners, services, shutdown. The only module besides the client that sees tonic.
//!
//! An adapter extracts a request, calls the engine and converts the answer; nothing else happens here.

mod accept;
mod admin;
mod answer;
mod audit;
mod auth;
mod budget;
mod call;
mod config;
mod connection;
mod convert;
mod expiry;
mod foreign;
mod frames;
#[cfg(fuzzing)]
pub mod fuzzing;
mod greeting;
mod guard;
mod health;
mod identity;
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
mod status;
mod tls;
mod unpacked;
mod vision;
mod watched;

use std::{future::Future, sync::Arc, time::Duration};

use prost::Message;
use tokio::net::TcpListener;
use tonic::{server::NamedService, service::Routes, transport::Server};
use tonic_health::pb::health_server::HealthServer;

use methods::Methods;
use observe::ObserveLayer;

pub use admin::{Admin, AdminAccess, MAX_LOG_FILTER, Phase, Readiness};
pub use budget::LONE_SHARE;
pub use convert::{MAX_DETECTIONS, MAX_TOP_K};
pub use observe::MAX_REQUEST_ID;
pub use preflight::check_files;
pub use registry::SPARE_CONNECTIONS;

use crate::{
    engine::Engine,
    error::Kind,
    proto::{
        FILE_DESCRIPTOR_SET, inference::grpc_inference_service_server::GrpcInferenceServiceServer,
        model_service_server::ModelServiceServer, vision_service_server::VisionServiceServer,
    },
};

pub use auth::{Grant, KeyEntry, new_token};
pub use config::{AuthConfig, CertificateName, ServerConfig, TlsConfig, TransportLimits};

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
    listener: TcpListener,
    engine: Arc<Engine>,
    config: ServerConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    serve_on(vec![listener], engine, config, shutdown).await
}

/// Serves `engine` on `listeners` until `shutdown` completes, then lets calls under way finish.
///
/// # Errors
/// The transport's failure, the engine's death, or a drain that took too long.
pub async fn serve_on(
    listeners: Vec<TcpListener>,
    engine: Arc<Engine>,
    config: ServerConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let health = health::Checks::new(
        Arc::clone(&engine),
        vec![
            VisionServiceServer::<vision::Vision>::NAME,
            ModelServiceServer::<model::Model>::NAME,
            GrpcInferenceServiceServer::<oip::Inference>::NAME,
        ],
    );
    let limit_in = config.max_request_bytes;
    let limit_out = config.max_response_bytes;
    let vision = VisionServiceServer::new(vision::Vision::new(
        Arc::clone(&engine),
        config.default_deadline,
    ))
    .max_decoding_message_size(limit_in)
    .max_encoding_message_size(limit_out);
    let model = ModelServiceServer::new(model::Model::new(Arc::clone(&engine)));
    let (ready, is_ready) = tokio::sync::watch::channel(true);
    let inference = GrpcInferenceServiceServer::new(oip::Inference::new(
        Arc::clone(&engine),
        config.default_deadline,
        limit_out,
        is_ready,
    ))
    .max_decoding_message_size(limit_in)
    .max_encoding_message_size(limit_out);
    let descriptors = [
        FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        // What the details of an error are: tools look them up to show them.
        tonic_types::pb::FILE_DESCRIPTOR_SET,
    ];
    let reflection = || {
        let builder = tonic_reflection::server::Builder::configure();
        descriptors.iter().fold(builder, |builder, set| {
            builder.register_encoded_file_descriptor_set(set)
        })
    };
    let routes = Routes::new(vision)
        .add_service(model)
        .add_service(inference)
        .add_service(HealthServer::new(health.clone()))
        .add_service(reflection().build_v1()?)
        // For tools that have not followed the rename, such as ghz.
        .add_service(reflection().build_v1alpha()?);
    let reflections = [
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut streaming = Vec::new();
    for set in descriptors.into_iter().chain(reflections) {
        streaming.extend(streaming_methods(set)?);
    }
    let metrics = &engine.config().metrics;
    let methods = Methods::of(&[descriptors.as_slice(), &reflections].concat())?;
    let guard = guard::Guard::new(&config, streaming, methods.clone(), Arc::clone(metrics))?;
    let settings = config.tls.as_ref();
    let settings = settings.map(|tls| tls::settings(tls, metrics));
    let settings = settings.transpose()?;

    metrics.serves(methods.names());
    let observe = ObserveLayer {
        metrics: Arc::clone(metrics),
        tracer: engine.config().tracer.clone(),
        methods,
        refusals: refusals::Refusals::default(),
    };
    let phases = config.readiness.clone();
    let (draining, mut drained) = tokio::sync::watch::channel(false);
    let dying = Arc::clone(&engine);
    let stop = async move {
        let died = tokio::select! {
            () = shutdown => false,
            error = dying.failed() => {
                tracing::error!(%error, "the engine cannot serve any more");
                true
            }
        };
        phases.set(if died { Phase::Failed } else { Phase::Draining });
        if !died {
            let lame_duck_ms = config.lame_duck.as_secs_f64() * 1e3;
            tracing::info!(in_flight = dying.in_flight(), lame_duck_ms, "draining");
        }
        health.leave();
        ready.send_replace(false);
        if !died {
            tokio::select! {
                () = tokio::time::sleep(config.lame_duck) => {}
                _ = dying.failed() => {}
            }
        }
        health.end();
        draining.send_replace(true);
    };
    let limits = config.transport;
    let some = |duration: Duration| (!duration.is_zero()).then_some(duration);
    let incoming = accept::accept(listeners, settings, limits.clone(), Arc::clone(metrics));
    let mut server = Server::builder()
        .max_concurrent_streams(config.max_streams)
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
    if let Some(age) = some(limits.age) {
        // Without tonic's own grace, which would close connections that were never told to go: ours is the connection's.
        server = server.max_connection_age(age);
    }
    let serving = server
        .layer(observe)
        .layer(guard)
        .serve_with_incoming_shutdown(routes.prepare(), incoming, stop);
    config.readiness.set(Phase::Ready);
    let overdue = async {
        // The sender lives until the drain begins.
        let _ = drained.wait_for(|draining| *draining).await;
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

/// Paths of the methods in an encoded descriptor set whose caller sends many messages.
fn streaming_methods(set: &[u8]) -> anyhow::Result<Vec<String>> {
    let set = prost_types::FileDescriptorSet::decode(set)?;
    let mut paths = Vec::new();
    for file in &set.file {
        for service in &file.service {
            let streaming = service.method.iter().filter(|m| m.client_streaming());
            paths.extend(streaming.map(|method| {
                let (package, service) = (file.package(), service.name());
                format!("/{package}.{service}/{}", method.name())
            }));
        }
    }
    Ok(paths)
}
