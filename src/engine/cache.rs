//! Finished features, kept least recently used first out, within bounds on bytes, in equal shares by who may share them.
//!
//! On a device rows are kept in its memory, within its own bound; those that have no room there any more move to host
//! memory or are forgotten, as configured.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;

use super::{flight::Key, landed::Landed, shelves::Shelves};
use crate::backend::{CachePolicy, Device};

#[derive(Debug)]
pub(super) struct Cache {
    host: Mutex<Shelves<Landed>>,
    /// Rows in the device's memory.
    device: Mutex<Shelves<Landed>>,
    spill: bool,
    misses: AtomicU64,
    evictions: AtomicU64,
}

impl Cache {
    /// A cache of `capacity` bytes of host memory, 0 for none, and of what `device` is configured to keep in its own.
    pub(super) fn new(capacity: usize, device: &Arc<Device>) -> Self {
        let shelf = |capacity| Mutex::new(Shelves::new(capacity));
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
        self.host.lock().bytes() + self.device.lock().bytes()
    }

    /// Bytes that it may hold, in host memory and on the device.
    pub(super) fn capacity(&self) -> usize {
        self.host.lock().capacity() + self.device.lock().capacity()
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
        let now = Instant::now();
        let found = self.device.lock().get(key, now);
        let found = found.or_else(|| self.host.lock().get(key, now));
        if found.is_none() && self.capacity() > 0 {
            self.misses.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    /// Keeps `landed`. The row's copy is its own: a cached row must not keep its whole batch alive.
    pub(super) fn put(&self, key: Key, landed: &Landed) {
        let bytes = landed.row.bytes();
        let fits = |shelf: &Mutex<Shelves<Landed>>| bytes <= shelf.lock().capacity();
        if landed.row.is_on_device() && fits(&self.device) {
            let Some(row) = landed.row.detached() else {
                return;
            };
            let kept = Landed {
                row,
                ..landed.clone()
            };
            let pushed_out = self.device.lock().put(key, kept, bytes, Instant::now());
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
            let gone = self.host.lock().put(key, kept, bytes, Instant::now());
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
        let bytes = landed.row.bytes();
        if !self.spill || bytes > self.host.lock().capacity() {
            return;
        }
        match landed.row.to_host() {
            Ok(row) => {
                let kept = Landed {
                    row,
                    ..landed.clone()
                };
                let gone = self.host.lock().put(key, kept, bytes, Instant::now());
                self.evicted(gone.len());
            }
            Err(error) => tracing::debug!(%error, "a cached row was forgotten"),
        }
    }
}
