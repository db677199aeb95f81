//! `frostline serve`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use tokio::{net::TcpListener, signal::unix};

use super::{preflight::refuse as preflight, systemd};
use crate::{
    COMMIT, VERSION,
    backend::Runtime,
    config::{Config, ConfigError},
    descriptors,
    engine::{Engine, EngineConfig},
    memory, metrics,
    repository::{Location, OnBadHead},
    server::{self, Address, Admin, AdminTokens, Life, Listener, ServerConfig, TransportLimits},
    slice,
    telemetry::{AUDIT, LogFilter},
    trace::Tracer,
};

/// The longest time that the last spans may take to be sent.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// One bad head among many is no reason to serve none.
const ON_BAD_HEAD: OnBadHead = OnBadHead::ServeOthers;

/// Serves; `configured` reads the log's filter anew, for SIGHUP.
pub(super) fn run(
    config: Config,
    log: LogFilter,
    configured: impl Fn() -> anyhow::Result<String> + Send + 'static,
) -> anyhow::Result<()> {
    let started = Instant::now();
    preflight(&config)?;
    let descriptors = descriptors::raise();
    let executor = executor(&config)?;
    let entered = executor.enter();
    let tracer = match config.traces() {
        Some(traces) => Tracer::start(&traces)?,
        None => Tracer::default(),
    };
    let instrumented = EngineConfig {
        tracer: tracer.clone(),
        on_bad_head: config.repository.on_bad_head.unwrap_or(ON_BAD_HEAD),
        ..config.engine()
    };
    let life = Life::default();
    let (metrics, mut access) = (&instrumented.metrics, config.telemetry.access());
    if let Some(file) = &config.telemetry.admin_tokens {
        let tokens = AdminTokens::read(file, metrics);
        let tokens = tokens.with_context(|| format!("{}, telemetry.admin_tokens", file.display()));
        access.tokens = Some(Arc::new(tokens?));
    }
    let admin = Admin::new(life.clone(), Arc::clone(metrics), log.clone(), access);
    // Before the models are loaded, so that a long start can be watched.
    open_admin_port(&config, &admin, &executor)?;
    executor.spawn(follow_hangups(log, configured)?);
    executor.spawn(memory::wake_resting(config.server_threads()));
    drop(entered);
    let runtime = super::runtime(&config)?;
    let repository = super::repository(&config, ON_BAD_HEAD)?;
    let (runtime, _) = super::placed(&config, &runtime, &repository, &instrumented)?;
    let engine = Arc::new(Engine::start(&runtime, &repository, instrumented)?);
    admin.attach(Arc::clone(&engine));
    hold_against_limit(&engine);
    let mut server = ServerConfig {
        life,
        ..config.server()
    };
    bound_connections(&mut server.transport, descriptors)?;
    let served: anyhow::Result<()> = executor.block_on(async {
        let (listeners, addresses) = listen(&config).await?;
        let shutdown = asked_to_stop()?;
        if let Some(lacks) = engine.lacks() {
            tracing::error!(
                lacks,
                "the server will not be ready before it has what it lacks"
            );
        }
        if repository.location != Location::Embedded && config.repository.watch_seconds > 0 {
            engine.watch(Duration::from_secs(config.repository.watch_seconds))?;
        }
        tell_ready(&engine, &runtime, &addresses, started);
        server::serve_on(listeners, Arc::clone(&engine), server, shutdown).await
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

/// The threads that calls are answered on.
fn executor(config: &Config) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.server_threads())
        // Between lanes that never rest, an answer would wait at each of its steps.
        .on_thread_start(slice::shorten)
        .on_thread_park(memory::rests)
        .on_thread_unpark(memory::wakes)
        .enable_all()
        .build()
}

/// Opens the admin port, where there is to be one.
fn open_admin_port(
    config: &Config,
    admin: &Admin,
    executor: &tokio::runtime::Runtime,
) -> anyhow::Result<()> {
    let Some(address) = config.telemetry.admin else {
        return Ok(());
    };
    let listener = executor
        .block_on(TcpListener::bind(address))
        .with_context(|| format!("cannot listen on {address}, telemetry.admin"))?;
    tracing::info!(address = %listener.local_addr()?, "admin port");
    if config.telemetry.exposed() && config.telemetry.admin_tokens.is_none() {
        tracing::warn!(%address, "others can reach the admin port, which asks nobody who they are");
    }
    executor.spawn(admin.clone().serve(listener));
    Ok(())
}

/// Completes at the first SIGTERM or SIGINT. A second one ends the process at once, whatever is under way.
fn asked_to_stop() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = unix::signal(unix::SignalKind::terminate())?;
    let mut interrupt = unix::signal(unix::SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        systemd::notify("STOPPING=1");
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            std::process::exit(130);
        });
    })
}

/// Tells the log and the service manager that the server serves, and what.
fn tell_ready(engine: &Engine, runtime: &Runtime, addresses: &[Address], started: Instant) {
    let heads = engine.heads();
    let heads: Vec<_> = heads.iter().map(|h| h.manifest.name.as_str()).collect();
    let (heads, lacks) = (heads.join(","), engine.lacks());
    let failed_heads: Vec<_> = engine.faults().into_keys().collect();
    let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    tracing::info!(
        address = addresses.first().map(tracing::field::display),
        addresses = all.join(","),
        backbone = engine.backbone().name,
        heads,
        failed_heads = failed_heads.join(","),
        library = %runtime.library().display(),
        version = VERSION,
        commit = COMMIT,
        ready_ms = started.elapsed().as_secs_f64() * 1e3,
        "{}",
        if lacks.is_none() { "ready" } else { "not ready" }
    );
    let status = lacks.unwrap_or_else(|| format!("serves {}", heads.replace(',', ", ")));
    let process = std::process::id();
    systemd::notify(&format!("READY=1\nSTATUS={status}\nMAINPID={process}"));
}

/// The sockets to serve on, opened by the service manager or here, and their addresses: at least one.
async fn listen(config: &Config) -> anyhow::Result<(Vec<Listener>, Vec<Address>)> {
    let mut listeners: Vec<Listener> = Vec::new();
    for socket in systemd::sockets().context("a socket of the service manager")? {
        let listener: Listener = TcpListener::from_std(socket)?.into();
        let address = listener.address()?;
        if address.is_exposed() {
            let exposed = config.check_exposed(&address);
            exposed.map_err(|detail| ConfigError::settings(&[("server.listen", detail)]))?;
        }
        listeners.push(listener);
    }
    if listeners.is_empty() {
        for address in config.server.listen.addresses()? {
            let listener = match &address {
                Address::Ip(address) => TcpListener::bind(address).await.map(Listener::from),
                Address::Unix(path) => Listener::bind_unix(path),
            };
            listeners.push(listener.with_context(|| format!("cannot listen on {address}"))?);
        }
    }
    let addresses: Result<Vec<_>, _> = listeners.iter().map(Listener::address).collect();
    let addresses = addresses?;
    ensure!(!addresses.is_empty(), "server.listen stands for no address");
    let mut all = addresses.iter();
    if let Some(listen) = all.find(|address| address.is_exposed()) {
        let (tls, authorization) = (config.tls.cert.is_some(), config.auth.on());
        if !tls || !authorization {
            tracing::warn!(%listen, tls, authorization, "insecure: others can reach this server");
        }
    }
    Ok((listeners, addresses))
}

/// Warns if the models leave little memory for work.
fn hold_against_limit(engine: &Engine) {
    let (Some(resident), Some(limit)) = (metrics::resident(), metrics::memory_limit()) else {
        return;
    };
    // A busy server needs images and results on top.
    if resident > limit / 4 * 3 {
        let lanes = engine.load().lanes;
        tracing::warn!(
            resident_mb = resident / 1_000_000,
            limit_mb = limit / 1_000_000,
            lanes,
            "the models leave little memory: fewer engine.lanes need less, `frostline check` says how much"
        );
    }
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
            let (action, by, old) = ("log", "SIGHUP", log.get());
            match configured().and_then(|filter| Ok(log.set(&filter)?)) {
                Ok(()) => {
                    let (filter, outcome) = (log.get(), "done");
                    tracing::info!(target: AUDIT, action, by, old, filter, outcome, "the log's filter was read again");
                }
                Err(error) => {
                    let (error, outcome) = (format!("{error:#}"), "failed");
                    tracing::error!(target: AUDIT, action, by, old, outcome, error, "the log's filter stays");
                }
            }
        }
    })
}
