//! How much each identity does: calls a second, calls at once, and pixels a second.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::identity::{Identity, Quota};
use crate::{
    engine::Meter,
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
    /// Pixels that may be sent: at most those of a second, and below zero what is owed for a call that was larger.
    pixels: f64,
    filled: Instant,
    active: usize,
}

impl Usage {
    fn new(quota: &Quota, now: Instant) -> Self {
        Self {
            tokens: f64::from(quota.burst),
            pixels: quota.pixels,
            filled: now,
            active: 0,
        }
    }

    fn fill(&mut self, quota: &Quota, now: Instant) {
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + since * quota.rate).min(f64::from(quota.burst));
        self.pixels = (self.pixels + since * quota.pixels).min(quota.pixels);
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

/// Charges one identity for its pixels.
#[derive(Debug, Clone)]
pub(super) struct Pixels {
    identity: Identity,
    quotas: Arc<Quotas>,
}

impl Meter for Pixels {
    fn charge(&self, pixels: u64) -> Result<()> {
        self.quotas.charge(&self.identity, pixels, Instant::now())
    }
}

impl Quotas {
    /// Who charges `identity` for its pixels; nobody where it has no bound.
    pub(super) fn pixels(self: &Arc<Self>, identity: &Identity) -> Option<Pixels> {
        (identity.quota().pixels > 0.0).then(|| Pixels {
            identity: identity.clone(),
            quotas: Arc::clone(self),
        })
    }

    /// Charges `identity` at `now` for images that cost so many pixels. Whoever owes nothing may send as much as it likes
    /// at once, and waits until that is paid.
    fn charge(&self, identity: &Identity, pixels: u64, now: Instant) -> Result<()> {
        let (quota, name) = (identity.quota(), identity.name());
        let mut used = self.used.lock();
        forget_idle(&mut used, &name, now);
        let usage = used
            .entry(Arc::clone(&name))
            .or_insert_with(|| Usage::new(&quota, now));
        usage.fill(&quota, now);
        if usage.pixels <= 0.0 {
            self.metrics.refused("pixels");
            let seconds = (1.0 - usage.pixels) / quota.pixels;
            let message = "the caller sends more pixels a second than it may";
            return Err(Error::new(Kind::RateLimited, message)
                .with("caller", &*name)
                .with("limit", quota.pixels)
                .retry_after(Duration::from_secs_f64(seconds)));
        }
        usage.pixels -= pixels as f64;
        Ok(())
    }

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
        forget_idle(&mut used, &name, now);
        let usage = used
            .entry(Arc::clone(&name))
            .or_insert_with(|| Usage::new(&quota, now));
        if quota.concurrency > 0 && usage.active >= quota.concurrency {
            self.metrics.refused("concurrency");
            let message = "the caller has as many calls under way as it may";
            let error = Error::new(Kind::RateLimited, message).retry_after(WAIT_FOR_A_CALL);
            return Err(error.with("caller", &*name).with("limit", usage.active));
        }
        if quota.rate > 0.0 {
            usage.fill(&quota, now);
            if usage.tokens < 1.0 {
                self.metrics.refused("rate");
                let seconds = ((1.0 - usage.tokens) / quota.rate).min(3600.0);
                let message = "the caller makes more calls a second than it may";
                return Err(Error::new(Kind::RateLimited, message)
                    .with("caller", &*name)
                    .with("limit", quota.rate)
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

/// Makes room for `name` among too many. Whoever did nothing for a minute has, with any sensible rate, its whole burst
/// again; who owes pixels is kept in mind.
fn forget_idle(used: &mut HashMap<Arc<str>, Usage>, name: &Arc<str>, now: Instant) {
    if used.len() < MOST_IDENTITIES || used.contains_key(name) {
        return;
    }
    let idle = Duration::from_secs(60);
    used.retain(|_, usage| {
        let recent = now.saturating_duration_since(usage.filled) < idle;
        usage.active > 0 || recent || usage.pixels < 0.0
    });
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
            ..Quota::default()
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
    fn pixels_are_paid_before_more_are_taken() {
        let quotas = Arc::new(Quotas::default());
        let camera = identity(Quota {
            pixels: 1e6,
            ..Quota::default()
        });
        let start = Instant::now();
        let charge = |pixels, at| quotas.charge(&camera, pixels, at);
        assert!(quotas.pixels(&camera).is_some());
        assert!(quotas.pixels(&identity(Quota::default())).is_none());
        // A second's worth after a pause, in any parts; what goes beyond is owed.
        assert!(charge(400_000, start).is_ok() && charge(400_000, start).is_ok());
        assert!(charge(48_200_000, start).is_ok());
        let error = charge(1, start).unwrap_err();
        assert_eq!(error.kind(), Kind::RateLimited);
        let wait = error.retry_delay().unwrap();
        assert!((wait.as_secs_f64() - 48.0).abs() < 0.01, "{wait:?}");
        let almost = start + wait - Duration::from_millis(10);
        assert!(charge(1, almost).is_err());
        assert!(charge(1, start + wait).is_ok());
        // Others come and go meanwhile: the debt stays.
        assert!(charge(1_000_000_000, start + wait + Duration::from_secs(9)).is_ok());
        let later = start + Duration::from_secs(200);
        for other in 0..2 * MOST_IDENTITIES {
            let grants = Grants {
                quota: camera.quota(),
                ..Grants::default()
            };
            let other = Identity::new(other.to_string(), Arc::new(grants));
            let at = later + Duration::from_millis(50 * other.name().parse::<u64>().unwrap());
            assert!(quotas.charge(&other, 1, at).is_ok());
        }
        assert!(quotas.used.lock().len() <= MOST_IDENTITIES);
        assert!(charge(1, later + Duration::from_secs(500)).is_err());
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
