//! Who is next: priority classes, fair shares between callers and between their heads, earliest deadline first.
//!
//! Classes are strict: a lower one waits while a higher one has work. Within a class, callers share by weight, and each
//! caller's heads share what the caller gets; both by start-time fair queueing (Goyal, Vin and Cheng 1996): a queue's tag
//! grows by what it was served over its weight, the smallest tag goes first, and a queue that had nothing to do starts
//! at the present. A lone queue, or queues that all get what they ask for, are served by deadline alone.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use super::request::Priority;

/// Who shares: one caller's use of one head.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) caller: Arc<str>,
    pub(super) head: Arc<str>,
}

/// How urgent an entry is, and at whose cost it is served.
#[derive(Debug, Clone)]
pub(super) struct Rank {
    pub(super) priority: Priority,
    pub(super) flow: Flow,
    /// Weights of the caller and of the head.
    pub(super) weights: (f64, f64),
    pub(super) deadline: Option<Instant>,
}

impl Rank {
    /// Whether this rank is more urgent than `other` in any way.
    pub(super) fn before(&self, other: &Self) -> bool {
        self.priority > other.priority || order(self.deadline) < order(other.deadline)
    }

    /// This flow's rank with the urgency of both.
    pub(super) fn joined(mut self, other: &Self) -> Self {
        self.priority = self.priority.max(other.priority);
        if order(other.deadline) < order(self.deadline) {
            self.deadline = other.deadline;
        }
        self
    }
}

/// Earlier deadlines first, none last.
fn order(deadline: Option<Instant>) -> (bool, Option<Instant>) {
    (deadline.is_none(), deadline)
}

/// Deadline, then arrival.
type Key = ((bool, Option<Instant>), u64);

/// Where an entry waits; what [`Schedule::remove`] needs.
#[derive(Debug, Clone)]
pub(super) struct Place {
    priority: Priority,
    flow: Flow,
    group: u64,
    key: Key,
}

/// Entries that wait. Those of one group can be served together.
#[derive(Debug)]
pub(super) struct Schedule<T> {
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
    queue: Q,
}

type Entries<T> = BTreeMap<Key, (T, Rank)>;
type Heads<T> = Share<(Arc<str>, u64), Entries<T>>;
type Class<T> = Share<Arc<str>, Heads<T>>;

/// Queues with nothing waiting are kept only while they are ahead of their share; beyond this many they are looked
/// through.
const TIDY: usize = 64;

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
    fn entry(&mut self, key: K, idle: impl Fn(&Q) -> bool, make: impl FnOnce() -> Q) -> &mut Q {
        let clock = self.clock;
        if self.queues.len() >= TIDY {
            self.queues.retain(|_, q| q.tag > clock || !idle(&q.queue));
        }
        let tagged = self.queues.entry(key).or_insert_with(|| Tagged {
            tag: clock,
            queue: make(),
        });
        if idle(&tagged.queue) {
            tagged.tag = tagged.tag.max(clock);
        }
        &mut tagged.queue
    }

    /// The queue to serve next among those for which `first` finds an entry: least tag, then earliest entry.
    fn next(&self, first: impl Fn(&Q) -> Option<Key>) -> Option<K> {
        self.queues
            .iter()
            .filter_map(|(key, tagged)| Some((tagged.tag, first(&tagged.queue)?, key)))
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
            .map(|(_, _, key)| key.clone())
    }

    fn charge(&mut self, key: &K, cost: f64) {
        if let Some(tagged) = self.queues.get_mut(key) {
            self.clock = self.clock.max(tagged.tag);
            tagged.tag += cost;
        }
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

fn idle<T>(heads: &Heads<T>) -> bool {
    heads.queues.values().all(|tagged| tagged.queue.is_empty())
}

impl<T> Schedule<T> {
    /// Adds an entry.
    pub(super) fn push(&mut self, rank: Rank, group: u64, item: T) -> Place {
        self.arrivals += 1;
        let key = (order(rank.deadline), self.arrivals);
        let place = Place {
            priority: rank.priority,
            flow: rank.flow.clone(),
            group,
            key,
        };
        let class = &mut self.classes[rank.priority as usize];
        let heads = class.entry(place.flow.caller.clone(), idle, Share::default);
        let leaf = (place.flow.head.clone(), group);
        let entries = heads.entry(leaf, BTreeMap::is_empty, BTreeMap::new);
        entries.insert(key, (item, rank));
        place
    }

    /// Takes an entry out of turn.
    pub(super) fn remove(&mut self, place: &Place) -> Option<T> {
        let class = &mut self.classes[place.priority as usize];
        let heads = &mut class.queues.get_mut(&place.flow.caller)?.queue;
        let leaf = (place.flow.head.clone(), place.group);
        let entries = &mut heads.queues.get_mut(&leaf)?.queue;
        entries.remove(&place.key).map(|(item, _)| item)
    }

    /// The group of the entry that is next.
    pub(super) fn next_group(&self) -> Option<u64> {
        let class = self.classes.iter().rev().find(|class| {
            let mut callers = class.queues.values();
            callers.any(|tagged| !idle(&tagged.queue))
        })?;
        let caller = class.next(|heads| first(heads, None))?;
        let heads = &class.queues.get(&caller)?.queue;
        heads
            .next(|entries| entries.keys().next().copied())
            .map(|(_, group)| group)
    }

    /// Takes the next entry, of `group` if one is given, and charges its flow `cost`. Entries that `keep` does not want
    /// go to `dropped` and cost nothing.
    pub(super) fn pop(
        &mut self,
        group: Option<u64>,
        cost: f64,
        mut keep: impl FnMut(&T) -> bool,
        dropped: &mut Vec<T>,
    ) -> Option<T> {
        for class in self.classes.iter_mut().rev() {
            while let Some(caller) = class.next(|heads| first(heads, group)) {
                let heads = &mut class.queues.get_mut(&caller)?.queue;
                let leaf = match group {
                    Some(group) => heads
                        .queues
                        .iter()
                        .filter(|((_, g), _)| *g == group)
                        .filter_map(|(leaf, t)| Some((t.tag, t.queue.keys().next()?, leaf)))
                        .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(b.1)))
                        .map(|(_, _, leaf)| leaf.clone()),
                    None => heads.next(|entries| entries.keys().next().copied()),
                }?;
                let (_, (item, rank)) = heads.queues.get_mut(&leaf)?.queue.pop_first()?;
                if keep(&item) {
                    heads.charge(&leaf, cost / rank.weights.1);
                    class.charge(&caller, cost / rank.weights.0);
                    return Some(item);
                }
                dropped.push(item);
            }
        }
        None
    }

    /// Entries of `group`.
    pub(super) fn count(&self, group: u64) -> usize {
        self.leaves()
            .filter(|((_, g), _)| *g == group)
            .map(|(_, tagged)| tagged.queue.len())
            .sum()
    }

    /// Entries that go before one of this rank that came now, as far as class and deadline tell.
    pub(super) fn ahead(&self, priority: Priority, deadline: Option<Instant>) -> usize {
        let mut count = 0;
        for (index, class) in self.classes.iter().enumerate().skip(priority as usize) {
            let heads = class.queues.values().flat_map(|t| t.queue.queues.values());
            count += heads
                .map(|leaf| match deadline {
                    Some(_) if index == priority as usize => {
                        let until = (order(deadline), u64::MAX);
                        leaf.queue.range(..=until).count()
                    }
                    _ => leaf.queue.len(),
                })
                .sum::<usize>();
        }
        count
    }

    /// All entries.
    pub(super) fn len(&self) -> usize {
        self.leaves().map(|(_, tagged)| tagged.queue.len()).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.leaves().all(|(_, tagged)| tagged.queue.is_empty())
    }

    /// Takes everything out.
    pub(super) fn drain(&mut self) -> Vec<T> {
        let classes = std::mem::take(&mut self.classes);
        let callers = classes.into_iter().flat_map(|class| class.queues);
        let leaves = callers.flat_map(|(_, caller)| caller.queue.queues);
        leaves
            .flat_map(|(_, leaf)| leaf.queue.into_values())
            .map(|(item, _)| item)
            .collect()
    }

    fn leaves(&self) -> impl Iterator<Item = (&(Arc<str>, u64), &Tagged<Entries<T>>)> {
        let callers = self.classes.iter().flat_map(|class| class.queues.values());
        callers.flat_map(|caller| caller.queue.queues.iter())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn rank(
        caller: &str,
        head: &str,
        weights: (f64, f64),
        deadline: Option<Instant>,
        priority: Priority,
    ) -> Rank {
        let flow = Flow {
            caller: caller.into(),
            head: head.into(),
        };
        Rank {
            priority,
            flow,
            weights,
            deadline,
        }
    }

    fn pop<T>(schedule: &mut Schedule<T>) -> Option<T> {
        schedule.pop(None, 1.0, |_| true, &mut Vec::new())
    }

    #[test]
    fn a_flood_gets_no_more_than_its_weight_says() {
        let mut schedule = Schedule::default();
        for n in 0..400 {
            let flood = rank("a", "x", (1.0, 3.0), None, Priority::Normal);
            schedule.push(flood, 0, "flood");
            if n < 50 {
                let other = rank("a", "y", (1.0, 1.0), None, Priority::Normal);
                schedule.push(other, 0, "other");
            }
        }
        let served: Vec<_> = (0..80).filter_map(|_| pop(&mut schedule)).collect();
        let other = served.iter().filter(|&&name| name == "other").count();
        assert!((19..=21).contains(&other), "{other} of 80, by weight 20");
    }

    #[test]
    fn callers_share_before_their_heads_do() {
        let mut schedule = Schedule::default();
        for _ in 0..100 {
            for head in ["x", "y", "z"] {
                schedule.push(
                    rank("many", head, (1.0, 1.0), None, Priority::Normal),
                    0,
                    "many",
                );
            }
            schedule.push(
                rank("one", "x", (1.0, 1.0), None, Priority::Normal),
                0,
                "one",
            );
        }
        let served: Vec<_> = (0..100).filter_map(|_| pop(&mut schedule)).collect();
        let one = served.iter().filter(|&&name| name == "one").count();
        assert!((49..=51).contains(&one), "{one} of 100");
    }

    #[test]
    fn one_who_was_away_does_not_catch_up() {
        let mut schedule = Schedule::default();
        let busy = || rank("a", "x", (1.0, 1.0), None, Priority::Normal);
        let late = || rank("a", "y", (1.0, 1.0), None, Priority::Normal);
        (0..300).for_each(|_| drop(schedule.push(busy(), 0, "busy")));
        (0..100).for_each(|_| assert!(pop(&mut schedule).is_some()));
        (0..100).for_each(|_| drop(schedule.push(late(), 0, "late")));
        let served: Vec<_> = (0..40).filter_map(|_| pop(&mut schedule)).collect();
        let late = served.iter().filter(|&&name| name == "late").count();
        assert!((19..=21).contains(&late), "{late} of 40");
    }

    /// What waits: number, class, flow, deadline, group.
    type Entry = (usize, Priority, (u8, u8), Option<Instant>, u64);

    #[derive(Debug, Clone)]
    enum Step {
        Push(u8, u8, u8, Option<u8>, u8),
        Pop(Option<u8>),
        Remove(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let push = (
            0..3_u8,
            0..3_u8,
            0..3_u8,
            proptest::option::of(0..9_u8),
            0..2_u8,
        );
        let step = prop_oneof![
            3 => push.prop_map(|(p, c, h, d, g)| Step::Push(p, c, h, d, g)),
            2 => proptest::option::of(0..2_u8).prop_map(Step::Pop),
            1 => any::<u8>().prop_map(Step::Remove),
        ];
        proptest::collection::vec(step, 1..120)
    }

    proptest! {
        #[test]
        fn every_entry_leaves_once_in_order_of_class_and_deadline(steps in steps()) {
            let start = Instant::now();
            let mut schedule = Schedule::default();
            let mut model: Vec<Entry> = Vec::new();
            let mut places = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push(p, c, h, d, g) => {
                        let priority = [Priority::Background, Priority::Normal, Priority::High][p as usize];
                        let deadline = d.map(|d| start + Duration::from_secs(d.into()));
                        let (caller, head) = (c.to_string(), h.to_string());
                        let rank = rank(&caller, &head, (1.0 + f64::from(c), 1.0), deadline, priority);
                        places.push((number, schedule.push(rank, g.into(), number)));
                        model.push((number, priority, (c, h), deadline, g.into()));
                    }
                    Step::Pop(group) => {
                        let group = group.map(u64::from);
                        let fits = |e: &&Entry| {
                            group.is_none_or(|g| g == e.4)
                        };
                        let got = schedule.pop(group, 1.0, |_| true, &mut Vec::new());
                        prop_assert_eq!(got.is_some(), model.iter().any(|e| fits(&e)));
                        if let Some(got) = got {
                            let at = model.iter().position(|e| e.0 == got);
                            let taken = model.remove(at.expect("it was waiting"));
                            let best = model.iter().filter(fits).map(|e| e.1).max();
                            prop_assert!(best.is_none_or(|best| best <= taken.1), "a higher class waits");
                            let earlier = model.iter().filter(fits).any(|e| {
                                (e.1, e.2, e.4) == (taken.1, taken.2, taken.4)
                                    && (order(e.3), e.0) < (order(taken.3), taken.0)
                            });
                            prop_assert!(!earlier, "the same flow has an earlier deadline");
                        }
                    }
                    Step::Remove(which) if !places.is_empty() => {
                        let (number, place) = &places[which as usize % places.len()];
                        let waits = model.iter().position(|e| e.0 == *number);
                        prop_assert_eq!(schedule.remove(place), waits.map(|_| *number));
                        waits.map(|at| model.remove(at));
                    }
                    Step::Remove(_) => {}
                }
                prop_assert_eq!(schedule.len(), model.len());
                prop_assert_eq!(schedule.is_empty(), model.is_empty());
            }
            let mut rest = schedule.drain();
            rest.sort_unstable();
            let mut left: Vec<_> = model.iter().map(|e| e.0).collect();
            left.sort_unstable();
            prop_assert_eq!(rest, left);
        }
    }
}
