//! Finished features, kept least recently used first out, within bounds on bytes.
//!
//! On a device rows are kept in its memory, within its own bound; those that have no room there any more move to host
//! memory or are forgotten, as configured.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use super::flight::{Key, Landed};
use crate::backend::{CachePolicy, Device};

#[derive(Debug)]
pub(super) struct Cache {
    host: Mutex<Shelf>,
    /// Rows in the device's memory.
    device: Mutex<Shelf>,
    spill: bool,
    misses: AtomicU64,
    evictions: AtomicU64,
}

/// Rows in one kind of memory.
#[derive(Debug, Default)]
struct Shelf {
    capacity: usize,
    entries: HashMap<Key, (Landed, u64)>,
    by_age: BTreeMap<u64, Key>,
    clock: u64,
    bytes: usize,
}

impl Cache {
    /// A cache of `capacity` bytes of host memory, 0 for none, and of what `device` is configured to keep in its own.
    pub(super) fn new(capacity: usize, device: &Arc<Device>) -> Self {
        let shelf = |capacity| {
            Mutex::new(Shelf {
                capacity,
                ..Shelf::default()
            })
        };
        let options = device.options();
        let on_device = if device.is_resident() {
            options.cache_bytes
        } else {
            0
        };
        Self {
            host: shelf(capacity),
            device: shelf(on_device),
            spill: options.cache_policy == CachePolicy::Spill,
            misses: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        }
    }

    /// Bytes held, in host memory and on the device.
    pub(super) fn bytes(&self) -> usize {
        self.host.lock().bytes + self.device.lock().bytes
    }

    /// Bytes that it may hold, in host memory and on the device.
    pub(super) fn capacity(&self) -> usize {
        self.host.lock().capacity + self.device.lock().capacity
    }

    fn evicted(&self, count: usize) {
        self.evictions.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Images that were looked for in vain.
    pub(super) fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    /// Images that had to make room.
    pub(super) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    pub(super) fn get(&self, key: &Key) -> Option<Landed> {
        let found = self.device.lock().get(key);
        let found = found.or_else(|| self.host.lock().get(key));
        if found.is_none() && self.capacity() > 0 {
            self.misses.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    /// Keeps `landed`. The row's copy is its own: a cached row must not keep its whole batch alive.
    pub(super) fn put(&self, key: Key, landed: &Landed) {
        let bytes = landed.row.bytes();
        let fits = |shelf: &Mutex<Shelf>| bytes <= shelf.lock().capacity;
        if landed.row.is_on_device() && fits(&self.device) {
            let Some(row) = landed.row.detached() else {
                return;
            };
            let kept = Landed {
                row,
                ..landed.clone()
            };
            let pushed_out = self.device.lock().put(key, kept);
            // What is spilled is still kept.
            if !self.spill {
                self.evicted(pushed_out.len());
            }
            for (key, landed) in pushed_out {
                self.spill(key, &landed);
            }
        } else if landed.row.is_on_device() {
            self.spill(key, landed);
        } else if fits(&self.host)
            && let Some(row) = landed.row.detached()
        {
            let kept = Landed {
                row,
                ..landed.clone()
            };
            let gone = self.host.lock().put(key, kept);
            self.evicted(gone.len());
        }
    }

    /// Moves everything off the device, whose memory is needed.
    pub(super) fn leave_device(&self) {
        let all = self.device.lock().clear();
        for (key, landed) in all {
            self.spill(key, &landed);
        }
    }

    /// Keeps a row of the device in host memory, if that is wanted and fits. The copy is enqueued; whoever reads the row
    /// is behind it on the same stream.
    fn spill(&self, key: Key, landed: &Landed) {
        if !self.spill || landed.row.bytes() > self.host.lock().capacity {
            return;
        }
        match landed.row.to_host() {
            Ok(row) => {
                let kept = Landed {
                    row,
                    ..landed.clone()
                };
                let gone = self.host.lock().put(key, kept);
                self.evicted(gone.len());
            }
            Err(error) => tracing::debug!(%error, "a cached row was forgotten"),
        }
    }
}

impl Shelf {
    fn get(&mut self, key: &Key) -> Option<Landed> {
        let (landed, age) = self.entries.get_mut(key)?;
        self.by_age.remove(age);
        self.clock += 1;
        *age = self.clock;
        self.by_age.insert(self.clock, *key);
        Some(landed.clone())
    }

    /// Keeps a row; returns those that have no room any more, oldest first.
    fn put(&mut self, key: Key, landed: Landed) -> Vec<(Key, Landed)> {
        let bytes = landed.row.bytes();
        self.clock += 1;
        if let Some((_, age)) = self.entries.insert(key, (landed, self.clock)) {
            self.by_age.remove(&age);
            self.bytes -= bytes;
        }
        self.by_age.insert(self.clock, key);
        self.bytes += bytes;
        let mut pushed_out = Vec::new();
        while self.bytes > self.capacity {
            let Some((_, oldest)) = self.by_age.pop_first() else {
                break;
            };
            if let Some((gone, _)) = self.entries.remove(&oldest) {
                self.bytes -= gone.row.bytes();
                pushed_out.push((oldest, gone));
            }
        }
        pushed_out
    }

    fn clear(&mut self) -> Vec<(Key, Landed)> {
        let all = std::mem::take(&mut self.entries);
        self.by_age.clear();
        self.bytes = 0;
        all.into_iter()
            .map(|(key, (landed, _))| (key, landed))
            .collect()
    }
}
