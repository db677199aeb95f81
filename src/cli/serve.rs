//! `frostline serve`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{net::TcpListener, signal::unix};

use crate::{config::Config, engine::Engine, repository::Location, server};

pub(super) fn run(config: Config) -> anyhow::Result<()> {
    let started = Instant::now();
    let runtime = super::runtime(&config)?;
    let repository = super::repository(&config)?;
    let engine = Arc::new(Engine::start(&runtime, &repository, config.engine())?);
    let executor = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let served = executor.block_on(async {
        let listen = config.server.listen;
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}"))?;
        if !listen.ip().is_loopback() {
            tracing::warn!(%listen, "others can reach this server, without TLS or authorization");
        }
        let mut terminate = unix::signal(unix::SignalKind::terminate())?;
        let mut interrupt = unix::signal(unix::SignalKind::interrupt())?;
        let shutdown = async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            // A second signal ends the process at once, whatever is under way.
            tokio::spawn(async move {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
                std::process::exit(130);
            });
        };
        let heads: Vec<_> = repository
            .heads
            .iter()
            .map(|e| e.manifest.name.as_str())
            .collect();
        if repository.location != Location::Embedded && config.repository.watch_seconds > 0 {
            engine.watch(Duration::from_secs(config.repository.watch_seconds))?;
        }
        tracing::info!(
            address = %listener.local_addr()?,
            backbone = repository.backbone.name,
            heads = heads.join(","),
            library = %runtime.library().display(),
            ready_ms = started.elapsed().as_millis(),
            "ready"
        );
        server::serve(listener, Arc::clone(&engine), config.server(), shutdown).await
    });
    // A head that is being loaded is not waited for.
    executor.shutdown_background();
    served?;
    engine.stop();
    tracing::info!("stopped");
    Ok(())
}
