//! What waits: images to decode, decoded images, complete jobs, and heads' outputs on their way to their callers.
//!
//! Bounded by admission (every entry holds a place at the door), for decoded pixels by `ready_limit`, and for what is
//! being decoded by `decode_bytes`.

mod ahead;
mod choose;
mod state;
mod work;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use choose::Look;
use state::{State, Waiting};
use work::finishing;

use super::{
    cost::Costs,
    flight::Flight,
    job::{Finish, Job, stopped},
    request::Source,
    sched::{
        decide::{Role, Rules},
        load::Load,
        rank::Rank,
        tuning::WAKING,
        turns,
    },
};
use crate::{error::Error, memory};

pub(super) use work::{Batch, Ready, Work};

/// What comes before an image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead {
    /// Images that wait and go first.
    pub(super) images: usize,
    /// About how long it is until the threads are free for it.
    pub(super) wait: Duration,
}

/// How the queue hands out work.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueOptions {
    /// Threads that run graphs.
    pub(super) lanes: usize,
    /// Threads that decode and postprocess; none where the lanes do.
    pub(super) workers: usize,
    /// Most decoded images that wait or are being decoded.
    pub(super) ready_limit: usize,
    /// Most bytes that decoding holds at once; an image that needs more by itself is decoded alone.
    pub(super) decode_bytes: u64,
    /// Most calls in one batch of a head.
    pub(super) max_batch: usize,
    /// How long a batch may wait to become larger.
    pub(super) max_delay: Duration,
}

impl QueueOptions {
    fn rules(&self) -> Rules {
        Rules {
            lanes: self.lanes,
            max_delay: self.max_delay,
        }
    }
}

pub(super) struct Queue {
    state: Mutex<State>,
    for_lanes: Condvar,
    for_workers: Condvar,
    for_close: Condvar,
    options: QueueOptions,
    failed: watch::Sender<Option<Error>>,
}

fn group([height, width]: [u32; 2]) -> u64 {
    u64::from(height) << 32 | u64::from(width)
}

fn size(group: u64) -> [u32; 2] {
    // Both halves fit by construction.
    [(group >> 32) as u32, group as u32]
}

/// Jobs of one loaded head batch together; a head that was replaced is another one.
fn head_group(job: &Job) -> u64 {
    // Heads are numbered from 1.
    job.head.as_ref().map_or(0, |head| head.number)
}

impl Queue {
    pub(super) fn new(options: QueueOptions) -> Self {
        Self {
            state: Mutex::new(State {
                threads: vec![None; options.lanes + options.workers],
                ..State::default()
            }),
            for_lanes: Condvar::new(),
            for_workers: Condvar::new(),
            for_close: Condvar::new(),
            options,
            failed: watch::Sender::new(None),
        }
    }

    /// Queues images. Pixels that already have the input's size need no decoding. A closed queue gives them back.
    pub(super) fn push(
        &self,
        flights: Vec<Arc<Flight>>,
        costs: &Costs,
    ) -> Result<(), Vec<Arc<Flight>>> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(flights);
        }
        let (mut count, now) = (flights.len(), Instant::now());
        for flight in flights {
            let decode = flight.cost.load.decode;
            state.turns.came(&flight.rank().flow.caller, decode, now);
            let [height, width] = flight.size();
            match &flight.source {
                Source::Raw {
                    width: w,
                    height: h,
                    rgb,
                } if (*h, *w) == (height, width) => {
                    let pixels = rgb.clone();
                    let decoded = false;
                    let ready = Ready {
                        flight,
                        pixels,
                        decoded,
                    };
                    push_ready(&mut state, ready);
                    if costs.is_quick([height, width]) && state.lanes_busy + state.lanes.woken > 0 {
                        // The lane that is up takes it along.
                        count -= 1;
                    }
                }
                _ => {
                    let rank = flight.rank();
                    let load = flight.cost.load;
                    let group = turns::group(load.decode);
                    let place = state.encoded.push(rank, group, load, Arc::clone(&flight));
                    state.places.wait(&flight, Waiting::Encoded(place));
                }
            }
        }
        self.wake(&mut state, count);
        Ok(())
    }

    /// Queues complete jobs.
    pub(super) fn push_jobs(&self, jobs: Vec<Arc<Job>>) {
        let mut state = self.state.lock();
        for job in jobs {
            let load = Load::rest(job.load());
            state
                .jobs
                .push(job.rank.clone(), head_group(&job), load, job);
        }
        self.wake(&mut state, 1);
    }

    /// Queues heads' outputs for threads of the CPU that are idle, and returns those that the caller, if it may do such
    /// work, had better do itself: its share, or all where to wake another thread would cost more than the work. Long ones
    /// wait for their turn.
    pub(super) fn push_finishes(&self, finishes: Vec<Finish>, inline: bool) -> Vec<Finish> {
        let is_long = |finish: &Finish| turns::group(finishing(finish)) == turns::LONG_ONES;
        let (long, mut finishes): (Vec<_>, Vec<_>) = finishes.into_iter().partition(is_long);
        let count = finishes.len();
        let all: Duration = finishes.iter().map(|f| f.job.finishing()).sum();
        let mut state = self.state.lock();
        let own = match inline {
            true if all < WAKING => count,
            true => count.div_ceil(state.lanes.idle + state.workers.idle + 1),
            false => 0,
        };
        let mut others = finishes.split_off(own);
        others.extend(long);
        let count = others.len();
        for finish in others {
            let (rank, takes) = (finish.job.rank.clone(), finishing(&finish));
            let group = turns::group(takes);
            state.finishes.push(rank, group, Load::rest(takes), finish);
        }
        self.wake(&mut state, count);
        finishes
    }

    /// A follower is more urgent than the image was.
    pub(super) fn promote(&self, flight: &Arc<Flight>, rank: Rank) {
        let mut state = self.state.lock();
        if !flight.promote(rank) {
            return;
        }
        let (rank, state, load) = (flight.rank(), &mut *state, flight.cost.load);
        let group = group(flight.size());
        let moved = match state.places.leave(flight) {
            Some(Waiting::Encoded(place)) => state.encoded.remove(&place).map(|entry| {
                let group = turns::group(load.decode);
                let place = state.encoded.push(rank, group, load, entry);
                Waiting::Encoded(place)
            }),
            Some(Waiting::Ready(place)) => state.ready.remove(&place).map(|entry| {
                let load = Load::rest(load.rest);
                let place = state.ready.push(rank, group, load, entry);
                Waiting::Ready(place)
            }),
            None => None,
        };
        if let Some(waiting) = moved {
            state.places.wait(flight, waiting);
        }
    }

    /// Takes out an image that nobody waits for any more; whether it was waiting.
    pub(super) fn forget(&self, flight: &Flight) -> bool {
        let mut state = self.state.lock();
        match state.places.leave(flight) {
            Some(Waiting::Encoded(place)) => state.encoded.remove(&place).is_some(),
            Some(Waiting::Ready(place)) => {
                let ready = state.ready.remove(&place);
                state.decoded -= usize::from(ready.as_ref().is_some_and(|ready| ready.decoded));
                ready.is_some()
            }
            None => false,
        }
    }

    /// A decoder is done with an image after some time: decoded, or given up. What took longer than it was thought to is
    /// charged to whoever sent it.
    pub(super) fn decoded(&self, flight: &Flight, took: Duration, ready: Option<Ready>) {
        let mut state = self.state.lock();
        state.decoding -= 1;
        state.decoding_bytes -= flight.cost.held;
        let more = took.as_secs_f64() - flight.cost.load.decode;
        if more > 0.0 {
            state.encoded.charge(&flight.rank(), more);
        }
        let mut count = usize::from(!state.encoded.is_empty());
        if let Some(ready) = ready {
            push_ready(&mut state, ready);
            count = 1;
        }
        self.wake(&mut state, count);
    }

    /// The next work for the thread `index`, waiting for it: lanes come first, in their order, then workers. Entries that
    /// nobody wants, or that cannot be answered in time, go to `dropped`. `None`: closed and empty.
    pub(super) fn next(
        &self,
        index: usize,
        role: Role,
        costs: &Costs,
        dropped: &mut Vec<Arc<Flight>>,
    ) -> Option<Work> {
        let mut state = self.state.lock();
        let doing = state.threads.get_mut(index).and_then(Option::take);
        let mut was_long = false;
        if let Some(doing) = doing {
            state.lanes_busy -= usize::from(doing.device);
            state.turns.end(doing.long);
            was_long = doing.long;
        }
        let threads = match self.options.workers {
            0 => self.options.lanes,
            workers => workers,
        };
        loop {
            let mut look = Look {
                role,
                costs,
                long: false,
                dropped: &mut *dropped,
                wait_until: None,
            };
            let looks_for = state.turns.looks_for(threads, was_long, Instant::now());
            for &long in looks_for {
                look.long = long;
                let Some(work) = self.work(&mut state, &mut look) else {
                    continue;
                };
                let (takes, device) = (work.takes(costs), work.is_on_device());
                state.begin(index, takes, device);
                if device {
                    state.lanes_busy += 1;
                    let more = state.encoded.len().min(1) + state.ready.len().min(1);
                    self.wake(&mut state, more);
                }
                return Some(work);
            }
            let wait_until = look.wait_until;
            if !dropped.is_empty() {
                return Some(Work::Nothing);
            }
            if state.closed && state.decoding == 0 && state.finishes.is_empty() {
                self.wake_all(&mut state);
                return None;
            }
            let condition = match role.device {
                true => &self.for_lanes,
                false => &self.for_workers,
            };
            state.waiters(role).idle += 1;
            // One that rests wakes now and then, to give back memory.
            let until = wait_until.unwrap_or_else(|| Instant::now() + memory::INTERVAL);
            let timed_out = condition.wait_until(&mut state, until).timed_out();
            let waiters = state.waiters(role);
            match timed_out {
                true => waiters.idle -= 1,
                false => waiters.woken -= 1,
            }
            if timed_out && wait_until.is_none() {
                return Some(Work::Nothing);
            }
        }
    }

    /// Images that wait, decoded or not.
    pub(super) fn len(&self) -> usize {
        let state = self.state.lock();
        state.encoded.len() + state.ready.len()
    }

    /// No more work is taken; returns the images and jobs that were not begun.
    pub(super) fn close(&self) -> (Vec<Arc<Flight>>, Vec<Arc<Job>>) {
        let mut state = self.state.lock();
        state.closed = true;
        let encoded = state.encoded.drain();
        let ready = state.ready.drain().into_iter().map(|ready| ready.flight);
        state.decoded = 0;
        state.places.clear();
        let flights = encoded.into_iter().chain(ready).collect();
        let jobs = state.jobs.drain();
        self.for_close.notify_all();
        self.wake_all(&mut state);
        (flights, jobs)
    }

    /// A lane died: nothing can be served any more. Returns what waited.
    pub(super) fn fail(&self, error: &Error) -> (Vec<Arc<Flight>>, Vec<Arc<Job>>) {
        let left = self.close();
        self.failed.send_replace(Some(error.clone()));
        left
    }

    /// Waits for `interval`; whether the queue was closed before or meanwhile.
    pub(super) fn closed_within(&self, interval: Duration) -> bool {
        let until = Instant::now() + interval;
        let mut state = self.state.lock();
        while !state.closed {
            if self.for_close.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.closed
    }

    /// Whether a lane has died.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.borrow().is_some()
    }

    /// Completes once a lane has died, with the reason.
    pub(super) async fn failed(&self) -> Error {
        let mut failed = self.failed.subscribe();
        // The sender lives in `self`: waiting cannot fail.
        let failed = failed.wait_for(Option::is_some).await;
        failed
            .ok()
            .and_then(|error| error.clone())
            .unwrap_or_else(stopped)
    }

    /// Wakes threads for `count` new entries.
    fn wake(&self, state: &mut State, count: usize) {
        state.workers.wake(&self.for_workers, count);
        state.lanes.wake(&self.for_lanes, count);
    }

    fn wake_all(&self, state: &mut State) {
        state.workers.wake_all(&self.for_workers);
        state.lanes.wake_all(&self.for_lanes);
    }
}

fn push_ready(state: &mut State, ready: Ready) {
    let flight = Arc::clone(&ready.flight);
    let group = group(flight.size());
    state.ready_since.get_or_insert_with(Instant::now);
    state.decoded += usize::from(ready.decoded);
    let load = Load::rest(flight.cost.load.rest);
    let place = state.ready.push(flight.rank(), group, load, ready);
    state.places.wait(&flight, Waiting::Ready(place));
}

#[cfg(test)]
mod tests;
