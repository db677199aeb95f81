//! A connection's bytes: in turns, counted, and at an end when it is too old or stands in others' way.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::{
    TransportLimits,
    frames::{Flood, Meter},
    greeting::{Greeting, PREFACE},
    peer::Peer,
    registry::Place,
    socket::Bare,
};
use crate::{corked::Corked, metrics::Metrics};

/// Bytes that a connection reads before others have their turn.
const TURN: usize = 256 << 10;

/// The bytes of a connection, in plain text or not.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(Bare),
    Tls(Box<TlsStream<Bare>>),
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
        let read = self.meter.read(bytes, Instant::now());
        let resets = self.meter.new_resets();
        if resets > 0 {
            self.metrics.reset_by_callers(resets);
        }
        let Err(flood) = read else {
            return Ok(());
        };
        self.metrics.refused("flood");
        let address = self.peer.origin;
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
