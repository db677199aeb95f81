//! What is kept, within a bound on bytes, a shelf for each scope.
//!
//! Scopes have equal shares, and make room for themselves alone: what one keeps and what it loses does not tell it how much
//! another sends, only that there is one more or less (as it would by filling a common cache and looking what is left:
//! "prime and probe", Osvik, Shamir and Tromer, 2006).

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use super::flight::Key;

/// A scope that has done nothing for so long gives its share to the others.
const IDLE: Duration = Duration::from_secs(600);

/// Scopes that have a share; the one idle longest goes for one more.
const MOST: usize = 64;

#[derive(Debug)]
pub(super) struct Shelves<V> {
    capacity: usize,
    shelves: HashMap<u64, Shelf<V>>,
}

#[derive(Debug)]
struct Shelf<V> {
    entries: HashMap<Key, Entry<V>>,
    by_age: BTreeMap<u64, Key>,
    clock: u64,
    bytes: usize,
    used: Instant,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: usize,
    age: u64,
}

impl<V: Clone> Shelves<V> {
    /// Room for `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            shelves: HashMap::new(),
        }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.shelves.values().map(|shelf| shelf.bytes).sum()
    }

    /// Bytes that it may hold.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn get(&mut self, key: &Key, now: Instant) -> Option<V> {
        self.shelves.get_mut(&key.scope())?.get(key, now)
    }

    /// Keeps `value` of `bytes`; returns those that have no room any more, of each scope the oldest first.
    pub(super) fn put(&mut self, key: Key, value: V, bytes: usize, now: Instant) -> Vec<(Key, V)> {
        let mut gone = Vec::new();
        let scope = key.scope();
        if !self.shelves.contains_key(&scope) {
            self.make_room(now, &mut gone);
        }
        let shelf = self.shelves.entry(scope).or_insert_with(|| Shelf {
            entries: HashMap::new(),
            by_age: BTreeMap::new(),
            clock: 0,
            bytes: 0,
            used: now,
        });
        shelf.put(key, value, bytes, now);
        let share = self.capacity / self.shelves.len();
        for shelf in self.shelves.values_mut() {
            shelf.shrink(share, &mut gone);
        }
        gone
    }

    /// Takes everything out.
    pub(super) fn clear(&mut self) -> Vec<(Key, V)> {
        let mut all = Vec::new();
        for mut shelf in std::mem::take(&mut self.shelves).into_values() {
            shelf.shrink(0, &mut all);
        }
        all
    }

    /// Makes room for one more scope.
    fn make_room(&mut self, now: Instant, gone: &mut Vec<(Key, V)>) {
        let idle = |shelf: &Shelf<V>| now.saturating_duration_since(shelf.used);
        let longest = self.shelves.iter().max_by_key(|(_, shelf)| idle(shelf));
        let longest = longest.map(|(scope, _)| *scope);
        let full = self.shelves.len() >= MOST;
        self.shelves.retain(|scope, shelf| {
            let goes = idle(shelf) >= IDLE || full && Some(*scope) == longest;
            if goes {
                shelf.shrink(0, gone);
            }
            !goes
        });
    }
}

impl<V: Clone> Shelf<V> {
    fn get(&mut self, key: &Key, now: Instant) -> Option<V> {
        self.used = now;
        let entry = self.entries.get_mut(key)?;
        self.by_age.remove(&entry.age);
        self.clock += 1;
        entry.age = self.clock;
        self.by_age.insert(self.clock, *key);
        Some(entry.value.clone())
    }

    fn put(&mut self, key: Key, value: V, bytes: usize, now: Instant) {
        self.used = now;
        self.clock += 1;
        let entry = Entry {
            value,
            bytes,
            age: self.clock,
        };
        if let Some(before) = self.entries.insert(key, entry) {
            self.by_age.remove(&before.age);
            self.bytes -= before.bytes;
        }
        self.by_age.insert(self.clock, key);
        self.bytes += bytes;
    }

    /// Lets go of the oldest until no more than `share` bytes are left.
    fn shrink(&mut self, share: usize, gone: &mut Vec<(Key, V)>) {
        while self.bytes > share {
            let Some((_, oldest)) = self.by_age.pop_first() else {
                break;
            };
            if let Some(entry) = self.entries.remove(&oldest) {
                self.bytes -= entry.bytes;
                gone.push((oldest, entry.value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What scope 1 finds of ten rows that fill the room, after scope 2 has put `others` of its own.
    fn probed(others: u64) -> Vec<u64> {
        let now = Instant::now();
        let mut shelves = Shelves::new(1000);
        for number in 0..10 {
            shelves.put(Key::of(1, number), number, 100, now);
        }
        for number in 0..others {
            shelves.put(Key::of(2, number), number, 100, now);
        }
        (0..10)
            .filter(|number| shelves.get(&Key::of(1, *number), now).is_some())
            .collect()
    }

    #[test]
    fn a_scope_does_not_see_how_much_another_sends() {
        assert_eq!(probed(0).len(), 10, "a lone scope has all of it");
        assert_eq!(probed(1), [5, 6, 7, 8, 9]);
        for others in [2, 5, 50, 500] {
            assert_eq!(probed(others), probed(1), "{others}");
        }
    }

    #[test]
    fn who_rests_gives_its_share_back() {
        let now = Instant::now();
        let mut shelves = Shelves::new(1000);
        for scope in 0..=MOST as u64 {
            shelves.put(
                Key::of(scope, 0),
                scope,
                1,
                now + Duration::from_millis(scope),
            );
        }
        assert_eq!(shelves.shelves.len(), MOST);
        assert!(!shelves.shelves.contains_key(&0), "it rested longest");
        shelves.put(Key::of(999, 0), 0, 900, now + 2 * IDLE);
        assert_eq!((shelves.shelves.len(), shelves.bytes()), (1, 900));
    }

    proptest! {
        #[test]
        fn bytes_are_those_of_what_is_kept_and_within_shares(
            steps in prop::collection::vec((0_u64..4, 0_u64..20, 0_usize..400, any::<bool>()), 1..200),
        ) {
            let now = Instant::now();
            let mut shelves = Shelves::new(1000);
            for (scope, number, bytes, looks) in steps {
                let key = Key::of(scope, number);
                if looks {
                    shelves.get(&key, now);
                } else {
                    shelves.put(key, bytes, bytes, now);
                }
                let count = shelves.shelves.len().max(1);
                for shelf in shelves.shelves.values() {
                    let sum: usize = shelf.entries.values().map(|entry| entry.bytes).sum();
                    prop_assert_eq!(sum, shelf.bytes);
                    prop_assert!(sum <= 1000 / count);
                    prop_assert_eq!(shelf.entries.len(), shelf.by_age.len());
                }
                prop_assert!(shelves.bytes() <= 1000);
            }
            shelves.clear();
            prop_assert_eq!(shelves.bytes(), 0);
        }
    }
}
