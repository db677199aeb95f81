//! Who is at the other end of a connection, and what the connection does at the moment.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{socket::Origin, tls};

/// How often an answer is looked at within the time that it may be left unread.
pub(super) const LOOKS: u32 = 4;

/// Answers that one connection may leave unread past their time before all of it is closed.
const MAX_STALLED: usize = 32;

/// Calls without a valid identity that a connection may make at once, and a second.
const MOST_STRIKES: f64 = 4096.0;
const STRIKE_RATE: f64 = 512.0;

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    /// Where it comes from.
    pub(super) origin: Origin,
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
    pub(super) fn poll_closed(&self, context: &mut Context<'_>) -> bool {
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
