//! Since when each lane has been on its step.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
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
    pub(super) fn overdue(&self, limit: Duration) -> Option<usize> {
        let now = self.origin.elapsed();
        self.begun.iter().position(|begun| {
            let begun = begun.load(Ordering::Relaxed);
            begun > 0 && now.saturating_sub(Duration::from_nanos(begun - 1)) > limit
        })
    }
}
