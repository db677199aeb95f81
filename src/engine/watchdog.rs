//! Notices a lane that does not come back. Nothing can interrupt a graph that hangs in its device, so the engine is
//! given up: everything that waits is told, and the process can end and be started anew.

use std::time::Duration;

use super::{Engine, Shared};
use crate::{
    backend::BackendError,
    error::{Error, Kind},
};

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
