//! Room for results: bytes that a call's features and results take, known before any of it is done from the images'
//! headers and the heads' manifests. Callers share it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    error::{Error, Kind, Result},
    shares::{Refused, Shares},
};

/// Counts what is held.
#[derive(Debug)]
pub(super) struct Rooms(Arc<Shares<Arc<str>>>);

/// Room for a call's results, given back when dropped.
#[derive(Debug)]
pub struct Room {
    caller: Arc<str>,
    bytes: AtomicU64,
    shares: Arc<Shares<Arc<str>>>,
}

/// When to come again after a result found no room.
const FULL: Duration = Duration::from_millis(100);
const FULL_NOW: &str = "the room for results is full (limits.result_bytes)";

impl Room {
    /// Takes more, for what was not known before it was made.
    ///
    /// # Errors
    /// `Overloaded` where there is none.
    pub(super) fn grow(&self, bytes: u64) -> Result<()> {
        // What it holds already is no matter: this part is new.
        let taken = self.shares.change(&self.caller, None, 0, bytes);
        taken.map_err(|_| {
            let limit = self.shares.limit();
            let error = Error::new(Kind::Overloaded, FULL_NOW).retry_after(FULL);
            error.with("value", bytes).with("limit", limit)
        })?;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Rooms {
    pub(super) fn new(limit: u64) -> Self {
        Self(Arc::new(Shares::new(limit)))
    }

    /// Bytes held.
    pub(super) fn held(&self) -> u64 {
        self.0.held()
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
        let limit = self.0.limit();
        if bytes > limit {
            let message = format!(
                "its results may take more than the {limit} bytes that the server has for results (limits.result_bytes): send smaller or fewer images, or ask for less"
            );
            let error = Error::new(Kind::LimitExceeded, message);
            return Err(error.with("value", bytes).with("limit", limit));
        }
        let Err(why) = self.0.change(caller, Some(weight), 0, bytes) else {
            return Ok(Arc::new(Room {
                caller: Arc::clone(caller),
                bytes: bytes.into(),
                shares: Arc::clone(&self.0),
            }));
        };
        let message = match why {
            Refused::Full(_) => FULL_NOW,
            Refused::Share(_) => {
                "the caller's results under way are its share of the room for results (limits.result_bytes)"
            }
        };
        let delay = wait().clamp(Duration::from_millis(10), Duration::from_secs(5));
        let error = Error::new(Kind::Overloaded, message).retry_after(delay);
        Err(error.with("value", bytes).with("limit", limit))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        // Less is never refused.
        let _ = self.shares.change(&self.caller, None, bytes, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_grows_within_what_is_free_and_is_given_back_whole() {
        let rooms = Rooms::new(1000);
        let take = |bytes| rooms.take(&"caller".into(), 1.0, bytes, || Duration::ZERO);
        let kind = |taken: Result<Arc<Room>>| taken.unwrap_err().kind();
        assert_eq!(kind(take(1001)), Kind::LimitExceeded);
        let room = take(600).unwrap();
        let refused = take(100).unwrap_err();
        assert!(refused.kind() == Kind::Overloaded && refused.retry_delay().is_some());
        room.grow(400).unwrap();
        assert_eq!(room.grow(1).unwrap_err().kind(), Kind::Overloaded);
        assert_eq!(rooms.held(), 1000);
        drop(room);
        assert_eq!(rooms.held(), 0);
        assert!(take(1000).is_ok());
    }
}
