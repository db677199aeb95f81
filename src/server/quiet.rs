//! Lines of the log that callers can cause: so many at a time, and then how many were left out.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// Lines of one kind: so many in so many seconds.
#[derive(Debug)]
pub(super) struct Quiet {
    most: u64,
    seconds: u64,
    /// The span of time that the counts are of.
    span: AtomicU64,
    told: AtomicU64,
    untold: AtomicU64,
}

impl Quiet {
    /// `most` lines in `seconds`.
    pub(super) const fn new(most: u64, seconds: u64) -> Self {
        Self {
            most,
            seconds,
            span: AtomicU64::new(0),
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
        let span = second / self.seconds;
        if self.span.swap(span, Ordering::AcqRel) != span {
            self.told.store(0, Ordering::Release);
        }
        if self.told.fetch_add(1, Ordering::AcqRel) < self.most {
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
        let quiet = Quiet::new(10, 5);
        let told = |second| {
            (0..1000)
                .filter_map(|_| quiet.may_tell_at(second))
                .collect::<Vec<_>>()
        };
        assert_eq!(told(7), vec![0; 10]);
        assert!(told(9).is_empty(), "the same five seconds");
        let mut next = vec![1990];
        next.resize(10, 0);
        assert_eq!(told(10), next);
    }
}
