//! Connections: what each does at the moment, its age, and its end when it stands in others' way.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::{
    TransportLimits,
    accept::Place,
    frames::{Flood, Meter},
    greeting::{Greeting, PREFACE},
    tls,
};
use crate::{corked::Corked, metrics::Metrics};

/// Answers that one connection may leave unread past their time before all of it is closed.
const MAX_STALLED: usize = 32;

/// Bytes that a connection reads before others have their turn.
const TURN: usize = 256 << 10;

/// Calls without a valid identity that a connection may make at once, and a second.
const MOST_STRIKES: f64 = 4096.0;
const STRIKE_RATE: f64 = 512.0;

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    /// Where it comes from.
    pub(super) address: SocketAddr,
    /// What its verified certificate says of its holder.
    pub(super) certificate: Option<tls::Names>,
    pub(super) state: Arc<State>,
}

/// An answer that may wait for its reader.
pub(super) trait Unread: Send + Sync + std::fmt::Debug {
    /// Is told, some times within `limit`, to end if its reader has done too little for so long.
    fn look(&self, limit: Duration);
}

#[derive(Debug, Default)]
struct Answers {
    last: u64,
    open: HashMap<u64, Weak<dyn Unread>>,
}

/// What a connection does at the moment.
#[derive(Debug)]
pub(super) struct State {
    /// Calls under way.
    calls: AtomicUsize,
    /// Of those, the ones whose answers nobody reads.
    stalled: AtomicUsize,
    /// When the last call ended, or the connection came: milliseconds after `start`.
    idle_since: AtomicU64,
    start: Instant,
    /// Whether a call has ever been let in.
    used: AtomicBool,
    /// Answers that have begun to be read.
    answers: Mutex<Answers>,
    closed: AtomicBool,
    waker: Mutex<Option<Waker>>,
    /// Calls that may yet come without a valid identity, and when they were counted last.
    strikes: Mutex<(f64, Instant)>,
}

impl State {
    pub(super) fn new() -> Self {
        let start = Instant::now();
        Self {
            calls: AtomicUsize::new(0),
            stalled: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            start,
            used: AtomicBool::new(false),
            answers: Mutex::default(),
            closed: AtomicBool::new(false),
            waker: Mutex::new(None),
            strikes: Mutex::new((MOST_STRIKES, start)),
        }
    }

    /// Counts a call without a valid identity; too many of them end the connection.
    pub(super) fn strike(&self) {
        let (left, before) = &mut *self.strikes.lock();
        let now = Instant::now();
        let since = now.saturating_duration_since(*before).as_secs_f64();
        *left = (*left + since * STRIKE_RATE).min(MOST_STRIKES) - 1.0;
        *before = now;
        if *left < 0.0 {
            self.close();
        }
    }

    /// Ends the connection, whatever it does.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
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

    /// Completes when it is to close.
    pub(super) async fn closed(&self) {
        let poll = |context: &mut Context<'_>| match self.poll_closed(context) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        };
        std::future::poll_fn(poll).await;
    }

    /// Looks at each answer that may wait for its reader.
    pub(super) fn look(&self, limit: Duration) {
        let open: Vec<_> = self.answers.lock().open.values().cloned().collect();
        for answer in open.iter().filter_map(Weak::upgrade) {
            answer.look(limit);
        }
    }

    /// Whether a call has ever been let in.
    pub(super) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// How long no call has been under way; none while one is.
    pub(super) fn idle(&self) -> Option<Duration> {
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
        self.state.used.store(true, Ordering::Relaxed);
        Active {
            state: Arc::clone(&self.state),
            stalled: false,
        }
    }
}

/// An answer that is looked at, until dropped.
#[derive(Debug)]
pub(super) struct Followed {
    state: Arc<State>,
    id: u64,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.state.answers.lock().open.remove(&self.id);
    }
}

impl Active {
    /// Has `answer` looked at until the result is dropped.
    pub(super) fn follow(&self, answer: Weak<dyn Unread>) -> Followed {
        let mut answers = self.state.answers.lock();
        answers.last += 1;
        let id = answers.last;
        answers.open.insert(id, answer);
        Followed {
            state: Arc::clone(&self.state),
            id,
        }
    }

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

/// The bytes of a connection, in plain text or not.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that is ready for HTTP/2.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Corked<Stream>,
    /// What was read of it to see that it speaks HTTP/2, as far as HTTP/2 has not read that yet.
    greeting: Greeting,
    meter: Meter,
    /// Bytes read in this turn.
    turn: usize,
    metrics: Arc<Metrics>,
    peer: Arc<Peer>,
    /// When it is closed for its age, whatever it does.
    end: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl Connection {
    /// A connection that has begun with `greeting`.
    pub(super) fn new(
        stream: Stream,
        greeting: Greeting,
        peer: Arc<Peer>,
        limits: &TransportLimits,
        metrics: Arc<Metrics>,
        place: Place,
    ) -> Self {
        let aged = !limits.age.is_zero();
        Self {
            stream: Corked::new(stream),
            greeting,
            meter: Meter::new(PREFACE.len(), Instant::now()),
            turn: 0,
            metrics,
            peer,
            end: aged.then(|| Box::pin(sleep(limits.age + limits.age_grace))),
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

    /// Follows what came.
    fn follow(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Err(flood) = self.meter.read(bytes, Instant::now()) else {
            return Ok(());
        };
        self.metrics.refused("flood");
        let address = self.peer.address;
        let what = match flood {
            Flood::Frames => "frames that carry nothing",
            Flood::Resets => "resets",
        };
        tracing::debug!(%address, "a connection was ended for its {what}");
        self.peer.state.close();
        Err(io::ErrorKind::ConnectionAborted.into())
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
        if this.turn >= TURN {
            this.turn = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        if !this.greeting.replay(buffer) {
            let read = Pin::new(&mut this.stream).poll_read(context, buffer);
            if read.is_pending() {
                this.turn = 0;
            }
            ready!(read)?;
        }
        let read = &buffer.filled()[before..];
        this.turn += read.len();
        this.follow(read)?;
        Poll::Ready(Ok(()))
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
        let wrote = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.meter.wrote(wrote);
        Poll::Ready(Ok(wrote))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // Looked at here as well: a connection whose writing is stuck may not be read from.
        self.check(context)?;
        let wrote = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices))?;
        self.meter.wrote(wrote);
        Poll::Ready(Ok(wrote))
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
