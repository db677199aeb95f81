//! Bodies of calls: a message that comes too slowly or is too large ends, and so does an answer that nobody reads.

use std::{
    collections::VecDeque,
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
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{
    task::JoinHandle,
    time::{Sleep, sleep},
};
use tonic::{Status, body::Body};

use super::{
    budget::Account,
    connection::Active,
    foreign,
    guard::Permits,
    packing::{self, Aside, PREFIX, Packing},
    places::Eviction,
    status::status,
};
use crate::error::{Error, Kind};

/// Bytes of an answer that are handed over at once: what the transport holds of it when the caller stops reading.
const PIECE: usize = 64 << 10;

/// Bytes of a message that its reader has room for before it knows the length. Of a longer one it is given the prefix
/// first: it then makes room once, and does not copy what it had.
const ROOM: usize = 8 << 10;

/// The longest message that its reader may make room for before more than its length has come. What there is of a longer
/// one is kept here until half of it has come.
const TRUSTED: usize = 256 << 10;

/// Bytes a second that the caller has to read of an answer that waits for it.
const LEAST_RATE: u64 = 16 << 10;

/// How often an answer is looked at within the time that it may be left unread.
const LOOKS: u32 = 4;

// === requests ===

/// Whether a call's caller sends one message or many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// One, and the call's body must end in time.
    One,
    /// Many; each must be whole in time once it has begun, and the first must come.
    Stream,
}

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
            let message = format!("has {} bytes, but the limit is {most}", self.length);
            let error = Error::new(Kind::LimitExceeded, message).at("request");
            return Err(status(&error));
        }
        Ok(())
    }

    /// A message has come whole.
    fn end(&mut self) {
        // Its reader still has to unpack it.
        if self.prefix[0] == 1 {
            self.kept += self.length;
        }
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
            self.length - self.body_bytes
        } else if self.body_bytes > 0 || self.ready.bytes > 0 {
            self.length + self.ready.bytes
        } else {
            0
        };
        own + self.kept
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
        if self.holds() {
            let rest = data.split_off(began.unwrap_or(0));
            self.held.push(rest);
            self.charge()?;
            return Ok((!data.is_empty()).then_some(data));
        }
        if !self.held.pieces.is_empty() {
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

// === answers ===

/// What an answer holds until it is read, and what its watchdog takes away.
#[derive(Debug)]
struct Held {
    body: Body,
    /// What is left of a piece of the body that was too large to hand over at once.
    rest: Bytes,
    packer: Option<Packer>,
    account: Account,
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
    /// Bytes that have been handed over.
    handed: AtomicU64,
}

/// An answer's body. If its caller does not read on in time, or too slowly, what is left of it is let go of.
#[derive(Debug)]
pub(super) struct Answer {
    watch: Arc<Watch>,
    limit: Duration,
    frames: u32,
    watchdog: Option<JoinHandle<()>>,
    eviction: Option<Eviction>,
    /// Whether it has ended with an error of the server's own.
    failed: bool,
}

impl Answer {
    /// The answer `body`, packed if `packing` says how. What waits for its reader is on `account`; `eviction` ends it.
    pub(super) fn new(
        body: Body,
        packing: Option<(Packing, Aside)>,
        limit: Duration,
        account: Account,
        permits: Permits,
        active: Option<Active>,
        eviction: Option<Eviction>,
    ) -> Self {
        let held = Held {
            body,
            rest: Bytes::new(),
            packer: packing.map(|(packing, aside)| Packer {
                packing,
                aside,
                under_way: None,
            }),
            account,
            _permits: permits,
        };
        Self {
            watch: Arc::new(Watch {
                held: Mutex::new(Some(held)),
                active: Mutex::new(active),
                polls: AtomicU64::new(0),
                handed: AtomicU64::new(0),
            }),
            limit,
            frames: 0,
            watchdog: None,
            eviction,
            failed: false,
        }
    }
}

impl Answer {
    /// Ends with `error` in the trailers: as an error of the body it would be a reset, which says nothing.
    fn fail(&mut self, error: &Status) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        drop(self.watch.held.lock().take());
        self.failed = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(match error.add_header(&mut trailers) {
            Ok(()) => Some(Ok(Frame::trailers(trailers))),
            Err(error) => Some(Err(error)),
        })
    }
}

impl Held {
    /// Whether all of the body's frames that came have been handed over.
    fn is_bare(&self) -> bool {
        let under_way = self.packer.as_ref().is_some_and(|p| p.under_way.is_some());
        self.rest.is_empty() && !under_way
    }

    /// What waits for the reader is on the account from here on, but for a piece.
    fn charge(&mut self, bytes: usize) -> Result<(), Status> {
        let waiting = if bytes > PIECE { bytes } else { 0 };
        let held = self.account.hold(waiting, "unread answers");
        held.map_err(|error| status(&error))
    }

    /// Takes a message of the body.
    fn take(&mut self, data: Bytes) -> Result<(), Status> {
        self.charge(data.len())?;
        match &mut self.packer {
            None => self.rest = data,
            Some(packer) => self.rest = packer.take(data),
        }
        Ok(())
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        while self.rest.is_empty() {
            // What is being packed is waited for.
            if let Some(packer) = &mut self.packer {
                self.rest = ready!(packer.poll(context))?;
                if !self.rest.is_empty() {
                    break;
                }
            }
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    Ok(data) => self.take(data)?,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return other,
            }
        }
        let piece = self.rest.len().min(PIECE);
        let piece = self.rest.copy_to_bytes(piece);
        self.charge(self.rest.len())?;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl Watch {
    /// Ends the answer once its reader has done nothing for `limit`, or too little.
    async fn guard(&self, limit: Duration) {
        let least = LEAST_RATE as f64 * limit.as_secs_f64();
        loop {
            let before = self.polls.load(Ordering::Acquire);
            let handed = self.handed.load(Ordering::Relaxed);
            let mut waits = true;
            for _ in 0..LOOKS {
                sleep(limit / LOOKS).await;
                waits &= self.polls.load(Ordering::Acquire) % 2 == 1;
            }
            let idle = self.polls.load(Ordering::Acquire) == before;
            let read = self.handed.load(Ordering::Relaxed) - handed;
            if waits && (idle || (read as f64) < least) {
                break;
            }
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
        if this.failed {
            return Poll::Ready(None);
        }
        let mut held = this.watch.held.lock();
        let Some(open) = held.as_mut() else {
            let message = format!("the answer was not read within {:?}", this.limit);
            let error = Error::new(Kind::DeadlineExceeded, message);
            return Poll::Ready(Some(Err(status(&error))));
        };
        let polled = open.poll(context);
        let more = !open.rest.is_empty();
        drop(held);
        if polled.is_pending()
            && let Some(eviction) = &mut this.eviction
            && let Poll::Ready(error) = Pin::new(eviction).poll(context)
        {
            return this.fail(&status(&error));
        }
        if let Poll::Ready(Some(Err(error))) = &polled {
            return this.fail(error);
        }
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            this.watch
                .handed
                .fetch_add(data.len() as u64, Ordering::Relaxed);
        }
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
        let ended = held.as_ref();
        self.failed || ended.is_some_and(|held| held.is_bare() && held.body.is_end_stream())
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
    let bounds = Bounds {
        most_bytes: 1 << 20,
        read: Duration::from_secs(1),
    };
    let account = Budget::new(1 << 20, Arc::default()).account(Party::Local);
    let mut message = Message::new(Body::empty(), Framing::Stream, true, bounds, account);
    for piece in bytes.chunks(usize::from(*step).max(1)) {
        if message.follow(piece).is_err() {
            return;
        }
        assert!(message.prefix_bytes <= PREFIX && message.body_bytes <= 1 << 20);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{budget::Budget, party::Party},
        *,
    };

    fn over(body: Body, framing: Framing, most_bytes: usize, budget: &Arc<Budget>) -> Message {
        let bounds = Bounds {
            most_bytes,
            read: Duration::from_secs(1),
        };
        Message::new(body, framing, false, bounds, budget.account(Party::Local))
    }

    fn message(framing: Framing) -> Message {
        let budget = Budget::new(1 << 20, Arc::default());
        over(Body::empty(), framing, 100, &budget)
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
            let budget = Budget::new(1 << 20, Arc::default());
            let mut message = over(body, Framing::One, ROOM, &budget);
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
