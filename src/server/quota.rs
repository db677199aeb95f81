//! How much each identity does: calls a second, and calls at once.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::identity::{Identity, Quota};
use crate::{
    error::{Error, Kind, Result},
    metrics::Metrics,
};

/// Identities kept in mind before those that do nothing are forgotten.
const MOST_IDENTITIES: usize = 4096;

/// Time that a caller over its number of calls at once is told to wait.
const WAIT_FOR_A_CALL: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Usage {
    /// Calls that may be made at this moment; at most the burst.
    tokens: f64,
    filled: Instant,
    active: usize,
}

impl Usage {
    fn fill(&mut self, quota: &Quota, now: Instant) {
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + since * quota.rate).min(f64::from(quota.burst));
        self.filled = now;
    }
}

/// Counts what identities do, and what is refused them.
#[derive(Debug, Default)]
pub(super) struct Quotas {
    used: Mutex<HashMap<Arc<str>, Usage>>,
    metrics: Arc<Metrics>,
}

/// A call under way, counted until dropped.
#[derive(Debug)]
pub(super) struct Counted {
    name: Arc<str>,
    quotas: Arc<Quotas>,
}

impl Quotas {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            used: Mutex::default(),
            metrics,
        }
    }

    /// Counts a call of `identity` at `now`; nothing to count where it has no bound.
    ///
    /// # Errors
    /// `RateLimited`, with the time after which the call may be made.
    pub(super) fn enter(
        self: &Arc<Self>,
        identity: &Identity,
        now: Instant,
    ) -> Result<Option<Counted>> {
        let quota = identity.quota();
        if quota.rate == 0.0 && quota.concurrency == 0 {
            return Ok(None);
        }
        let name = identity.name();
        let mut used = self.used.lock();
        if used.len() >= MOST_IDENTITIES && !used.contains_key(&name) {
            // Whoever did nothing for a minute has, with any sensible rate, its whole burst again.
            let idle = Duration::from_secs(60);
            used.retain(|_, usage| {
                usage.active > 0 || now.saturating_duration_since(usage.filled) < idle
            });
        }
        let usage = used.entry(Arc::clone(&name)).or_insert(Usage {
            tokens: f64::from(quota.burst),
            filled: now,
            active: 0,
        });
        if quota.concurrency > 0 && usage.active >= quota.concurrency {
            self.metrics.refused("concurrency");
            let message = format!(
                "{:?} has {} calls under way, which is its limit",
                &*name, usage.active
            );
            return Err(Error::new(Kind::RateLimited, message).retry_after(WAIT_FOR_A_CALL));
        }
        if quota.rate > 0.0 {
            usage.fill(&quota, now);
            if usage.tokens < 1.0 {
                self.metrics.refused("rate");
                let seconds = ((1.0 - usage.tokens) / quota.rate).min(3600.0);
                let message = format!(
                    "{:?} makes more than {} calls a second, which is its limit",
                    &*name, quota.rate
                );
                return Err(Error::new(Kind::RateLimited, message)
                    .retry_after(Duration::from_secs_f64(seconds)));
            }
            usage.tokens -= 1.0;
        }
        usage.active += 1;
        Ok(Some(Counted {
            name,
            quotas: Arc::clone(self),
        }))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(usage) = self.quotas.used.lock().get_mut(&self.name) {
            usage.active -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::identity::Grants, *};

    fn identity(quota: Quota) -> Identity {
        let grants = Grants {
            quota,
            ..Grants::default()
        };
        Identity::new("camera", Arc::new(grants))
    }

    #[test]
    fn a_rate_refuses_beyond_the_burst_and_says_when_to_come_back() {
        let quotas = Arc::new(Quotas::default());
        let camera = identity(Quota {
            rate: 10.0,
            burst: 3,
            concurrency: 0,
        });
        let start = Instant::now();
        for _ in 0..3 {
            assert!(quotas.enter(&camera, start).is_ok());
        }
        let error = quotas.enter(&camera, start).unwrap_err();
        assert_eq!(error.kind(), Kind::RateLimited);
        let delay = error.retry_delay().unwrap();
        assert_eq!(delay, Duration::from_millis(100));
        assert!(quotas.enter(&camera, start + delay).is_ok());
        assert!(quotas.enter(&camera, start + delay).is_err());
    }

    #[test]
    fn calls_at_once_are_bounded_until_one_ends() {
        let quotas = Arc::new(Quotas::default());
        let camera = identity(Quota {
            concurrency: 2,
            ..Quota::default()
        });
        let now = Instant::now();
        let first = quotas.enter(&camera, now).unwrap();
        let _second = quotas.enter(&camera, now).unwrap();
        assert!(quotas.enter(&camera, now).is_err());
        drop(first);
        assert!(quotas.enter(&camera, now).is_ok());
    }
}
