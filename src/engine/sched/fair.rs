//! Who is next: priority classes, fair shares between callers and between their heads, earliest deadline first.
//!
//! Classes are strict: a lower one waits while a higher one has work. Within a class, callers share by weight, and each
//! caller's heads share what the caller gets; both by start-time fair queueing (Goyal, Vin and Cheng 1996): a queue's tag
//! grows by what it was served over its weight, the smallest tag goes first, and a queue that had nothing to do starts
//! at the present. A lone queue, or queues that all get what they ask for, are served by deadline alone.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use super::{
    load::Load,
    rank::{Flow, Priority, Rank, order},
};

/// Deadline, then arrival.
type Key = ((bool, Option<Instant>), u64);

/// Where an entry waits; what [`Schedule::remove`] needs.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    priority: Priority,
    flow: Flow,
    group: u64,
    key: Key,
}

/// What becomes of the entry that is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is taken.
    Take,
    /// Nobody wants it: it is dropped, and the one after it is looked at.
    Drop,
    /// It stays, and so do those behind it.
    Wait,
}

impl From<bool> for Verdict {
    fn from(wanted: bool) -> Self {
        match wanted {
            true => Self::Take,
            false => Self::Drop,
        }
    }
}

/// Entries that wait. Those of one group can be served together.
#[derive(Debug)]
pub(crate) struct Schedule<T> {
    classes: [Class<T>; Priority::COUNT],
    arrivals: u64,
}

/// Queues that share by weight.
#[derive(Debug)]
struct Share<K, Q> {
    queues: BTreeMap<K, Tagged<Q>>,
    /// Tag of the queue served last: the present.
    clock: f64,
}

#[derive(Debug)]
struct Tagged<Q> {
    tag: f64,
    weight: f64,
    /// What all that waits in it takes, and how much that is.
    load: Load,
    waiting: usize,
    queue: Q,
}

impl<Q> Tagged<Q> {
    fn add(&mut self, load: Load) {
        self.load += load;
        self.waiting += 1;
    }

    fn take(&mut self, load: Load) {
        self.load -= load;
        self.waiting -= 1;
        if self.waiting == 0 {
            // What rounding has left.
            self.load = Load::default();
        }
    }

    /// What of it goes before somebody whose turn comes when the clock shows `tag`: as much as brings its own tag there,
    /// and the entry that is then under way.
    fn before(&self, tag: f64) -> Ahead {
        if self.tag > tag || self.waiting == 0 {
            return Ahead::default();
        }
        let all = self.load.total();
        let each = 1.0 / self.waiting as f64;
        let share = (tag - self.tag) * self.weight / all.max(1e-9);
        let part = (share + each).min(1.0);
        Ahead {
            images: (part * self.waiting as f64).round() as usize,
            load: self.load.part(part),
        }
    }

    fn all(&self) -> Ahead {
        Ahead {
            images: self.waiting,
            load: self.load,
        }
    }
}

/// What goes before an entry.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ahead {
    /// Entries.
    pub(crate) images: usize,
    /// What they take.
    pub(crate) load: Load,
}

impl std::ops::AddAssign for Ahead {
    fn add_assign(&mut self, other: Self) {
        self.images += other.images;
        self.load += other.load;
    }
}

impl std::iter::Sum for Ahead {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        let mut sum = Self::default();
        all.for_each(|one| sum += one);
        sum
    }
}

/// What waits, and what it takes.
#[derive(Debug)]
struct Entry<T> {
    item: T,
    load: Load,
}

type Entries<T> = BTreeMap<Key, Entry<T>>;
type Heads<T> = Share<(Arc<str>, u64), Entries<T>>;
type Class<T> = Share<Arc<str>, Heads<T>>;

/// Queues with nothing waiting are kept only while they are ahead of their share; beyond this many they are looked
/// through.
const TIDY: usize = 64;

/// The least that an entry costs its flow, in seconds: nobody goes first for ever.
const LEAST: f64 = 1e-6;

impl<K, Q> Default for Share<K, Q> {
    fn default() -> Self {
        Self {
            queues: BTreeMap::new(),
            clock: 0.0,
        }
    }
}

impl<K: Ord + Clone, Q> Share<K, Q> {
    /// The queue `key`, made if it is not there; one that had nothing to do is brought to the present.
    fn entry(&mut self, key: K, weight: f64, make: impl FnOnce() -> Q) -> &mut Tagged<Q> {
        let clock = self.clock;
        if self.queues.len() >= TIDY {
            self.queues.retain(|_, q| q.tag > clock || q.waiting > 0);
        }
        let tagged = self.queues.entry(key).or_insert_with(|| Tagged {
            tag: clock,
            weight,
            load: Load::default(),
            waiting: 0,
            queue: make(),
        });
        if tagged.waiting == 0 {
            tagged.tag = tagged.tag.max(clock);
        }
        tagged.weight = weight;
        tagged
    }

    /// The queue to serve next among those for which `first` finds an entry: least tag, then earliest entry.
    fn next(&self, first: impl Fn(&Q) -> Option<Key>) -> Option<K> {
        self.queues
            .iter()
            .filter_map(|(key, tagged)| Some((tagged.tag, first(&tagged.queue)?, key)))
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
            .map(|(_, _, key)| key.clone())
    }

    /// Takes from the queue `key` what waited in it, and charges it `cost` if it was served.
    fn leave(&mut self, key: &K, load: Load, cost: Option<f64>) {
        if let Some(tagged) = self.queues.get_mut(key) {
            tagged.take(load);
            if let Some(cost) = cost {
                self.clock = self.clock.max(tagged.tag);
                tagged.tag += cost / tagged.weight;
            }
        }
    }

    /// What goes before an entry of the queues that `own` names, where `within` of those goes before it.
    fn ahead(&self, own: impl Fn(&K) -> bool, weight: f64, within: Ahead) -> Ahead {
        let mine = self
            .queues
            .iter()
            .filter(|(key, q)| own(key) && q.waiting > 0);
        let tag = mine.map(|(_, q)| q.tag).fold(self.clock, f64::max);
        let turn = tag + within.load.total() / weight;
        let others = self.queues.iter().filter(|(key, _)| !own(key));
        let mut ahead: Ahead = others.map(|(_, queue)| queue.before(turn)).sum();
        ahead += within;
        ahead
    }
}

impl<T> Heads<T> {
    /// The queue to serve next, of `group` if one is given.
    fn next_of(&self, group: Option<u64>) -> Option<(Arc<str>, u64)> {
        let Some(group) = group else {
            return self.next(|entries| entries.keys().next().copied());
        };
        self.queues
            .iter()
            .filter(|((_, g), _)| *g == group)
            .filter_map(|(leaf, t)| Some((t.tag, t.queue.keys().next()?, leaf)))
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(b.1)))
            .map(|(_, _, leaf)| leaf.clone())
    }
}

impl<T> Default for Schedule<T> {
    fn default() -> Self {
        Self {
            classes: Default::default(),
            arrivals: 0,
        }
    }
}

fn first<T>(heads: &Heads<T>, group: Option<u64>) -> Option<Key> {
    let queues = heads.queues.iter();
    queues
        .filter(|((_, g), _)| group.is_none_or(|group| group == *g))
        .filter_map(|(_, tagged)| tagged.queue.keys().next().copied())
        .min()
}

impl<T> Schedule<T> {
    /// Adds an entry that takes `load`, which its flow is charged when it is served.
    pub(crate) fn push(&mut self, rank: Rank, group: u64, load: Load, item: T) -> Place {
        self.arrivals += 1;
        let key = (order(rank.deadline), self.arrivals);
        let place = Place {
            priority: rank.priority,
            flow: rank.flow.clone(),
            group,
            key,
        };
        let class = &mut self.classes[rank.priority as usize];
        let heads = class.entry(place.flow.caller.clone(), rank.weights.0, Share::default);
        heads.add(load);
        let leaf = (place.flow.head.clone(), group);
        let entries = heads.queue.entry(leaf, rank.weights.1, BTreeMap::new);
        entries.add(load);
        entries.queue.insert(key, Entry { item, load });
        place
    }

    /// Takes an entry out of turn.
    pub(crate) fn remove(&mut self, place: &Place) -> Option<T> {
        let class = &mut self.classes[place.priority as usize];
        let heads = &mut class.queues.get_mut(&place.flow.caller)?.queue;
        let leaf = (place.flow.head.clone(), place.group);
        let entries = &mut heads.queues.get_mut(&leaf)?.queue;
        let entry = entries.remove(&place.key)?;
        heads.leave(&leaf, entry.load, None);
        class.leave(&place.flow.caller, entry.load, None);
        Some(entry.item)
    }

    /// The entry that is next, of `group` if one is given.
    pub(crate) fn peek(&self, group: Option<u64>) -> Option<&T> {
        let mut classes = self.classes.iter().rev();
        let (class, caller) =
            classes.find_map(|class| Some((class, class.next(|heads| first(heads, group))?)))?;
        let heads = &class.queues.get(&caller)?.queue;
        let leaf = heads.next_of(group)?;
        let entry = heads.queues.get(&leaf)?.queue.first_key_value()?;
        Some(&entry.1.item)
    }

    /// The group of the entry that is next.
    pub(crate) fn next_group(&self) -> Option<u64> {
        let class = self.classes.iter().rev().find(|class| {
            let mut callers = class.queues.values();
            callers.any(|tagged| tagged.waiting > 0)
        })?;
        let caller = class.next(|heads| first(heads, None))?;
        let heads = &class.queues.get(&caller)?.queue;
        heads
            .next(|entries| entries.keys().next().copied())
            .map(|(_, group)| group)
    }

    /// Takes the next entry, of `group` if one is given, and charges its flow what it takes. Entries that `keep` does not
    /// want go to `dropped` and cost nothing; where it lets one wait, none is taken.
    pub(crate) fn pop<V: Into<Verdict>>(
        &mut self,
        group: Option<u64>,
        mut keep: impl FnMut(&T) -> V,
        dropped: &mut Vec<T>,
    ) -> Option<T> {
        for class in self.classes.iter_mut().rev() {
            while let Some(caller) = class.next(|heads| first(heads, group)) {
                let heads = &mut class.queues.get_mut(&caller)?.queue;
                let leaf = heads.next_of(group)?;
                let entries = &mut heads.queues.get_mut(&leaf)?.queue;
                let verdict = keep(&entries.first_key_value()?.1.item).into();
                if verdict == Verdict::Wait {
                    return None;
                }
                let (_, entry) = entries.pop_first()?;
                let served = verdict == Verdict::Take;
                let cost = served.then(|| entry.load.total().max(LEAST));
                heads.leave(&leaf, entry.load, cost);
                class.leave(&caller, entry.load, cost);
                if served {
                    return Some(entry.item);
                }
                dropped.push(entry.item);
            }
        }
        None
    }

    /// Charges a flow for what it took beyond what it was thought to take.
    pub(crate) fn charge(&mut self, rank: &Rank, seconds: f64) {
        let class = &mut self.classes[rank.priority as usize];
        let Some(caller) = class.queues.get_mut(&rank.flow.caller) else {
            return;
        };
        caller.tag += seconds / caller.weight;
        let heads = caller.queue.queues.iter_mut();
        for (_, leaf) in heads.filter(|((head, _), _)| *head == rank.flow.head) {
            leaf.tag += seconds / leaf.weight;
        }
    }

    /// Entries of `group`.
    pub(crate) fn count(&self, group: u64) -> usize {
        self.leaves()
            .filter(|((_, g), _)| *g == group)
            .map(|(_, tagged)| tagged.queue.len())
            .sum()
    }

    /// What goes before an entry of this rank that came now: all of the higher classes; of its own class what other callers,
    /// and its caller's other heads, get until its turn comes; and what of its own flow is due before it.
    pub(crate) fn ahead(&self, rank: &Rank) -> Ahead {
        let (own, higher) = self.classes[rank.priority as usize..].split_at(1);
        let higher = higher.iter().flat_map(|class| class.queues.values());
        let mut ahead: Ahead = higher.map(Tagged::all).sum();
        let [class] = own else {
            return ahead;
        };
        let (caller, head) = (&rank.flow.caller, &rank.flow.head);
        let within = class.queues.get(caller).map(|heads| {
            let own = |leaf: &(Arc<str>, u64)| leaf.0 == *head;
            let leaves = heads.queue.queues.iter().filter(|(leaf, _)| own(leaf));
            let due = leaves.map(|(_, leaf)| match rank.deadline {
                Some(_) => {
                    let until = (order(rank.deadline), u64::MAX);
                    let entries = leaf.queue.range(..=until);
                    let one = |(_, entry): (_, &Entry<T>)| Ahead {
                        images: 1,
                        load: entry.load,
                    };
                    entries.map(one).sum()
                }
                None => leaf.all(),
            });
            heads.queue.ahead(own, rank.weights.1, due.sum())
        });
        ahead += class.ahead(
            |key| key == caller,
            rank.weights.0,
            within.unwrap_or_default(),
        );
        ahead
    }

    /// What waits takes altogether.
    pub(crate) fn load(&self) -> Load {
        let callers = self.classes.iter().flat_map(|class| class.queues.values());
        callers.map(Tagged::all).sum::<Ahead>().load
    }

    /// The entry of `group` with the earliest deadline, if one has any.
    pub(crate) fn first_due(&self, group: u64) -> Option<(Instant, &T)> {
        self.leaves()
            .filter(|((_, g), _)| *g == group)
            .filter_map(|(_, leaf)| leaf.queue.first_key_value())
            .filter_map(|(((_, due), _), entry)| Some(((*due)?, &entry.item)))
            .min_by_key(|(due, _)| *due)
    }

    /// All entries.
    pub(crate) fn len(&self) -> usize {
        let callers = self.classes.iter().flat_map(|class| class.queues.values());
        callers.map(|tagged| tagged.waiting).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        let mut callers = self.classes.iter().flat_map(|class| class.queues.values());
        callers.all(|tagged| tagged.waiting == 0)
    }

    /// Takes everything out.
    pub(crate) fn drain(&mut self) -> Vec<T> {
        let classes = std::mem::take(&mut self.classes);
        let callers = classes.into_iter().flat_map(|class| class.queues);
        let leaves = callers.flat_map(|(_, caller)| caller.queue.queues);
        leaves
            .flat_map(|(_, leaf)| leaf.queue.into_values())
            .map(|entry| entry.item)
            .collect()
    }

    fn leaves(&self) -> impl Iterator<Item = (&(Arc<str>, u64), &Tagged<Entries<T>>)> {
        let callers = self.classes.iter().flat_map(|class| class.queues.values());
        callers.flat_map(|caller| caller.queue.queues.iter())
    }
}

#[cfg(test)]
mod tests;
