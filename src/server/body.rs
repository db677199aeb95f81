//! Bodies of calls: a message that comes too slowly or is too large ends, and so does an answer that nobody reads.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{
    task::JoinHandle,
    time::{Sleep, sleep},
};
use tonic::{Status, body::Body};

use super::{
    connection::Active,
    foreign,
    guard::Permits,
    packing::{self, Aside, PREFIX, Packing},
    status::status,
};
use crate::error::{Error, Kind};

/// Bytes of an answer that are handed over at once: what the transport holds of it when the caller stops reading.
const PIECE: usize = 64 << 10;

/// Bytes of a message that its reader has room for before it knows the length. Of a longer one it is given the prefix
/// first: it then makes room once, and does not copy what it had.
const ROOM: usize = 8 << 10;

// === requests ===

/// Whether a call's caller sends one message or many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// One, and the call's body must end in time.
    One,
    /// Many; each must be whole in time once it has begun, and the first must come.
    Stream,
}

/// A request's body with a time for each message and a bound on its length.
#[derive(Debug)]
pub(super) struct Message {
    inner: Body,
    framing: Framing,
    /// Whether messages may be packed.
    packed: bool,
    most_bytes: usize,
    limit: Duration,
    /// Runs while a message is awaited; made when there is something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
    prefix: [u8; PREFIX],
    prefix_bytes: usize,
    body_bytes: usize,
    messages: u64,
    /// What follows a prefix that was handed on by itself.
    rest: Bytes,
}

impl Message {
    pub(super) fn new(
        inner: Body,
        framing: Framing,
        packed: bool,
        most_bytes: usize,
        limit: Duration,
    ) -> Self {
        Self {
            inner,
            framing,
            packed,
            most_bytes,
            limit,
            timer: None,
            prefix: [0; PREFIX],
            prefix_bytes: 0,
            body_bytes: 0,
            messages: 0,
            rest: Bytes::new(),
        }
    }

    /// Follows the messages' bounds through `data`.
    fn follow(&mut self, mut data: &[u8]) -> Result<(), Status> {
        while !data.is_empty() {
            if self.body_bytes > 0 {
                let taken = self.body_bytes.min(data.len());
                self.body_bytes -= taken;
                data = &data[taken..];
            } else {
                let taken = (PREFIX - self.prefix_bytes).min(data.len());
                self.prefix[self.prefix_bytes..][..taken].copy_from_slice(&data[..taken]);
                self.prefix_bytes += taken;
                data = &data[taken..];
                if self.prefix_bytes < PREFIX {
                    return Ok(());
                }
                let [flag, length @ ..] = self.prefix;
                if flag > u8::from(self.packed) {
                    let message = match flag {
                        1 => "is marked as packed, but the header grpc-encoding does not say how",
                        _ => "does not begin with 0 or 1, as every gRPC message does",
                    };
                    return Err(status(&Error::invalid("request", message)));
                }
                self.body_bytes = u32::from_be_bytes(length) as usize;
                if self.body_bytes > self.most_bytes {
                    let message = format!(
                        "has {} bytes, but the limit is {}",
                        self.body_bytes, self.most_bytes
                    );
                    let error = Error::new(Kind::LimitExceeded, message).at("request");
                    return Err(status(&error));
                }
            }
            if self.body_bytes == 0 {
                self.prefix_bytes = 0;
                self.messages += 1;
                self.timer = None;
            }
        }
        Ok(())
    }

    /// Whether the next bytes must come in time.
    fn waits(&self) -> bool {
        self.framing == Framing::One || self.messages == 0 || self.prefix_bytes > 0
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
        if !this.rest.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.rest)))));
        }
        match Pin::new(&mut this.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let at_start = this.prefix_bytes == 0;
                let mut data = match frame.into_data() {
                    Ok(data) => data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                };
                this.follow(&data)?;
                if at_start && data.len() > ROOM {
                    this.rest = data.split_off(PREFIX);
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Poll::Pending if this.waits() => {
                let limit = this.limit;
                let timer = this.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
                if timer.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                let message = format!("the request did not come whole within {limit:?}");
                let error = Error::new(Kind::DeadlineExceeded, message);
                Poll::Ready(Some(Err(status(&error))))
            }
            // Reset, or its connection is gone: nobody's fault here, and nobody reads the answer.
            Poll::Ready(Some(Err(_))) => Poll::Ready(Some(Err(foreign::gone()))),
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.rest.is_empty() {
            true => self.inner.size_hint(),
            false => SizeHint::default(),
        }
    }
}

// === answers ===

/// What an answer holds until it is read, and what its watchdog takes away.
#[derive(Debug)]
struct Held {
    body: Body,
    /// What is left of a piece of the body that was too large to hand over at once.
    rest: Bytes,
    packer: Option<Packer>,
    _permits: Permits,
}

/// A message that is being packed.
type Packed = Pin<Box<dyn Future<Output = Result<Bytes, Status>> + Send>>;

/// How an answer's messages are to be packed, and one that is being packed elsewhere.
struct Packer {
    packing: Packing,
    aside: Aside,
    under_way: Option<Packed>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer")
            .field("packing", &self.packing)
            .finish_non_exhaustive()
    }
}

impl Packer {
    /// `frame` packed, if that is done soon; else it is under way, or not worth it.
    fn take(&mut self, frame: Bytes) -> Bytes {
        if !packing::is_worthwhile(&frame) {
            return frame;
        }
        let packing = self.packing;
        if packing::is_small(&frame) {
            return packing::pack(packing, frame);
        }
        let work = self
            .aside
            .clone()
            .run(move || packing::pack(packing, frame));
        self.under_way = Some(Box::pin(work));
        Bytes::new()
    }

    /// What was under way, once it is done.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Bytes, Status>> {
        let Some(work) = &mut self.under_way else {
            return Poll::Ready(Ok(Bytes::new()));
        };
        let done = ready!(work.as_mut().poll(context));
        self.under_way = None;
        Poll::Ready(done)
    }
}

#[derive(Debug)]
struct Watch {
    held: Mutex<Option<Held>>,
    active: Mutex<Option<Active>>,
    /// Counts polls, and whether the last one gave something: even while the answer waits for its maker, odd while it
    /// waits for its reader.
    polls: AtomicU64,
}

/// An answer's body. If its caller does not read on in time, what is left of it is let go of.
#[derive(Debug)]
pub(super) struct Answer {
    watch: Arc<Watch>,
    limit: Duration,
    frames: u32,
    watchdog: Option<JoinHandle<()>>,
}

impl Answer {
    /// The answer `body`, packed if `packing` says how.
    pub(super) fn new(
        body: Body,
        packing: Option<(Packing, Aside)>,
        limit: Duration,
        permits: Permits,
        active: Option<Active>,
    ) -> Self {
        let held = Held {
            body,
            rest: Bytes::new(),
            packer: packing.map(|(packing, aside)| Packer {
                packing,
                aside,
                under_way: None,
            }),
            _permits: permits,
        };
        Self {
            watch: Arc::new(Watch {
                held: Mutex::new(Some(held)),
                active: Mutex::new(active),
                polls: AtomicU64::new(0),
            }),
            limit,
            frames: 0,
            watchdog: None,
        }
    }
}

impl Held {
    /// Whether all of the body's frames that came have been handed over.
    fn is_bare(&self) -> bool {
        let under_way = self.packer.as_ref().is_some_and(|p| p.under_way.is_some());
        self.rest.is_empty() && !under_way
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(packer) = &mut self.packer
            && self.rest.is_empty()
        {
            self.rest = ready!(packer.poll(context))?;
        }
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => match &mut self.packer {
                        None => self.rest = data,
                        Some(packer) => {
                            self.rest = packer.take(data);
                            // What is under way is waited for.
                            if packer.under_way.is_some() {
                                return self.poll(context);
                            }
                        }
                    },
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return other,
            }
        }
        let piece = self.rest.len().min(PIECE);
        let piece = self.rest.copy_to_bytes(piece);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl Watch {
    /// Ends the answer once its reader has done nothing for `limit`.
    async fn guard(&self, limit: Duration) {
        let mut before = self.polls.load(Ordering::Acquire);
        loop {
            sleep(limit).await;
            let now = self.polls.load(Ordering::Acquire);
            if now == before && now % 2 == 1 {
                break;
            }
            before = now;
        }
        drop(self.held.lock().take());
        if let Some(active) = self.active.lock().as_mut() {
            active.stall();
        }
        tracing::debug!(?limit, "an answer was not read in time");
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let mut held = this.watch.held.lock();
        let Some(open) = held.as_mut() else {
            let message = format!("the answer was not read within {:?}", this.limit);
            let error = Error::new(Kind::DeadlineExceeded, message);
            return Poll::Ready(Some(Err(status(&error))));
        };
        let polled = open.poll(context);
        let more = !open.rest.is_empty();
        drop(held);
        let gave = u64::from(polled.is_ready());
        let polls = this.watch.polls.load(Ordering::Relaxed);
        this.watch
            .polls
            .store(((polls >> 1) + 1) << 1 | gave, Ordering::Release);
        if polled.is_ready() {
            this.frames = this.frames.saturating_add(1);
            // One small message and its trailers are in the transport's hands at once; only what goes on is watched.
            if this.watchdog.is_none() && (more || this.frames > 2) {
                let (watch, limit) = (Arc::clone(&this.watch), this.limit);
                this.watchdog = Some(tokio::spawn(async move { watch.guard(limit).await }));
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let held = self.watch.held.lock();
        held.as_ref()
            .is_some_and(|held| held.is_bare() && held.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match self.watch.held.lock().as_ref() {
            Some(held) if held.packer.is_none() && held.rest.is_empty() => held.body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(watchdog) = &self.watchdog {
            watchdog.abort();
        }
    }
}

/// Follows `bytes`, cut as its first byte says: whatever they are, no more than a message is waited for.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    let [step, bytes @ ..] = bytes else {
        return;
    };
    let limit = Duration::from_secs(1);
    let mut message = Message::new(Body::empty(), Framing::Stream, true, 1 << 20, limit);
    for piece in bytes.chunks(usize::from(*step).max(1)) {
        if message.follow(piece).is_err() {
            return;
        }
        assert!(message.prefix_bytes <= PREFIX && message.body_bytes <= 1 << 20);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(framing: Framing) -> Message {
        Message::new(Body::empty(), framing, false, 100, Duration::from_secs(1))
    }

    #[test]
    fn messages_are_followed_however_they_are_cut() {
        let mut bytes = Vec::new();
        for length in [0_u8, 7, 100] {
            bytes.extend_from_slice(&[0, 0, 0, 0, length]);
            bytes.extend(std::iter::repeat_n(9, usize::from(length)));
        }
        for step in 1..=bytes.len() {
            let mut message = message(Framing::Stream);
            for piece in bytes.chunks(step) {
                message.follow(piece).unwrap();
            }
            assert_eq!((message.messages, message.waits()), (3, false), "{step}");
        }
    }

    #[tokio::test]
    async fn a_long_message_is_handed_on_after_its_prefix() {
        for (length, expected) in [(ROOM, vec![PREFIX, ROOM]), (9, vec![PREFIX + 9])] {
            // Bytes of a prefix are text as long as the length is.
            let whole = String::from_utf8(
                [&[0, 0, 0], &length.to_be_bytes()[6..], &vec![b'x'; length]].concat(),
            );
            let whole = whole.unwrap();
            let body = Body::new(whole.clone());
            let mut message = Message::new(body, Framing::One, false, ROOM, Duration::from_secs(1));
            let (mut frames, mut bytes) = (Vec::new(), Vec::new());
            while !message.is_end_stream() {
                let frame =
                    std::future::poll_fn(|context| Pin::new(&mut message).poll_frame(context));
                let data = frame.await.unwrap().unwrap().into_data().unwrap();
                frames.push(data.len());
                bytes.extend_from_slice(&data);
            }
            assert_eq!((frames, bytes), (expected, whole.into_bytes()));
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_bytes() {
        let refused = message(Framing::One)
            .follow(&[0, 0, 0, 0, 101])
            .unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().contains("101 bytes"), "{refused:?}");
    }

    #[test]
    fn one_message_waits_for_its_end_and_a_stream_for_the_rest_of_what_has_begun() {
        let mut one = message(Framing::One);
        one.follow(&[0, 0, 0, 0, 1, 5]).unwrap();
        assert!(one.waits());
        let mut stream = message(Framing::Stream);
        assert!(stream.waits());
        stream.follow(&[0, 0, 0, 0, 1, 5, 0]).unwrap();
        assert!(stream.waits());
        stream.follow(&[0, 0, 0, 0]).unwrap();
        assert!(!stream.waits());
    }
}
