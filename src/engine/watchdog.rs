//! Notices a lane that does not come back. Nothing can interrupt a graph that hangs in its device, so the engine is
//! given up: everything that waits is told, and the process can end and be started anew.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::{Engine, Shared};
use crate::{
    backend::BackendError,
    error::{Error, Kind},
};

/// Since when each lane has been on its step.
#[derive(Debug)]
pub(super) struct Steps {
    origin: Instant,
    /// Nanoseconds after `origin`, plus one; 0 for a lane that is on none.
    begun: Vec<AtomicU64>,
}

impl Steps {
    pub(super) fn new(lanes: usize) -> Self {
        Self {
            origin: Instant::now(),
            begun: (0..lanes).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub(super) fn begin(&self, lane: usize) {
        let nanos = u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX - 1);
        self.set(lane, nanos + 1);
    }

    pub(super) fn end(&self, lane: usize) {
        self.set(lane, 0);
    }

    fn set(&self, lane: usize, value: u64) {
        if let Some(begun) = self.begun.get(lane) {
            begun.store(value, Ordering::Relaxed);
        }
    }

    /// The lane that has been on its step for more than `limit`, if one has.
    fn overdue(&self, limit: Duration) -> Option<usize> {
        let now = self.origin.elapsed();
        self.begun.iter().position(|begun| {
            let begun = begun.load(Ordering::Relaxed);
            begun > 0 && now.saturating_sub(Duration::from_nanos(begun - 1)) > limit
        })
    }
}

impl Engine {
    /// Starts the thread that looks after the lanes, unless there is no limit.
    pub(super) fn watch_lanes(&self) -> Result<(), BackendError> {
        let limit = self.shared.config.step_limit;
        if limit.is_zero() {
            return Ok(());
        }
        self.spawn("watchdog".to_owned(), move |shared| {
            while !shared.queue.closed_within(limit / 4) {
                if let Some(lane) = shared.steps.overdue(limit) {
                    give_up(shared, lane, limit);
                }
            }
        })
    }
}

fn give_up(shared: &Shared, lane: usize, limit: Duration) {
    let step_limit_ms = limit.as_secs_f64() * 1e3;
    tracing::error!(lane, step_limit_ms, "a lane hangs: the engine is given up");
    let message = format!("the device hangs: one step has taken more than {limit:.1?}");
    shared.fail(&Error::new(Kind::Unavailable, message));
}
