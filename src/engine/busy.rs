//! How the engine's threads spend their time.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Time that threads have spent on each kind of work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Decoding and resizing images.
    pub decode: Duration,
    /// Graphs, and what there is to do for a batch of them.
    pub graphs: Duration,
    /// Making results of heads' outputs.
    pub results: Duration,
}

impl Spent {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.decode + self.graphs + self.results
    }

    /// Each kind with the name that it has as a label.
    #[must_use]
    pub fn by_kind(&self) -> [(&'static str, Duration); 3] {
        [
            ("decode", self.decode),
            ("graphs", self.graphs),
            ("results", self.results),
        ]
    }
}

/// A running [`Spent`], in nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Busy {
    decode: AtomicU64,
    graphs: AtomicU64,
    results: AtomicU64,
}

impl Busy {
    pub(super) fn decoded(&self, took: Duration) {
        add(&self.decode, took);
    }

    /// A step with graphs that took so long, `results` of it for results.
    pub(super) fn computed(&self, took: Duration, results: Duration) {
        add(&self.graphs, took.saturating_sub(results));
        add(&self.results, results);
    }

    pub(super) fn finished(&self, took: Duration) {
        add(&self.results, took);
    }

    pub(super) fn get(&self) -> Spent {
        let of = |nanos: &AtomicU64| Duration::from_nanos(nanos.load(Ordering::Relaxed));
        Spent {
            decode: of(&self.decode),
            graphs: of(&self.graphs),
            results: of(&self.results),
        }
    }
}

fn add(nanos: &AtomicU64, took: Duration) {
    let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    nanos.fetch_add(took, Ordering::Relaxed);
}
