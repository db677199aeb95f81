//! Room for results: bytes that a call's features and results take, known before any of it is done from the images'
//! headers and the heads' manifests.
//!
//! As at the door, nobody can fill it: who has some may come to hold at most `SHARE` times what is then free, so that one
//! caller alone gets two thirds, and one that comes anew finds the rest.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use crate::error::{Error, Kind, Result};

/// What a caller of weight 1 may hold, over what is free.
const SHARE: f64 = 2.0;

#[derive(Debug, Default)]
struct Held {
    bytes: u64,
    callers: HashMap<Arc<str>, u64>,
}

/// Counts what is held.
#[derive(Debug)]
pub(super) struct Rooms {
    limit: u64,
    held: Arc<Mutex<Held>>,
}

/// Room for a call's results, given back when dropped.
#[derive(Debug)]
pub struct Room {
    caller: Arc<str>,
    bytes: AtomicU64,
    limit: u64,
    held: Arc<Mutex<Held>>,
}

/// When to come again after a result found no room.
const FULL: Duration = Duration::from_millis(100);

impl Room {
    /// Takes more, for what was not known before it was made.
    ///
    /// # Errors
    /// `Overloaded` where there is none.
    pub(super) fn grow(&self, bytes: u64) -> Result<()> {
        let mut held = self.held.lock();
        if bytes > self.limit - held.bytes {
            let limit = self.limit;
            let message = format!(
                "the room for results is full: {bytes} bytes more are needed of the {limit} that there are (limits.result_bytes)"
            );
            return Err(Error::new(Kind::Overloaded, message).retry_after(FULL));
        }
        held.bytes += bytes;
        *held.callers.entry(Arc::clone(&self.caller)).or_default() += bytes;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Rooms {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            held: Arc::default(),
        }
    }

    /// Bytes held.
    pub(super) fn held(&self) -> u64 {
        self.held.lock().bytes
    }

    /// Takes `bytes` for `caller`, or refuses at once; `wait` tells about how long what is inside takes.
    ///
    /// # Errors
    /// `LimitExceeded` for what never fits, `Overloaded` for what does not fit now.
    pub(super) fn take(
        &self,
        caller: &Arc<str>,
        weight: f64,
        bytes: u64,
        wait: impl FnOnce() -> Duration,
    ) -> Result<Arc<Room>> {
        let limit = self.limit;
        if bytes > limit {
            let message = format!(
                "its results may take {bytes} bytes, more than the {limit} that the server has for results (limits.result_bytes): send smaller or fewer images, or ask for less"
            );
            return Err(Error::new(Kind::LimitExceeded, message));
        }
        let mut held = self.held.lock();
        let own = held.callers.get(caller).copied().unwrap_or(0);
        let free = limit - held.bytes;
        // Of what is then free.
        let share = SHARE * weight * free.saturating_sub(bytes) as f64;
        let message = if bytes > free {
            format!(
                "the room for results is full: {free} of {limit} bytes are free, {bytes} are needed (limits.result_bytes)"
            )
        } else if own > 0 && (own + bytes) as f64 > share {
            format!(
                "{own} bytes of results are under way already, which is this caller's share of the {limit} that there are (limits.result_bytes)"
            )
        } else {
            held.bytes += bytes;
            *held.callers.entry(Arc::clone(caller)).or_default() += bytes;
            return Ok(Arc::new(Room {
                caller: Arc::clone(caller),
                bytes: bytes.into(),
                limit,
                held: Arc::clone(&self.held),
            }));
        };
        // Free for others before anything else is asked.
        drop(held);
        let delay = wait().clamp(Duration::from_millis(10), Duration::from_secs(5));
        Err(Error::new(Kind::Overloaded, message).retry_after(delay))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut held = self.held.lock();
        let bytes = self.bytes.load(Ordering::Relaxed);
        held.bytes -= bytes;
        if let Some(own) = held.callers.get_mut(&self.caller) {
            *own -= bytes;
            if *own == 0 {
                held.callers.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: u64 = 1000;

    proptest! {
        /// Whatever comes and goes: never more than the limit, no caller more than its share of what was free, whoever has
        /// nothing gets what fits, and all is given back.
        #[test]
        fn nobody_fills_it(steps in proptest::collection::vec((0..4_u8, 0..1100_u64, 0..6_u8), 1..80)) {
            let rooms = Rooms::new(LIMIT);
            let mut taken: Vec<(u8, Arc<Room>)> = Vec::new();
            for (who, bytes, leave) in steps {
                let which = bytes as usize % taken.len().max(1);
                if leave < 2 && !taken.is_empty() {
                    taken.swap_remove(which);
                    continue;
                }
                if leave == 2 && !taken.is_empty() {
                    let free = LIMIT - rooms.held();
                    prop_assert_eq!(taken[which].1.grow(bytes).is_ok(), bytes <= free);
                    continue;
                }
                let caller: Arc<str> = who.to_string().into();
                let bytes_of = |(_, room): &(u8, Arc<Room>)| room.bytes.load(Ordering::Relaxed);
                let own: u64 = taken.iter().filter(|(w, _)| *w == who).map(bytes_of).sum();
                let all: u64 = taken.iter().map(bytes_of).sum();
                prop_assert_eq!(rooms.held(), all);
                let free = LIMIT - all;
                match rooms.take(&caller, 1.0, bytes, || Duration::ZERO) {
                    Ok(room) => {
                        prop_assert!(bytes <= free && (own == 0 || own + bytes <= 2 * (free - bytes)));
                        taken.push((who, room));
                    }
                    Err(error) if bytes > LIMIT => prop_assert_eq!(error.kind(), Kind::LimitExceeded),
                    Err(error) => {
                        prop_assert!(bytes > free || own > 0);
                        prop_assert_eq!(error.kind(), Kind::Overloaded);
                        prop_assert!(error.retry_delay().is_some());
                    }
                }
            }
            drop(taken);
            prop_assert_eq!(rooms.held(), 0);
            prop_assert!(rooms.held.lock().callers.is_empty());
        }
    }

    #[test]
    fn one_alone_gets_two_thirds_and_another_finds_the_rest() {
        let rooms = Rooms::new(900);
        let take = |who: &str| rooms.take(&who.into(), 1.0, 10, || Duration::ZERO).ok();
        let flood: Vec<_> = (0..100).map_while(|_| take("flood")).collect();
        assert_eq!(flood.len(), 60);
        let other: Vec<_> = (0..100).map_while(|_| take("other")).collect();
        assert_eq!(other.len(), 20);
    }
}
