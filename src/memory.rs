//! Freed memory, of which every thread keeps some for itself.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// How often a thread gives back what it keeps.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);

thread_local! {
    static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Gives back what the calling thread keeps of its freed memory, about once in [`INTERVAL`] however often it is called.
/// Nobody else can do it: a thread that rests has to wake for it. Nothing where another allocator is in use.
pub(crate) fn tidy() {
    let now = Instant::now();
    let due = |last: Instant| now.duration_since(last) >= INTERVAL / 2;
    if LAST.get().is_none_or(due) {
        LAST.set(Some(now));
        #[allow(unsafe_code)]
        // SAFETY: asks nothing of its caller. What is in use, or other threads hold, stays.
        unsafe {
            libmimalloc_sys::mi_collect(true);
        }
    }
}
