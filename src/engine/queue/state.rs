//! What a queue holds, and what its threads are about.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Condvar;

use super::work::Ready;
use crate::engine::{
    flight::Flight,
    job::{Finish, Job},
    sched::{
        decide::Role,
        fair::{Place, Schedule},
        tuning::LONG,
        turns::Turns,
    },
};

#[derive(Default)]
pub(super) struct State {
    pub(super) encoded: Schedule<Arc<Flight>>,
    pub(super) ready: Schedule<Ready>,
    /// Where each image waits.
    pub(super) places: Places,
    pub(super) jobs: Schedule<Arc<Job>>,
    pub(super) finishes: Schedule<Finish>,
    /// Since when decoded images wait.
    pub(super) ready_since: Option<Instant>,
    pub(super) decoding: usize,
    /// Bytes that those hold.
    pub(super) decoding_bytes: u64,
    pub(super) turns: Turns,
    /// Decoded images that wait.
    pub(super) decoded: usize,
    pub(super) lanes_busy: usize,
    /// What each thread is about, the lanes first.
    pub(super) threads: Vec<Option<Doing>>,
    pub(super) lanes: Waiters,
    pub(super) workers: Waiters,
    /// Jobs and batches take turns where both wait.
    pub(super) batch_next: bool,
    pub(super) closed: bool,
}

/// Where an image waits.
#[derive(Debug)]
pub(super) enum Waiting {
    /// To be decoded.
    Encoded(Place),
    /// For a batch.
    Ready(Place),
}

/// Where each image waits, by its number.
#[derive(Debug, Default)]
pub(super) struct Places(HashMap<u64, Waiting>);

impl Places {
    pub(super) fn wait(&mut self, flight: &Flight, waiting: Waiting) {
        self.0.insert(flight.number, waiting);
    }

    /// It waits no longer; where it did.
    pub(super) fn leave(&mut self, flight: &Flight) -> Option<Waiting> {
        self.0.remove(&flight.number)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// A thread's present step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Doing {
    /// When it is thought to be done.
    pub(super) until: Instant,
    /// Whether it holds a lane's device.
    pub(super) device: bool,
    /// Whether it is long, and cannot be called back.
    pub(super) long: bool,
}

/// Threads of one kind that wait for work.
#[derive(Default)]
pub(super) struct Waiters {
    pub(super) idle: usize,
    /// Those that have been woken and have not yet looked.
    pub(super) woken: usize,
}

impl Waiters {
    pub(super) fn wake(&mut self, condition: &Condvar, most: usize) {
        for _ in 0..most.min(self.idle) {
            // One whose time is up has woken by itself.
            if condition.notify_one() {
                self.idle -= 1;
                self.woken += 1;
            }
        }
    }

    pub(super) fn wake_all(&mut self, condition: &Condvar) {
        let woken = condition.notify_all();
        self.idle -= woken;
        self.woken += woken;
    }
}

impl State {
    /// Notes that a thread is about something that is thought to take so many seconds.
    pub(super) fn begin(&mut self, index: usize, takes: f64, device: bool) {
        if let Some(doing) = self.threads.get_mut(index) {
            let until = Instant::now() + Duration::from_secs_f64(takes.clamp(0.0, 3600.0));
            let long = !device && takes >= LONG;
            self.turns.begin(long);
            *doing = Some(Doing {
                until,
                device,
                long,
            });
        }
    }

    pub(super) fn waiters(&mut self, role: Role) -> &mut Waiters {
        match role.device {
            true => &mut self.lanes,
            false => &mut self.workers,
        }
    }
}
