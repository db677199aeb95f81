//! The gRPC server: listeners, services, shutdown. The only module besides the client that sees tonic.
//!
//! An adapter extracts a request, calls the engine and converts the answer; nothing else happens here.

mod call;
mod convert;
mod identity;
mod model;
mod status;
mod vision;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::TcpListener;
use tonic::{
    server::NamedService,
    service::Routes,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    engine::Engine,
    proto::{
        FILE_DESCRIPTOR_SET, model_service_server::ModelServiceServer,
        vision_service_server::VisionServiceServer,
    },
};

/// How the server listens.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Largest request, bytes.
    pub max_request_bytes: usize,
    /// Largest response, bytes.
    pub max_response_bytes: usize,
    /// Longest time that calls under way get to finish after a signal.
    pub drain_timeout: Duration,
    /// Time between telling the health check and refusing new calls: for balancers to notice.
    pub lame_duck: Duration,
    /// Deadline of calls that bring none.
    pub default_deadline: Option<Duration>,
    /// Most calls at once on one connection.
    pub max_streams: u32,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8461)),
            max_request_bytes: 64 << 20,
            max_response_bytes: 256 << 20,
            drain_timeout: Duration::from_secs(30),
            lame_duck: Duration::ZERO,
            default_deadline: None,
            max_streams: 1024,
        }
    }
}

const VISION: &str = <VisionServiceServer<vision::Vision> as NamedService>::NAME;
const MODEL: &str = <ModelServiceServer<model::Model> as NamedService>::NAME;

/// Serves `engine` on `listener` until `shutdown` completes, then lets calls under way finish.
///
/// # Errors
/// The transport's failure, the engine's death, or a drain that took too long.
pub async fn serve(
    listener: TcpListener,
    engine: Arc<Engine>,
    config: ServerConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let (mut reporter, health) = tonic_health::server::health_reporter();
    reporter
        .set_serving::<VisionServiceServer<vision::Vision>>()
        .await;
    reporter
        .set_serving::<ModelServiceServer<model::Model>>()
        .await;
    let limit_in = config.max_request_bytes;
    let limit_out = config.max_response_bytes;
    let vision = VisionServiceServer::new(vision::Vision::new(
        Arc::clone(&engine),
        config.default_deadline,
    ))
    .max_decoding_message_size(limit_in)
    .max_encoding_message_size(limit_out);
    let model = ModelServiceServer::new(model::Model::new(Arc::clone(&engine)));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let routes = Routes::new(vision)
        .add_service(model)
        .add_service(health)
        .add_service(reflection);

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
        if !died {
            let lame_duck_ms = config.lame_duck.as_millis();
            tracing::info!(in_flight = dying.in_flight(), lame_duck_ms, "draining");
        }
        reporter
            .set_not_serving::<VisionServiceServer<vision::Vision>>()
            .await;
        reporter
            .set_not_serving::<ModelServiceServer<model::Model>>()
            .await;
        reporter
            .set_service_status("", tonic_health::ServingStatus::NotServing)
            .await;
        if !died {
            tokio::select! {
                () = tokio::time::sleep(config.lame_duck) => {}
                _ = dying.failed() => {}
            }
        }
        // Ends the streams of those who watch: the drain would wait for them.
        for service in ["", VISION, MODEL] {
            reporter.clear_service_status(service).await;
        }
        draining.send_replace(true);
    };
    // Set on each connection: the builder's own setting does not reach a listener that is handed in, and a small answer
    // would wait 40 ms for the client's delayed acknowledgement.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = Server::builder()
        .max_concurrent_streams(config.max_streams)
        // Under overload every call on a connection may pass its deadline, and be reset, before it is looked at: that is
        // no attack, and must not cost the calls beside it their connection.
        .http2_max_pending_accept_reset_streams(Some(config.max_streams as usize))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        // Raw pixels come in few pieces.
        .max_frame_size(Some(256 << 10))
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop);
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
