//! The open connections, and who has to leave when there is no place for another.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::peer::State;
use crate::metrics::{InFlight, Metrics};

/// Sockets that may be open beside the most connections: those that are closing to make room, and those that are told that there is none.
pub const SPARE_CONNECTIONS: usize = 32;

/// Time in which a connection that means to call has done so.
const TIME_FOR_A_CALL: Duration = Duration::from_secs(2);

/// The open connections.
#[derive(Debug, Default)]
pub(super) struct Registry {
    open: Mutex<Open>,
    left: Notify,
}

#[derive(Debug, Default)]
struct Open {
    last: u64,
    /// Those that have a place, by number.
    states: HashMap<u64, Arc<State>>,
    /// Sockets that are open: of these, of those that are closing, and of those that are being refused.
    sockets: usize,
}

impl Open {
    /// Closes the connection that has been idle longest, one that has never had a call, and had time for one, before all
    /// others; false if none is idle.
    fn evict(&mut self) -> bool {
        let rank = |state: &State| {
            let idle = state.idle()?;
            Some((!state.is_used() && idle >= TIME_FOR_A_CALL, idle))
        };
        let idle = self.states.iter();
        let idle = idle.filter_map(|(id, state)| Some((*id, rank(state)?)));
        let Some((id, _)) = idle.max_by_key(|(_, rank)| *rank) else {
            return false;
        };
        if let Some(state) = self.states.remove(&id) {
            tracing::debug!(
                connection = id,
                "closed, for it has been idle longest and another came"
            );
            state.close();
        }
        true
    }
}

/// An open socket's share of the descriptors, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    /// Its number, if it is a connection that calls may come on.
    id: Option<u64>,
    _open: InFlight,
    registry: Arc<Registry>,
}

impl Registry {
    /// Waits until another socket may be opened.
    pub(super) async fn room(&self, most: usize) {
        loop {
            let left = self.left.notified();
            if self.open.lock().sockets < most.saturating_add(SPARE_CONNECTIONS) {
                return;
            }
            left.await;
        }
    }

    pub(super) fn open(self: &Arc<Self>, metrics: &Metrics) -> Place {
        self.open.lock().sockets += 1;
        Place {
            id: None,
            _open: metrics.connection(),
            registry: Arc::clone(self),
        }
    }

    /// Gives `place` to `state`, if need be by closing the connection that has been idle longest; whether one was closed,
    /// and none if there is no place.
    pub(super) fn enter(&self, place: &mut Place, state: &Arc<State>, most: usize) -> Option<bool> {
        let mut open = self.open.lock();
        let full = open.states.len() >= most;
        if full && !open.evict() {
            return None;
        }
        open.last += 1;
        let id = open.last;
        open.states.insert(id, Arc::clone(state));
        place.id = Some(id);
        Some(full)
    }

    /// Closes the connection that has been idle longest; false if none is idle.
    pub(super) fn evict(&self) -> bool {
        self.open.lock().evict()
    }

    /// Looks at all answers that may wait for their readers.
    pub(super) fn look(&self, limit: Duration) {
        let states: Vec<_> = self.open.lock().states.values().cloned().collect();
        states.iter().for_each(|state| state.look(limit));
    }

    /// Closes every connection that has had no call for `limit`.
    pub(super) fn close_idle(&self, limit: Duration) {
        let open = self.open.lock();
        let idle = |state: &&Arc<State>| state.idle().is_some_and(|idle| idle >= limit);
        open.states.values().filter(idle).for_each(|s| s.close());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.registry.open.lock();
        open.sockets -= 1;
        if let Some(id) = self.id {
            open.states.remove(&id);
        }
        drop(open);
        self.registry.left.notify_waiters();
    }
}
