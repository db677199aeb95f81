//! How long it is until the threads are free for somebody.

use std::time::{Duration, Instant};

use super::{
    Ahead, Queue,
    state::{Doing, State},
};
use crate::engine::sched::{estimate, load::Load, rank::Rank};

impl Queue {
    /// What comes before an image of this rank that came now.
    pub(in crate::engine) fn ahead(&self, rank: &Rank) -> Ahead {
        let state = self.state.lock();
        let (encoded, ready) = (state.encoded.ahead(rank), state.ready.ahead(rank));
        let jobs = state.jobs.ahead(rank).load.rest;
        let finishing = state.finishes.ahead(rank).load.rest;
        let load = encoded.load + ready.load;
        Ahead {
            images: encoded.images + ready.images,
            wait: self.wait(&state, load, jobs, finishing),
        }
    }

    /// About how long it is until everything that waits is done.
    pub(in crate::engine) fn backlog(&self) -> Duration {
        let state = self.state.lock();
        let load = state.encoded.load() + state.ready.load();
        if load == Load::default() {
            return Duration::ZERO;
        }
        let (jobs, finishing) = (state.jobs.load().rest, state.finishes.load().rest);
        self.wait(&state, load, jobs, finishing)
    }

    /// How long it is until the threads are free for somebody before whom `load`, complete `jobs` and results go, with
    /// what they are about already.
    fn wait(&self, state: &State, load: Load, jobs: f64, finishing: f64) -> Duration {
        let (now, lanes) = (Instant::now(), self.options.lanes);
        let busy = |doing: &Option<Doing>| {
            let left = doing.map(|doing| doing.until.saturating_duration_since(now));
            left.unwrap_or_default().as_secs_f64()
        };
        let (on_lanes, on_workers) = state.threads.split_at(lanes.min(state.threads.len()));
        let (on_lanes, on_workers) = (on_lanes.iter().map(busy), on_workers.iter().map(busy));
        let seconds = match self.options.workers {
            0 => estimate::wait(on_lanes, load.total() + jobs + finishing),
            // One decodes the next images while the other computes.
            _ => {
                let decoded = estimate::wait(on_workers, load.decode + finishing);
                decoded.max(estimate::wait(on_lanes, load.rest + jobs))
            }
        };
        // No thread is an hour behind.
        Duration::from_secs_f64(seconds.clamp(0.0, 3600.0))
    }
}
