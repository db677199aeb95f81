//! An answer's body: what is unread of it is accounted for, and if nobody reads on it ends.

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
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tonic::{Status, body::Body};

use super::{
    budget::Account,
    packing::{self, Aside, Packing},
    peer::{Active, Followed, LOOKS, Unread},
    places::{Eviction, Place},
    quota::Counted,
    status::status,
};
use crate::error::{Error, Kind};

/// Bytes of an answer that are handed over at once: what the transport holds of it when the caller stops reading.
pub(super) const PIECE: usize = 16 << 10;

/// Bytes a second that the caller has to read of an answer that waits for it.
const LEAST_RATE: u64 = 16 << 10;

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

/// A call's places, given back when its answer is read or its caller is gone.
#[derive(Debug)]
pub(super) struct Permits {
    _place: Place,
    _quota: Option<Counted>,
}

impl Permits {
    /// A place, and what the caller's quota counts.
    pub(super) fn new(place: Place, quota: Option<Counted>) -> Self {
        Self {
            _place: place,
            _quota: quota,
        }
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
    seen: Mutex<Seen>,
}

/// What the first of some looks saw.
#[derive(Debug, Default)]
struct Seen {
    looks: u32,
    polls: u64,
    handed: u64,
}

/// An answer's body. If its caller does not read on in time, or too slowly, what is left of it is let go of.
#[derive(Debug)]
pub(super) struct Answer {
    watch: Arc<Watch>,
    limit: Duration,
    followed: Option<Followed>,
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
                seen: Mutex::default(),
            }),
            limit,
            followed: None,
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

    /// `bytes` wait for the reader from here on.
    fn charge(&mut self, bytes: usize) -> Result<(), Status> {
        let held = self.account.hold(bytes, "unread answers");
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

impl Unread for Watch {
    fn look(&self, limit: Duration) {
        let (polls, handed) = (
            self.polls.load(Ordering::Acquire),
            self.handed.load(Ordering::Relaxed),
        );
        let mut seen = self.seen.lock();
        if polls % 2 == 0 {
            // It waits for its maker.
            seen.looks = 0;
            return;
        }
        if seen.looks == 0 {
            (seen.polls, seen.handed) = (polls, handed);
        }
        seen.looks += 1;
        if seen.looks <= LOOKS {
            return;
        }
        seen.looks = 0;
        let least = LEAST_RATE as f64 * limit.as_secs_f64();
        if polls != seen.polls && (handed - seen.handed) as f64 >= least {
            return;
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
        if polled.is_ready() && this.followed.is_none() {
            let answer = Arc::downgrade(&this.watch);
            let active = this.watch.active.lock();
            this.followed = active.as_ref().map(|active| active.follow(answer));
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

#[cfg(test)]
mod tests {
    use super::{
        super::{budget::Budget, party::Party, places::Places},
        *,
    };

    /// Reads an answer of 8 MiB, `pieces` of it between two looks; the bytes of its end, or until it was ended.
    fn read(pieces: usize) -> Result<usize, usize> {
        let budget = Budget::new(64 << 20, Arc::default());
        let body = Body::new("x".repeat(8 << 20));
        let limit = Duration::from_secs(60);
        let permits = Permits::new(Places::new(1, 1).enter(&Party::Local, 0).unwrap(), None);
        let account = budget.account(Party::Local);
        let mut answer = Answer::new(body, None, limit, account, permits, None, None);
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut bytes = 0;
        for turn in 1.. {
            let Poll::Ready(frame) = Pin::new(&mut answer).poll_frame(&mut context) else {
                panic!("it waits");
            };
            let Some(frame) = frame else {
                return Ok(bytes);
            };
            let Some(data) = frame.ok().and_then(|frame| frame.into_data().ok()) else {
                return Err(bytes);
            };
            bytes += data.len();
            assert!(budget.held() <= (8 << 20) - bytes);
            if turn % pieces == 0 {
                answer.watch.look(limit);
            }
        }
        unreachable!("it has an end")
    }

    #[test]
    fn an_answer_that_is_read_too_slowly_ends() {
        // Looks are 15 seconds apart: 15 pieces of 16 KiB between two are the least rate.
        assert_eq!(read(16), Ok(8 << 20));
        let ended = read(14).unwrap_err();
        assert!(ended < 14 * PIECE * 6, "{ended}");
        let ended = read(1).unwrap_err();
        assert!(ended < PIECE * 6, "{ended}");
    }
}
