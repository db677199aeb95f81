//! Lines of the log that callers can cause: so many a second, and then how many were left out.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// Lines of one kind in a second.
const MOST: u64 = 10;

/// Lines of one kind.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    second: AtomicU64,
    told: AtomicU64,
    untold: AtomicU64,
}

impl Quiet {
    pub(super) const fn new() -> Self {
        Self {
            second: AtomicU64::new(0),
            told: AtomicU64::new(0),
            untold: AtomicU64::new(0),
        }
    }

    /// Whether a line may be written now, and how many before it were not.
    pub(super) fn may_tell(&self) -> Option<u64> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.may_tell_at(now.map_or(0, |since| since.as_secs()))
    }

    fn may_tell_at(&self, second: u64) -> Option<u64> {
        if self.second.swap(second, Ordering::AcqRel) != second {
            self.told.store(0, Ordering::Release);
        }
        if self.told.fetch_add(1, Ordering::AcqRel) < MOST {
            return Some(self.untold.swap(0, Ordering::AcqRel));
        }
        self.untold.fetch_add(1, Ordering::AcqRel);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_in_few_lines_and_none_is_forgotten() {
        let quiet = Quiet::new();
        let told = |second| {
            (0..1000)
                .filter_map(|_| quiet.may_tell_at(second))
                .collect::<Vec<_>>()
        };
        assert_eq!(told(7), vec![0; MOST as usize]);
        let mut next = vec![1000 - MOST];
        next.resize(MOST as usize, 0);
        assert_eq!(told(8), next);
    }
}
