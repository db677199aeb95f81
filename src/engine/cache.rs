//! Finished features, kept least recently used first out, within a bound on bytes.

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;

use super::flight::{Key, Landed};

#[derive(Debug)]
pub(super) struct Cache {
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Key, (Landed, u64)>,
    by_age: BTreeMap<u64, Key>,
    clock: u64,
    bytes: usize,
}

impl Cache {
    /// A cache of `capacity` bytes; 0 keeps nothing.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            state: Mutex::default(),
        }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    pub(super) fn get(&self, key: &Key) -> Option<Landed> {
        if self.capacity == 0 {
            return None;
        }
        let mut state = self.state.lock();
        let state = &mut *state;
        let (landed, age) = state.entries.get_mut(key)?;
        state.by_age.remove(age);
        state.clock += 1;
        *age = state.clock;
        state.by_age.insert(state.clock, *key);
        Some(landed.clone())
    }

    /// Keeps `landed`. The row's copy is its own: a cached row must not keep its whole batch alive.
    pub(super) fn put(&self, key: Key, landed: &Landed) {
        let bytes = landed.row.bytes();
        if bytes > self.capacity {
            return;
        }
        let Some(row) = landed.row.detached() else {
            return;
        };
        let mut state = self.state.lock();
        let state = &mut *state;
        state.clock += 1;
        let entry = Landed {
            row,
            ..landed.clone()
        };
        if let Some((_, age)) = state.entries.insert(key, (entry, state.clock)) {
            state.by_age.remove(&age);
            state.bytes -= bytes;
        }
        state.by_age.insert(state.clock, key);
        state.bytes += bytes;
        while state.bytes > self.capacity {
            let Some((_, oldest)) = state.by_age.pop_first() else {
                break;
            };
            if let Some((gone, _)) = state.entries.remove(&oldest) {
                state.bytes -= gone.row.bytes();
            }
        }
    }
}
