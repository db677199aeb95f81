//! Something that several share, such as bytes: bounded in all, and for each of them by what is still free.
//!
//! Who holds some may come to hold at most [`SHARE`] times what is then free, so that one alone gets two thirds and
//! several settle at equal parts; one that comes anew gets what fits (the dynamic thresholds of Choudhury and Hahne,
//! "Dynamic queue length thresholds for shared-memory packet switches", 1998).

use std::{
    collections::HashMap,
    hash::Hash,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

/// What one of weight 1 may hold, over what is free.
const SHARE: f64 = 2.0;

/// The part of all that one alone may come to hold.
pub(crate) const ALONE: f64 = SHARE / (SHARE + 1.0);

/// What is shared, by who holds it.
#[derive(Debug)]
pub(crate) struct Shares<K> {
    limit: u64,
    held: Mutex<Held<K>>,
    /// What all hold, as it was a moment ago: to look at it takes no lock.
    total: AtomicU64,
}

#[derive(Debug)]
struct Held<K> {
    total: u64,
    parts: HashMap<K, u64>,
}

/// Why somebody may not hold more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Only so much is free.
    Full(u64),
    /// It holds so much, which is its share.
    Share(u64),
}

impl<K: Clone + Eq + Hash> Shares<K> {
    pub(crate) fn new(limit: u64) -> Self {
        let held = Held {
            total: 0,
            parts: HashMap::new(),
        };
        Self {
            limit,
            held: Mutex::new(held),
            total: AtomicU64::new(0),
        }
    }

    /// All that there is.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// What all hold together.
    pub(crate) fn held(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Whether `key` holds its share, and would get no more.
    pub(crate) fn has_share(&self, key: &K) -> bool {
        // Most ask when nobody holds anything.
        if self.held() == 0 {
            return false;
        }
        let held = self.held.lock();
        let own = held.parts.get(key).copied().unwrap_or(0);
        own > 0 && own as f64 > SHARE * (self.limit - held.total) as f64
    }

    /// A part of `key` of a weight changes from `before` to `after`; without a weight it is bounded by what is free alone.
    /// Less is never refused.
    ///
    /// # Errors
    /// More than it may hold; what it held it still holds.
    pub(crate) fn change(
        &self,
        key: &K,
        weight: Option<f64>,
        before: u64,
        after: u64,
    ) -> Result<(), Refused> {
        if before == after {
            return Ok(());
        }
        let mut held = self.held.lock();
        let held = &mut *held;
        let has = held.parts.get(key).copied().unwrap_or(0);
        let others = held.total - before;
        if after > before {
            let free = self.limit.saturating_sub(others);
            if after > free {
                return Err(Refused::Full(self.limit - held.total));
            }
            let share = weight.map(|weight| SHARE * weight * (free - after) as f64);
            let own = has - before + after;
            if has > 0 && share.is_some_and(|share| own as f64 > share) {
                return Err(Refused::Share(has));
            }
        }
        held.total = others + after;
        self.total.store(held.total, Ordering::Relaxed);
        let own = has - before + after;
        if own == 0 {
            held.parts.remove(key);
        } else if let Some(part) = held.parts.get_mut(key) {
            *part = own;
        } else {
            held.parts.insert(key.clone(), own);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: u64 = 1000;

    #[test]
    fn one_alone_gets_two_thirds_and_another_finds_the_rest() {
        let shares = Shares::new(900);
        let take = |who: &'static str| shares.change(&who, Some(1.0), 0, 10).ok();
        assert_eq!((0..100).map_while(|_| take("flood")).count(), 60);
        assert_eq!((0..100).map_while(|_| take("other")).count(), 20);
        assert!(shares.has_share(&"flood") && !shares.has_share(&"third"));
    }

    #[test]
    fn what_is_refused_changes_nothing_and_no_weight_means_no_share() {
        let shares = Shares::new(LIMIT);
        assert_eq!(
            shares.change(&1, Some(1.0), 0, 700),
            Ok(()),
            "all that fits"
        );
        assert_eq!(
            shares.change(&1, Some(1.0), 700, 701),
            Err(Refused::Share(700))
        );
        assert_eq!(
            shares.change(&2, Some(1.0), 0, 301),
            Err(Refused::Full(300))
        );
        assert_eq!(shares.held(), 700);
        assert_eq!(shares.change(&1, None, 700, 1000), Ok(()));
        assert_eq!(shares.change(&1, None, 1000, 1001), Err(Refused::Full(0)));
    }

    proptest! {
        /// Whatever comes, grows and goes: never more than there is, nobody more than its share, whoever has nothing gets
        /// what fits, and all is given back.
        #[test]
        fn nobody_takes_all(steps in prop::collection::vec((0..6_usize, 0..3_u8, 0..1100_u64), 1..120)) {
            let shares = Shares::new(LIMIT);
            let mut parts = [(0_u8, 0_u64); 6];
            for (index, who, after) in steps {
                let (owner, before) = parts[index];
                // A part is its first owner's until it is given back.
                let who = if before > 0 { owner } else { who };
                let sum = |of: Option<u8>| -> u64 {
                    let parts = parts.iter().filter(|(w, _)| of.is_none_or(|of| *w == of));
                    parts.map(|(_, held)| *held).sum()
                };
                prop_assert_eq!(shares.held(), sum(None));
                let (has, others) = (sum(Some(who)), sum(None) - before);
                let fits = others + after <= LIMIT;
                let own = has - before + after;
                let within = has == 0 || fits && own <= 2 * (LIMIT - others - after);
                let done = shares.change(&who, Some(1.0), before, after);
                prop_assert_eq!(done.is_ok(), after <= before || fits && within);
                if done.is_ok() {
                    parts[index] = (who, after);
                }
            }
            for (who, held) in parts {
                prop_assert_eq!(shares.change(&who, Some(1.0), held, 0), Ok(()));
            }
            prop_assert_eq!(shares.held(), 0);
            prop_assert!(shares.held.lock().parts.is_empty());
        }
    }
}
