//! What waits: images to decode, decoded images, and complete jobs.
//!
//! Bounded by admission (every entry holds a place at the door) and, for decoded pixels, by `ready_limit`. The order is
//! first come, first served.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::{
    Source,
    flight::{Flight, Job},
};

/// An image ready for the backbone.
pub(super) struct Ready {
    pub(super) flight: Arc<Flight>,
    /// NHWC RGB at the input's size.
    pub(super) pixels: Bytes,
}

/// What a lane does next.
pub(super) enum Work {
    /// Complete jobs whose features are there already.
    Jobs(Vec<Arc<Job>>),
    /// Images of one size for the backbone.
    Batch(Vec<Ready>),
}

pub(super) struct Queue {
    state: Mutex<State>,
    for_lanes: Condvar,
    for_decoders: Condvar,
    ready_limit: usize,
    failed: watch::Sender<bool>,
}

struct State {
    encoded: VecDeque<Arc<Flight>>,
    ready: VecDeque<Ready>,
    jobs: Vec<Arc<Job>>,
    decoding: usize,
    idle_lanes: usize,
    idle_decoders: usize,
    closed: bool,
}

impl Queue {
    pub(super) fn new(lanes: usize, decoders: usize, ready_limit: usize) -> Self {
        let state = State {
            encoded: VecDeque::new(),
            ready: VecDeque::new(),
            jobs: Vec::new(),
            decoding: 0,
            idle_lanes: 0,
            idle_decoders: 0,
            closed: false,
        };
        debug_assert!(lanes > 0 && decoders > 0);
        Self {
            state: Mutex::new(state),
            for_lanes: Condvar::new(),
            for_decoders: Condvar::new(),
            ready_limit,
            failed: watch::Sender::new(false),
        }
    }

    /// Queues an image. Pixels that already have the input's size need no decoder. A closed queue hands it to `refuse`.
    pub(super) fn push(&self, flight: Arc<Flight>, refuse: impl FnOnce(&Flight)) {
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            refuse(&flight);
            return;
        }
        let (height, width) = (flight.preprocess.height, flight.preprocess.width);
        match &flight.source {
            Source::Raw {
                width: w,
                height: h,
                rgb,
            } if (*h, *w) == (height, width) => {
                let pixels = rgb.clone();
                state.ready.push_back(Ready { flight, pixels });
                self.for_lanes.notify_one();
            }
            _ => {
                state.encoded.push_back(flight);
                self.for_decoders.notify_one();
            }
        }
    }

    /// Queues complete jobs.
    pub(super) fn push_jobs(&self, jobs: Vec<Arc<Job>>) {
        self.state.lock().jobs.extend(jobs);
        self.for_lanes.notify_one();
    }

    /// The next image to decode; waits while enough decoded ones are there. `None`: closed.
    pub(super) fn next_encoded(&self) -> Option<Arc<Flight>> {
        let mut state = self.state.lock();
        loop {
            if state.ready.len() + state.decoding < self.ready_limit
                && let Some(flight) = state.encoded.pop_front()
            {
                state.decoding += 1;
                return Some(flight);
            }
            if state.closed {
                return None;
            }
            state.idle_decoders += 1;
            self.for_decoders.wait(&mut state);
            state.idle_decoders -= 1;
        }
    }

    /// A decoder is done with an image: decoded, or given up.
    pub(super) fn decoded(&self, ready: Option<Ready>) {
        let mut state = self.state.lock();
        state.decoding -= 1;
        if let Some(ready) = ready {
            state.ready.push_back(ready);
            self.for_lanes.notify_one();
        }
    }

    /// The next work for a lane, waiting for it. A batch holds images of one size: at most `most`, and no more than
    /// the lane's share where others are idle. `None`: closed and empty.
    pub(super) fn next_work(&self, most: usize) -> Option<Work> {
        let mut state = self.state.lock();
        loop {
            if !state.jobs.is_empty() {
                return Some(Work::Jobs(std::mem::take(&mut state.jobs)));
            }
            if !state.ready.is_empty() {
                let share = state.ready.len().div_ceil(state.idle_lanes + 1);
                let batch = take_batch(&mut state.ready, share.min(most));
                if state.idle_decoders > 0 && !state.encoded.is_empty() {
                    self.for_decoders.notify_all();
                }
                if state.idle_lanes > 0 && !state.ready.is_empty() {
                    self.for_lanes.notify_one();
                }
                return Some(Work::Batch(batch));
            }
            if state.closed && state.decoding == 0 {
                return None;
            }
            state.idle_lanes += 1;
            self.for_lanes.wait(&mut state);
            state.idle_lanes -= 1;
        }
    }

    /// No more work is taken; returns the images that were not begun.
    pub(super) fn close(&self) -> Vec<Arc<Flight>> {
        let mut state = self.state.lock();
        state.closed = true;
        let encoded = state.encoded.drain(..).collect::<Vec<_>>();
        let ready = state.ready.drain(..).map(|ready| ready.flight);
        let left = encoded.into_iter().chain(ready).collect();
        self.for_lanes.notify_all();
        self.for_decoders.notify_all();
        left
    }

    /// A lane died: nothing can be served any more. Returns what waited.
    pub(super) fn fail(&self) -> (Vec<Arc<Flight>>, Vec<Arc<Job>>) {
        let flights = self.close();
        let jobs = std::mem::take(&mut self.state.lock().jobs);
        self.failed.send_replace(true);
        (flights, jobs)
    }

    /// Completes once a lane has died.
    pub(super) async fn failed(&self) {
        let mut failed = self.failed.subscribe();
        // The sender lives in `self`: waiting cannot fail.
        let _ = failed.wait_for(|failed| *failed).await;
    }
}

/// Takes up to `most` images of the first one's size: the largest power of two that is there, so that every batch has
/// one of the warmed sizes and none is padded.
fn take_batch(ready: &mut VecDeque<Ready>, most: usize) -> Vec<Ready> {
    let size = |ready: &Ready| {
        (
            ready.flight.preprocess.height,
            ready.flight.preprocess.width,
        )
    };
    let Some(first) = ready.front().map(size) else {
        return Vec::new();
    };
    let fitting = ready
        .iter()
        .filter(|entry| size(entry) == first)
        .take(most.max(1))
        .count();
    let count = 1_usize << fitting.ilog2();
    let mut batch = Vec::with_capacity(count);
    let mut index = 0;
    while batch.len() < count && index < ready.len() {
        if size(&ready[index]) == first {
            batch.extend(ready.remove(index));
        } else {
            index += 1;
        }
    }
    batch
}
