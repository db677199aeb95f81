//! Every n-th frame of those that come, however many of them are dropped before.

/// Whether it is time again, counted in frames that came.
#[derive(Debug, Clone, Copy, Default)]
pub struct Due {
    last: Option<u64>,
}

impl Due {
    /// Whether the frame `ordinal` is `every` frames or more behind the last one that was taken.
    #[must_use]
    pub fn is(&self, ordinal: u64, every: u64) -> bool {
        self.last
            .is_none_or(|last| ordinal.saturating_sub(last) >= every.max(1))
    }

    /// The frame `ordinal`, if it was the last one taken, came to nothing: the next one is due.
    pub fn undo(&mut self, ordinal: u64) {
        if self.last == Some(ordinal) {
            self.last = None;
        }
    }

    /// The frame `ordinal` is taken.
    pub fn take(&mut self, ordinal: u64) {
        self.last = Some(ordinal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_are_dropped_do_not_put_it_off_for_ever() {
        let mut due = Due::default();
        // Only odd frames get so far: an index that must divide by 2 would never come.
        let taken: Vec<_> = (1..12)
            .step_by(2)
            .filter(|&ordinal| {
                let is = due.is(ordinal, 2);
                if is {
                    due.take(ordinal);
                }
                is
            })
            .collect();
        assert_eq!(taken, [1, 3, 5, 7, 9, 11]);
        assert!(!due.is(12, 2) && due.is(12, 0));
        due.undo(9);
        assert!(!due.is(12, 2));
        due.undo(11);
        assert!(due.is(12, 2));
    }
}
