//! Long steps take turns with short ones: a thread that decodes a picture of fifty megapixels, or makes a label map of it,
//! cannot be called back, so not all threads do such work at once while another caller sends what is short.

use std::{sync::Arc, time::Instant};

use super::tuning::{LONG, THERE};

/// Groups of entries by how long they take a thread.
pub(crate) const SHORT: u64 = 0;
pub(crate) const LONG_ONES: u64 = 1;

/// The group of a step that takes so many seconds.
pub(crate) fn group(seconds: f64) -> u64 {
    match seconds >= LONG {
        true => LONG_ONES,
        false => SHORT,
    }
}

/// Who is there, and what is long.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// Threads in a long step.
    long: usize,
    /// Who sent something long last, and who something short, and when.
    last: [Option<(Arc<str>, Instant)>; 2],
    /// When both were last there at once, and were not the same.
    mixed: Option<Instant>,
}

impl Turns {
    /// Notes that a caller sent something that takes so many seconds.
    pub(crate) fn came(&mut self, caller: &Arc<str>, seconds: f64, now: Instant) {
        let [long, short] = &mut self.last;
        let (own, other) = match group(seconds) == LONG_ONES {
            true => (long, short),
            false => (short, long),
        };
        if let Some((before, at)) = other
            && before != caller
            && now.saturating_duration_since(*at) < THERE
        {
            self.mixed = Some(now);
        }
        match own {
            Some((before, at)) if before == caller => *at = now,
            own => *own = Some((Arc::clone(caller), now)),
        }
    }

    pub(crate) fn begin(&mut self, long: bool) {
        self.long += usize::from(long);
    }

    pub(crate) fn end(&mut self, long: bool) {
        self.long -= usize::from(long);
    }

    /// What one of `threads` threads looks for, first to last: whether it takes long steps too. One that has just done a
    /// long step looks for short ones first.
    pub(crate) fn looks_for(
        &self,
        threads: usize,
        was_long: bool,
        now: Instant,
    ) -> &'static [bool] {
        let recent = |at: Instant| now.saturating_duration_since(at) < THERE;
        if !self.mixed.is_some_and(recent) {
            return &[true];
        }
        if threads > 1 && self.long + 1 >= threads {
            return &[false];
        }
        match was_long {
            true => &[false, true],
            false => &[true],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_alone_has_every_thread_and_one_of_several_leaves_one() {
        let (mut turns, start) = (Turns::default(), Instant::now());
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        turns.came(&a, 1.0, start);
        turns.begin(true);
        assert_eq!(turns.looks_for(2, true, start), [true]);
        turns.came(&b, 1.0, start);
        turns.came(&a, 1.0, start);
        assert_eq!(turns.looks_for(2, true, start), [true], "all are long");
        turns.came(&b, 0.001, start);
        assert_eq!(turns.looks_for(2, false, start), [false]);
        assert_eq!(turns.looks_for(3, false, start), [true]);
        assert_eq!(turns.looks_for(3, true, start), [false, true]);
        // A lone thread takes turns.
        assert_eq!(turns.looks_for(1, true, start), [false, true]);
        assert_eq!(turns.looks_for(1, false, start), [true]);
        turns.end(true);
        assert_eq!(turns.looks_for(2, false, start), [true]);
        turns.begin(true);
        // The other has been away for long.
        let later = start + 2 * THERE;
        turns.came(&b, 0.001, later);
        assert_eq!(turns.looks_for(2, false, later), [true]);
        turns.came(&a, 1.0, later);
        assert_eq!(turns.looks_for(2, false, later), [false]);
    }
}
