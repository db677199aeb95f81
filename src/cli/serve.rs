//! `frostline serve`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{net::TcpListener, signal::unix};

use crate::{
    COMMIT, VERSION,
    config::Config,
    descriptors,
    engine::{Engine, EngineConfig},
    memory,
    repository::Location,
    server::{self, Admin, Readiness, ServerConfig, TransportLimits},
    slice,
    telemetry::LogFilter,
    trace::Tracer,
};

/// The longest time that the last spans may take to be sent.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Serves; `configured` reads the log's filter anew, for SIGHUP.
pub(super) fn run(
    config: Config,
    log: LogFilter,
    configured: impl Fn() -> anyhow::Result<String> + Send + 'static,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let descriptors = descriptors::raise();
    let executor = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.server_threads())
        // Between lanes that never rest, an answer would wait at each of its steps.
        .on_thread_start(slice::shorten)
        .on_thread_park(memory::rests)
        .on_thread_unpark(memory::wakes)
        .enable_all()
        .build()?;
    let entered = executor.enter();
    let tracer = match config.traces() {
        Some(traces) => Tracer::start(&traces)?,
        None => Tracer::default(),
    };
    let instrumented = EngineConfig {
        tracer: tracer.clone(),
        ..config.engine()
    };
    let readiness = Readiness::default();
    let (metrics, access) = (&instrumented.metrics, config.telemetry.access());
    let admin = Admin::new(readiness.clone(), Arc::clone(metrics), log.clone(), access);
    if let Some(address) = config.telemetry.admin {
        let listener = executor
            .block_on(TcpListener::bind(address))
            .with_context(|| format!("cannot listen on {address}, telemetry.admin"))?;
        tracing::info!(address = %listener.local_addr()?, "admin port");
        if config.telemetry.exposed() {
            tracing::warn!(%address, "others can reach the admin port, which asks nobody who they are");
        }
        executor.spawn(admin.clone().serve(listener));
    }
    executor.spawn(follow_hangups(log, configured)?);
    executor.spawn(memory::wake_resting(config.server_threads()));
    drop(entered);
    let runtime = super::runtime(&config)?;
    let repository = super::repository(&config)?;
    let engine = Arc::new(Engine::start(&runtime, &repository, instrumented)?);
    admin.attach(Arc::clone(&engine));
    let served: anyhow::Result<()> = executor.block_on(async {
        let listen = config.server.listen;
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}"))?;
        if !listen.ip().is_loopback() && config.server.insecure {
            let (tls, authorization) = (config.tls.cert.is_some(), config.auth.on());
            if !tls || !authorization {
                tracing::warn!(%listen, tls, authorization, "insecure: others can reach this server");
            }
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
        let mut server = ServerConfig {
            readiness,
            ..config.server()
        };
        bound_connections(&mut server.transport, descriptors)?;
        tracing::info!(
            address = %listener.local_addr()?,
            backbone = repository.backbone.name,
            heads = heads.join(","),
            library = %runtime.library().display(),
            version = VERSION,
            commit = COMMIT,
            ready_ms = started.elapsed().as_millis(),
            "ready"
        );
        server::serve(listener, Arc::clone(&engine), server, shutdown).await
    });
    tracer.stop(LAST_SPANS);
    // A head that is being loaded is not waited for.
    executor.shutdown_background();
    if let Err(error) = served {
        // A graph that still runs, or hangs, is not waited for: the process ends with it.
        std::mem::forget(engine);
        return Err(error);
    }
    engine.stop();
    tracing::info!("stopped");
    Ok(())
}

/// Lowers the most connections to what the file descriptors leave: one more would keep probes and files from being opened.
fn bound_connections(
    transport: &mut TransportLimits,
    descriptors: Option<u64>,
) -> anyhow::Result<()> {
    let Some(limit) = descriptors else {
        return Ok(());
    };
    let left = descriptors::left(limit).context("cannot count the open files")?;
    let fit = usize::try_from(left).unwrap_or(usize::MAX);
    let fit = fit.saturating_sub(server::SPARE_CONNECTIONS).max(1);
    if fit < transport.connections {
        tracing::warn!(
            asked = transport.connections,
            connections = fit,
            open_files = limit,
            "server.max_connections is lowered to what the limit on open files leaves (ulimit -Hn)"
        );
        transport.connections = fit;
    }
    Ok(())
}

/// Takes the configured filter of the log again at each SIGHUP.
fn follow_hangups(
    log: LogFilter,
    configured: impl Fn() -> anyhow::Result<String> + Send + 'static,
) -> anyhow::Result<impl Future<Output = ()> + Send> {
    let mut hangups = unix::signal(unix::SignalKind::hangup())?;
    Ok(async move {
        while hangups.recv().await.is_some() {
            match configured().and_then(|filter| Ok(log.set(&filter)?)) {
                Ok(()) => tracing::info!(filter = log.get(), "the log's filter was read again"),
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "the log's filter stays")
                }
            }
        }
    })
}
