//! Connections: accepted, counted, given a time for each step, and closed when they stand in others' way.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Sleep, sleep},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::{TransportLimits, tls};
use crate::corked::Corked;

/// Bytes that every client sends before its first call: the HTTP/2 preface and an empty SETTINGS frame.
const PREFACE_BYTES: usize = 33;

/// Answers that one connection may leave unread past their time before all of it is closed.
const MAX_STALLED: usize = 32;

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    /// Where it comes from.
    pub(super) address: SocketAddr,
    /// What its verified certificate says of its holder.
    pub(super) certificate: Option<tls::Names>,
    state: Arc<State>,
}

/// What a connection does at the moment.
#[derive(Debug)]
struct State {
    /// Calls under way.
    calls: AtomicUsize,
    /// Of those, the ones whose answers nobody reads.
    stalled: AtomicUsize,
    /// When the last call ended, or the connection came: milliseconds after `start`.
    idle_since: AtomicU64,
    start: Instant,
    closed: AtomicBool,
    /// The server drains: what has not begun is not waited for.
    leaving: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl State {
    fn new() -> Self {
        Self {
            calls: AtomicUsize::new(0),
            stalled: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            start: Instant::now(),
            closed: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            waker: Mutex::new(None),
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake();
    }

    /// Closes the connection unless its client has begun.
    fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.lock().take() {
            waker.wake();
        }
    }

    /// Whether it is to close; if not, `context` is woken when it is.
    fn poll_closed(&self, context: &mut Context<'_>) -> bool {
        if !self.closed.load(Ordering::Acquire) {
            let mut waker = self.waker.lock();
            if !waker.as_ref().is_some_and(|w| w.will_wake(context.waker())) {
                *waker = Some(context.waker().clone());
            }
        }
        // Looked at after the waker is set, so that no wake is lost.
        self.closed.load(Ordering::Acquire)
    }

    async fn closed(&self) {
        let poll = |context: &mut Context<'_>| match self.poll_closed(context) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        };
        std::future::poll_fn(poll).await;
    }

    fn idle(&self) -> Option<Duration> {
        if self.calls.load(Ordering::Acquire) > 0 {
            return None;
        }
        let since = Duration::from_millis(self.idle_since.load(Ordering::Relaxed));
        Some(self.start.elapsed().saturating_sub(since))
    }
}

/// A call under way on a connection.
#[derive(Debug)]
pub(super) struct Active {
    state: Arc<State>,
    stalled: bool,
}

impl Peer {
    /// Counts a call until the result is dropped.
    pub(super) fn begin(&self) -> Active {
        self.state.calls.fetch_add(1, Ordering::AcqRel);
        Active {
            state: Arc::clone(&self.state),
            stalled: false,
        }
    }
}

impl Active {
    /// The caller has not read its answer in time. A connection with nothing but such calls, or many of them, is closed.
    pub(super) fn stall(&mut self) {
        if self.stalled {
            return;
        }
        self.stalled = true;
        let stalled = self.state.stalled.fetch_add(1, Ordering::AcqRel) + 1;
        if stalled >= self.state.calls.load(Ordering::Acquire).min(MAX_STALLED) {
            self.state.close();
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let state = &self.state;
        if self.stalled {
            state.stalled.fetch_sub(1, Ordering::AcqRel);
        }
        let now = u64::try_from(state.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        state.idle_since.store(now, Ordering::Relaxed);
        state.calls.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The open connections.
#[derive(Debug, Default)]
struct Registry {
    open: Mutex<(u64, HashMap<u64, Arc<State>>)>,
}

/// A place among them, given back when dropped.
#[derive(Debug)]
struct Place {
    id: u64,
    registry: Arc<Registry>,
}

impl Registry {
    /// Takes a place for `state`, if need be the one of the connection that has been idle longest.
    fn enter(self: &Arc<Self>, state: &Arc<State>, most: usize) -> Option<Place> {
        let mut open = self.open.lock();
        if open.1.len() >= most {
            let idlest = open
                .1
                .iter()
                .filter_map(|(id, state)| Some((*id, state.idle()?)))
                .max_by_key(|(_, idle)| *idle)?;
            open.1.remove(&idlest.0)?.close();
        }
        open.0 += 1;
        let id = open.0;
        open.1.insert(id, Arc::clone(state));
        Some(Place {
            id,
            registry: Arc::clone(self),
        })
    }
}

impl Registry {
    fn leave(&self) {
        let open = self.open.lock();
        open.1.values().for_each(|state| state.leave());
    }

    /// Closes every connection that has had no call for `limit`.
    fn close_idle(&self, limit: Duration) {
        let open = self.open.lock();
        let idle = |state: &&Arc<State>| state.idle().is_some_and(|idle| idle >= limit);
        open.1.values().filter(idle).for_each(|state| state.close());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.registry.open.lock().1.remove(&self.id);
    }
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that is ready for HTTP/2.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Corked<Stream>,
    peer: Arc<Peer>,
    /// When it is closed whatever it does: first for want of a preface, then for its age.
    end: Option<Pin<Box<Sleep>>>,
    /// Bytes of the preface that are still to come.
    missing: usize,
    life: Option<Duration>,
    _place: Place,
}

/// Accepts connections until the stream of them is dropped. Then those that have not finished their handshake are
/// closed: they hold no call. Those that hold none and do not take their leave have as long as a handshake may take.
pub(super) fn accept(
    listener: TcpListener,
    settings: Option<tls::Settings>,
    limits: TransportLimits,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, accepted) = mpsc::channel(64);
    tokio::spawn(async move {
        let registry = Arc::new(Registry::default());
        loop {
            let accepting = tokio::select! {
                accepting = listener.accept() => accepting,
                () = ready.closed() => break,
            };
            let (stream, address) = match accepting {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: the connections that are open go on.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            // A small answer would else wait 40 ms for the client's delayed acknowledgement.
            if stream.set_nodelay(true).is_err() {
                continue;
            }
            let state = Arc::new(State::new());
            let Some(place) = registry.enter(&state, limits.connections) else {
                tracing::debug!(%address, most = limits.connections, "too many busy connections");
                continue;
            };
            let acceptor = settings.as_ref().map(|s| TlsAcceptor::from(s.get()));
            let (ready, limits) = (ready.clone(), limits.clone());
            tokio::spawn(async move {
                let shaking = tokio::time::timeout(limits.handshake, shake(stream, acceptor));
                let shaken = tokio::select! {
                    shaken = shaking => shaken,
                    () = state.closed() => return,
                    () = ready.closed() => return,
                };
                match shaken {
                    Ok(Ok((stream, certificate))) => {
                        let peer = Arc::new(Peer {
                            address,
                            certificate,
                            state,
                        });
                        let connection = Connection::new(stream, peer, &limits, place);
                        // The receiver is gone when the server drains: the connection is closed then.
                        let _ = ready.send(Ok(connection)).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%address, %error, "TLS handshake failed"),
                    Err(_) => tracing::debug!(%address, "TLS handshake took too long"),
                }
            });
        }
        drop(listener);
        registry.leave();
        sleep(limits.handshake).await;
        registry.close_idle(limits.handshake);
    });
    ReceiverStream::new(accepted)
}

async fn shake(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
) -> io::Result<(Stream, Option<tls::Names>)> {
    let Some(acceptor) = acceptor else {
        return Ok((Stream::Plain(stream), None));
    };
    let stream = acceptor.accept(stream).await?;
    let certificates = stream.get_ref().1.peer_certificates();
    let certificate = certificates.and_then(|chain| tls::Names::of(chain.first()?));
    Ok((Stream::Tls(Box::new(stream)), certificate))
}

impl Connection {
    fn new(stream: Stream, peer: Arc<Peer>, limits: &TransportLimits, place: Place) -> Self {
        let aged = !limits.age.is_zero();
        Self {
            stream: Corked::new(stream),
            peer,
            end: Some(Box::pin(sleep(limits.handshake))),
            missing: PREFACE_BYTES,
            life: aged.then(|| limits.age + limits.age_grace),
            _place: place,
        }
    }

    /// An error if it is time to close.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.peer.state.poll_closed(context) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if let Some(end) = &mut self.end
            && end.as_mut().poll(context).is_ready()
        {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    /// Counts what came; after the preface only the age matters.
    fn came(&mut self, bytes: usize) {
        if self.missing == 0 || bytes == 0 {
            return;
        }
        self.missing = self.missing.saturating_sub(bytes);
        if self.missing == 0 {
            self.end = self.life.map(|life| Box::pin(sleep(life)));
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        Arc::clone(&self.peer)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.check(context)?;
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if read.is_ready() {
            this.came(buffer.filled().len() - before);
        } else if this.missing > 0 && this.peer.state.leaving.load(Ordering::Acquire) {
            // What had come already was read, so that a call behind the preface is still taken.
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Looked at here as well: a connection whose writing is stuck may not be read from.
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // Looked at here as well: a connection whose writing is stuck may not be read from.
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}
