//! What work takes, by who asks for it: what one caller sends is no measure of another's.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::mean::BySize;

/// Callers of whom something is known; with more of them all are learnt anew.
const MOST_CALLERS: usize = 128;

/// Means by size for each caller, and for all of them.
#[derive(Debug, Default)]
pub(super) struct ByCaller {
    all: BySize,
    own: Mutex<HashMap<Arc<str>, Arc<BySize>>>,
}

impl ByCaller {
    pub(super) fn add(&self, caller: &Arc<str>, size: u64, took: Duration) {
        self.all.add(size, took);
        let own = {
            let mut callers = self.own.lock();
            if callers.len() >= MOST_CALLERS && !callers.contains_key(caller) {
                callers.clear();
            }
            Arc::clone(callers.entry(Arc::clone(caller)).or_default())
        };
        own.add(size, took);
    }

    fn own(&self, caller: &str) -> Option<Arc<BySize>> {
        self.own.lock().get(caller).cloned()
    }

    /// What work of `size` was measured to take of late, by this caller's or else by anybody's; none if it was not.
    pub(super) fn known(&self, caller: &str, size: u64) -> Option<Duration> {
        let own = self.own(caller).and_then(|own| own.known(size));
        own.or_else(|| self.all.known(size))
    }

    /// About what work of `size` takes, as far as any has told.
    pub(super) fn get(&self, caller: &str, size: u64) -> Duration {
        let known = self.known(caller, size);
        known.unwrap_or_else(|| self.all.get(size))
    }

    /// What most work of `size` of this caller does not exceed, as far as its own has told: nobody is refused for what
    /// others send.
    pub(super) fn most(&self, caller: &str, size: u64) -> Duration {
        self.own(caller)
            .map_or(Duration::ZERO, |own| own.most(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_judged_by_what_others_send() {
        let known = ByCaller::default();
        let (flood, other): (Arc<str>, Arc<str>) = ("flood".into(), "other".into());
        (0..50).for_each(|_| known.add(&flood, 1000, Duration::from_secs(3)));
        assert!(known.most(&flood, 1000) > Duration::from_secs(2));
        assert_eq!(known.most(&other, 1000), Duration::ZERO);
        // But it is planned with what is known.
        assert!(known.get(&other, 1000) > Duration::from_secs(2));
        assert_eq!(known.known(&other, 1 << 30), None);
        known.add(&other, 1000, Duration::from_millis(10));
        let most = known.most(&other, 1000);
        assert!(most < Duration::from_millis(11), "{most:?}");
        assert!(known.get(&other, 1000) < Duration::from_millis(11));
        assert!(known.get(&flood, 1000) > Duration::from_secs(2));
    }

    #[test]
    fn it_does_not_grow_with_the_number_of_callers() {
        let known = ByCaller::default();
        for caller in 0..1000 {
            let caller: Arc<str> = caller.to_string().into();
            known.add(&caller, 10, Duration::from_millis(1));
            assert!(known.known(&caller, 10).is_some());
        }
        assert!(known.own.lock().len() <= MOST_CALLERS);
    }
}
