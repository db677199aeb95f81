//! A request's body: a message that comes too slowly, or is too large, ends it, and what has come is accounted for.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body};

use super::{budget::Account, foreign, packing::PREFIX, status::status};
use crate::error::{Error, Kind};

/// Bytes of a message that its reader has room for before it knows the length. Of a longer one it is given the prefix
/// first: it then makes room once, and does not copy what it had.
const ROOM: usize = 8 << 10;

/// The longest message that its reader may make room for before more than its length has come. What there is of a longer
/// one is kept here until half of it has come.
const TRUSTED: usize = 256 << 10;

/// Whether a call's caller sends one message or many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// One, and the call's body must end in time.
    One,
    /// Many; each must be whole in time once it has begun, and the first must come.
    Stream,
}

/// Bytes that a piece counts at least: it keeps what it came in, padding included.
const CRUMB: usize = 1 << 10;

/// What bounds a request's messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Bytes of one message.
    pub(super) most_bytes: usize,
    /// Time for one to come whole.
    pub(super) read: Duration,
}

/// A request's body with a time for each message and a bound on its length. What has come of a message is on an account
/// until its reader has the whole of it.
#[derive(Debug)]
pub(super) struct Message {
    inner: Body,
    framing: Framing,
    /// Whether messages may be packed.
    packed: bool,
    bounds: Bounds,
    /// Runs while a message is awaited; made when there is something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
    prefix: [u8; PREFIX],
    prefix_bytes: usize,
    /// Length of the current message, and what of it is still to come.
    length: usize,
    body_bytes: usize,
    messages: u64,
    /// What came and is not to be handed on yet.
    held: Pieces,
    /// What is to be handed on next.
    ready: Pieces,
    account: Account,
    /// Bytes that the reader says it keeps of a packed message.
    kept: usize,
    /// What small pieces of the current message count beyond their bytes.
    crumbs: usize,
}

/// Pieces and their bytes.
#[derive(Debug, Default)]
struct Pieces {
    pieces: VecDeque<Bytes>,
    bytes: usize,
}

impl Pieces {
    fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.bytes += piece.len();
            self.pieces.push_back(piece);
        }
    }

    fn pop(&mut self) -> Option<Bytes> {
        let piece = self.pieces.pop_front()?;
        self.bytes -= piece.len();
        Some(piece)
    }
}

impl Message {
    pub(super) fn new(
        inner: Body,
        framing: Framing,
        packed: bool,
        bounds: Bounds,
        account: Account,
    ) -> Self {
        Self {
            inner,
            framing,
            packed,
            bounds,
            timer: None,
            prefix: [0; PREFIX],
            prefix_bytes: 0,
            length: 0,
            body_bytes: 0,
            messages: 0,
            held: Pieces::default(),
            ready: Pieces::default(),
            account,
            kept: 0,
            crumbs: 0,
        }
    }

    /// Follows the messages' bounds through `data`. Tells where in it the message begins that it does not end, if that
    /// began in it.
    fn follow(&mut self, data: &[u8]) -> Result<Option<usize>, Status> {
        let (mut at, mut began) = (0, None);
        while at < data.len() {
            let left = &data[at..];
            if self.body_bytes > 0 {
                let taken = self.body_bytes.min(left.len());
                self.body_bytes -= taken;
                at += taken;
            } else {
                if self.prefix_bytes == 0 {
                    began = Some(at);
                }
                let taken = (PREFIX - self.prefix_bytes).min(left.len());
                self.prefix[self.prefix_bytes..][..taken].copy_from_slice(&left[..taken]);
                self.prefix_bytes += taken;
                at += taken;
                if self.prefix_bytes < PREFIX {
                    return Ok(began);
                }
                self.begin()?;
            }
            if self.body_bytes == 0 {
                self.end();
                began = None;
            }
        }
        Ok(began)
    }

    /// A prefix has come whole.
    fn begin(&mut self) -> Result<(), Status> {
        let [flag, length @ ..] = self.prefix;
        if flag > u8::from(self.packed) {
            let message = match flag {
                1 => "is marked as packed, but the header grpc-encoding does not say how",
                _ => "does not begin with 0 or 1, as every gRPC message does",
            };
            return Err(status(&Error::invalid("request", message)));
        }
        self.length = u32::from_be_bytes(length) as usize;
        self.body_bytes = self.length;
        let most = self.bounds.most_bytes;
        if self.length > most {
            let message = format!("has more than {most} bytes");
            let error = Error::new(Kind::LimitExceeded, message).at("request");
            let error = error.with("value", self.length).with("limit", most);
            return Err(status(&error));
        }
        Ok(())
    }

    /// A message has come whole.
    fn end(&mut self) {
        // Its reader still has to unpack it.
        if self.prefix[0] == 1 {
            self.kept += self.length + self.crumbs;
        }
        self.crumbs = 0;
        self.prefix_bytes = 0;
        self.messages += 1;
        self.timer = None;
    }

    /// Whether less than half of a long message has come.
    fn holds(&self) -> bool {
        self.length > TRUSTED && self.body_bytes > self.length / 2
    }

    /// Bytes that the current message takes, here or with its reader.
    fn bytes(&self) -> usize {
        let own = if self.holds() {
            self.length - self.body_bytes + self.ready.bytes
        } else if self.body_bytes > 0 || self.ready.bytes > 0 {
            self.length + self.ready.bytes
        } else {
            0
        };
        own + self.kept + self.crumbs
    }

    fn charge(&mut self) -> Result<(), Status> {
        let bytes = self.bytes();
        let held = self.account.hold(bytes, "requests in arrival");
        held.map_err(|error| status(&error))
    }

    /// The reader keeps `bytes` of a packed message, or makes room for them.
    ///
    /// # Errors
    /// There is no room for them.
    pub(super) fn keep(&mut self, bytes: usize) -> Result<(), Error> {
        self.kept = bytes;
        let bytes = self.bytes();
        self.account.hold(bytes, "requests in arrival")
    }

    /// Whether the next bytes must come in time.
    fn waits(&self) -> bool {
        self.framing == Framing::One || self.messages == 0 || self.prefix_bytes > 0
    }

    /// Takes what came; the answer is what is to be handed on of it at once.
    fn take(&mut self, mut data: Bytes) -> Result<Option<Bytes>, Status> {
        let at_start = self.prefix_bytes == 0;
        let began = self.follow(&data)?;
        // Pieces of a message that goes on at once are not kept.
        if self.holds() || self.prefix_bytes == PREFIX && self.prefix[0] == 1 {
            self.crumbs += CRUMB.saturating_sub(data.len());
        }
        if self.holds() {
            let rest = data.split_off(began.unwrap_or(0));
            let before = match began {
                Some(_) => std::mem::take(&mut self.held),
                None => Pieces::default(),
            };
            self.held.push(rest);
            if before.pieces.is_empty() {
                self.charge()?;
                return Ok((!data.is_empty()).then_some(data));
            }
            // The message before was held back as well, and this is its end.
            self.ready = before;
            self.ready.push(data);
            data = self.ready.pop().unwrap_or_default();
        } else if !self.held.pieces.is_empty() {
            self.held.push(data);
            self.ready = std::mem::take(&mut self.held);
            data = self.ready.pop().unwrap_or_default();
        }
        if (at_start || !self.ready.pieces.is_empty()) && data.len() > ROOM {
            let rest = data.split_off(PREFIX);
            self.ready.bytes += rest.len();
            self.ready.pieces.push_front(rest);
        }
        self.charge()?;
        Ok(Some(data))
    }

    /// Fails if the next bytes are too late.
    fn poll_time(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        if !self.waits() {
            return Poll::Pending;
        }
        let limit = self.bounds.read;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(timer.as_mut().poll(context));
        let message = format!("the request did not come whole within {limit:?}");
        Poll::Ready(status(&Error::new(Kind::DeadlineExceeded, message)))
    }
}

impl HttpBody for Message {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if let Some(piece) = this.ready.pop() {
                if this.ready.pieces.is_empty() {
                    this.charge()?;
                }
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            match Pin::new(&mut this.inner).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        if let Some(data) = this.take(data)? {
                            return Poll::Ready(Some(Ok(Frame::data(data))));
                        }
                    }
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Poll::Pending => {
                    let late = ready!(this.poll_time(context));
                    return Poll::Ready(Some(Err(late)));
                }
                // Reset, or its connection is gone: nobody's fault here, and nobody reads the answer.
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Some(Err(foreign::gone()))),
                Poll::Ready(None) if this.held.pieces.is_empty() => return Poll::Ready(None),
                Poll::Ready(None) => {
                    let error = Error::invalid("request", "ends within a message");
                    return Poll::Ready(Some(Err(status(&error))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let nothing = self.ready.pieces.is_empty() && self.held.pieces.is_empty();
        nothing && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.ready.pieces.is_empty() && self.held.pieces.is_empty() {
            true => self.inner.size_hint(),
            false => SizeHint::default(),
        }
    }
}

/// Follows `bytes`, cut as its first byte says: whatever they are, no more than a message is waited for.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    let [step, bytes @ ..] = bytes else {
        return;
    };
    let bounds = Bounds {
        most_bytes: 1 << 20,
        read: Duration::from_secs(1),
    };
    let account = super::budget::Budget::new(1 << 20, Default::default());
    let account = account.account(super::party::Party::Local);
    let mut message = Message::new(Body::empty(), Framing::Stream, true, bounds, account);
    for piece in bytes.chunks(usize::from(*step).max(1)) {
        if message.follow(piece).is_err() {
            return;
        }
        assert!(message.prefix_bytes <= PREFIX && message.body_bytes <= 1 << 20);
    }
}

#[cfg(test)]
mod tests;
