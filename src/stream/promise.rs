//! How many streams there are, by caller, and what they have promised to send.

use std::{collections::HashMap, hash::Hash};

/// Seconds of threads that something takes in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// Of threads that run graphs.
    pub lanes: f64,
    /// Of those beside them.
    pub workers: f64,
}

/// Bounds on streams.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PromiseLimits {
    /// Streams in all.
    pub streams: usize,
    /// Streams of one caller.
    pub per_caller: usize,
    /// What all promised rates together may take.
    pub load: Load,
}

/// Why a stream is not taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Refused {
    /// There are as many as there may be.
    Full,
    /// Its caller has as many as it may have.
    Caller,
    /// What it promises to send takes `wanted` seconds of threads a second, of which only `free` are not promised.
    Rate {
        /// What it takes.
        wanted: f64,
        /// What there is.
        free: f64,
    },
}

/// Streams that are open.
#[derive(Debug)]
pub struct Promises<K> {
    callers: HashMap<K, usize>,
    streams: usize,
    load: Load,
}

impl<K> Default for Promises<K> {
    fn default() -> Self {
        Self {
            callers: HashMap::new(),
            streams: 0,
            load: Load::default(),
        }
    }
}

impl<K: Clone + Eq + Hash> Promises<K> {
    /// Takes a stream of `caller`.
    ///
    /// # Errors
    /// It would be one too many.
    pub fn open(&mut self, caller: &K, limits: &PromiseLimits) -> Result<(), Refused> {
        if self.streams >= limits.streams {
            return Err(Refused::Full);
        }
        let own = self.callers.get(caller).copied().unwrap_or(0);
        if own >= limits.per_caller {
            return Err(Refused::Caller);
        }
        self.callers.insert(caller.clone(), own + 1);
        self.streams += 1;
        Ok(())
    }

    /// What a stream promises changes from `before` to `after`; less is never refused.
    ///
    /// # Errors
    /// It cannot be held; what was promised before stays.
    pub fn change(
        &mut self,
        before: Load,
        after: Load,
        limits: &PromiseLimits,
    ) -> Result<(), Refused> {
        let one = |own: f64, before: f64, after: f64, limit: f64| {
            let others = (own - before).max(0.0);
            let free = (limit - others).max(0.0);
            match after > before && after > free {
                true => Err(Refused::Rate {
                    wanted: after,
                    free,
                }),
                false => Ok(others + after),
            }
        };
        let own = self.load;
        let lanes = one(own.lanes, before.lanes, after.lanes, limits.load.lanes)?;
        let workers = one(
            own.workers,
            before.workers,
            after.workers,
            limits.load.workers,
        )?;
        self.load = Load { lanes, workers };
        Ok(())
    }

    /// A stream of `caller` is gone.
    pub fn close(&mut self, caller: &K) {
        if let Some(own) = self.callers.get_mut(caller) {
            *own -= 1;
            self.streams -= 1;
            if *own == 0 {
                self.callers.remove(caller);
            }
        }
        if self.streams == 0 {
            // What rounding has left.
            self.load = Load::default();
        }
    }

    /// Streams that are open.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.streams
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: PromiseLimits = PromiseLimits {
        streams: 3,
        per_caller: 2,
        load: Load {
            lanes: 1.8,
            workers: 0.0,
        },
    };

    fn load(lanes: f64) -> Load {
        Load {
            lanes,
            workers: 0.0,
        }
    }

    #[test]
    fn streams_are_counted_by_caller_and_in_all() {
        let mut promises = Promises::default();
        assert_eq!([(); 2].map(|()| promises.open(&"a", &LIMITS)), [Ok(()); 2]);
        assert_eq!(promises.open(&"a", &LIMITS), Err(Refused::Caller));
        assert_eq!(promises.open(&"b", &LIMITS), Ok(()));
        assert_eq!(promises.open(&"c", &LIMITS), Err(Refused::Full));
        promises.close(&"a");
        assert_eq!(promises.open(&"c", &LIMITS), Ok(()));
        ["a", "b", "c", "nobody"]
            .iter()
            .for_each(|caller| promises.close(caller));
        assert_eq!((promises.streams(), promises.callers.len()), (0, 0));
    }

    #[test]
    fn promises_are_summed_and_refused_when_they_cannot_be_held() {
        let mut promises = Promises::default();
        promises.open(&"a", &LIMITS).unwrap();
        assert_eq!(promises.change(load(0.0), load(1.0), &LIMITS), Ok(()));
        let refused = promises.change(load(0.0), load(0.9), &LIMITS);
        assert_eq!(
            refused,
            Err(Refused::Rate {
                wanted: 0.9,
                free: 0.8
            })
        );
        assert_eq!(promises.change(load(1.0), load(0.5), &LIMITS), Ok(()));
        assert_eq!(promises.change(load(0.0), load(0.9), &LIMITS), Ok(()));
        // Who has promised before the limit fell may still promise less.
        let less = PromiseLimits {
            load: load(0.1),
            ..LIMITS
        };
        assert_eq!(promises.change(load(0.9), load(0.8), &less), Ok(()));
        promises.close(&"a");
        assert_eq!(promises.load, Load::default());
    }
}
