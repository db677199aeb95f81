//! What is known of how long work takes: running means that fade, and trials where they refuse.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::sched::tuning::{CAUTION, FIRST, FRESH, HALF_LIFE, LONGER, SELDOM, STEP};

/// A running mean and mean deviation that trust themselves less the longer nothing was measured, so that one stall cannot
/// refuse work for ever.
#[derive(Debug, Default)]
pub(super) struct Mean(Mutex<Option<Seen>>);

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Seconds.
    mean: f64,
    /// Twice the mean of what exceeds the mean, seconds: the mean distance from it where both sides are alike. What is
    /// less than expected is no reason for caution.
    deviation: f64,
    at: Instant,
}

impl Seen {
    fn age(&self, now: Instant) -> f64 {
        now.saturating_duration_since(self.at).as_secs_f64()
    }

    /// What is left of it now.
    fn faded(&self, now: Instant) -> Self {
        let left = 0.5_f64.powf(self.age(now) / HALF_LIFE);
        Self {
            mean: self.mean * left,
            deviation: self.deviation * left,
            ..*self
        }
    }

    /// With one more measurement, which starts from what is left.
    fn with(&self, new: f64, now: Instant) -> Self {
        let step = STEP.max(1.0 - 0.5_f64.powf(self.age(now) / FRESH));
        let left = self.faded(now);
        let over = (new - self.mean).max(0.0);
        Self {
            mean: left.mean + step * (new - left.mean),
            deviation: left.deviation + step * (2.0 * over - left.deviation),
            at: now,
        }
    }
}

impl Mean {
    pub(super) fn add(&self, took: Duration) {
        self.add_at(took, Instant::now());
    }

    fn add_at(&self, took: Duration, now: Instant) {
        let new = took.as_secs_f64();
        let mut state = self.0.lock();
        let first = Seen {
            mean: new,
            deviation: 0.0,
            at: now,
        };
        *state = Some(state.map_or(first, |seen| seen.with(new, now)));
    }

    /// The mean now; nothing before the first measurement.
    pub(super) fn get(&self) -> Duration {
        Duration::from_secs_f64(self.above(0.0, Instant::now()))
    }

    /// What most of what comes next will not exceed.
    pub(super) fn most(&self) -> Duration {
        Duration::from_secs_f64(self.above(CAUTION, Instant::now()))
    }

    /// Seconds.
    fn above(&self, deviations: f64, now: Instant) -> f64 {
        let seen = *self.0.lock();
        let left = seen.map(|seen| seen.faded(now));
        left.map_or(0.0, |left| left.mean + deviations * left.deviation)
    }

    /// As [`Mean::get`], of what was thought to take `first` before anything was measured: what took longer fades to
    /// that, what took less does not.
    pub(super) fn get_from(&self, first: Duration) -> Duration {
        self.from(0.0, first, Instant::now())
    }

    /// As [`Mean::most`], and [`Mean::get_from`].
    pub(super) fn most_from(&self, first: Duration) -> Duration {
        self.from(CAUTION, first, Instant::now())
    }

    fn from(&self, deviations: f64, first: Duration, now: Instant) -> Duration {
        let Some(seen) = *self.0.lock() else {
            return first;
        };
        let of = |seen: Seen| Duration::from_secs_f64(seen.mean + deviations * seen.deviation);
        of(seen.faded(now)).max(of(seen).min(first))
    }

    /// Whether it was measured less than a half-life ago.
    fn is_known(&self, now: Instant) -> bool {
        let seen = *self.0.lock();
        seen.is_some_and(|seen| seen.age(now) < HALF_LIFE)
    }
}

/// What work of one kind takes by its size: a mean for each power of two, so that what is large says nothing of what is
/// small but that it takes no longer.
#[derive(Debug)]
pub(super) struct BySize([Mean; u64::BITS as usize]);

impl Default for BySize {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mean::default()))
    }
}

impl BySize {
    fn class(size: u64) -> usize {
        size.max(1).ilog2() as usize
    }

    pub(super) fn add(&self, size: u64, took: Duration) {
        self.add_at(size, took, Instant::now());
    }

    fn add_at(&self, size: u64, took: Duration, now: Instant) {
        if let Some(mean) = self.0.get(Self::class(size)) {
            mean.add_at(took, now);
        }
    }

    /// The mean of work of `size`. Of a size that was not measured of late, others tell: what is smaller takes no longer,
    /// and of what is larger it takes its part.
    pub(super) fn get(&self, size: u64) -> Duration {
        let now = Instant::now();
        Duration::from_secs_f64(self.above(size, 0.0, now, self.0.len()))
    }

    /// The mean of work of `size`, if such was measured of late.
    pub(super) fn known(&self, size: u64) -> Option<Duration> {
        let (own, now) = (&self.0[Self::class(size)], Instant::now());
        own.is_known(now)
            .then(|| Duration::from_secs_f64(own.above(0.0, now)))
    }

    /// What most work of `size` will not exceed, as far as work of this size or smaller has told: nobody is refused for
    /// what is larger.
    pub(super) fn most(&self, size: u64) -> Duration {
        let now = Instant::now();
        Duration::from_secs_f64(self.above(size, CAUTION, now, Self::class(size) + 1))
    }

    /// From the classes below `end`.
    fn above(&self, size: u64, deviations: f64, now: Instant, end: usize) -> f64 {
        let own = Self::class(size);
        if self.0[own].is_known(now) {
            return self.0[own].above(deviations, now);
        }
        let all = self.0.iter().zip(0_i32..).take(end);
        let of = |(mean, class): (&Mean, i32)| {
            let larger = (class - own as i32).max(0);
            mean.above(deviations, now) * 0.5_f64.powi(larger)
        };
        all.map(of).fold(0.0, f64::max)
    }
}

/// Lets some work through that an estimate refuses, or nobody would learn that the estimate is wrong: at first soon, then
/// the more seldom the longer it changes nothing. Estimates of different magnitude are apart, so that work that is
/// rightly refused takes no trial from other work.
#[derive(Debug, Default)]
pub(super) struct Trials([Mutex<Option<Trial>>; 24]);

#[derive(Debug, Clone, Copy)]
struct Trial {
    next: Instant,
    pause: Duration,
}

impl Trials {
    /// Whether work that is refused because it is thought to take `estimate` is let through nevertheless.
    pub(super) fn allow(&self, estimate: Duration, now: Instant) -> bool {
        let class = u64::try_from(estimate.as_millis()).unwrap_or(u64::MAX);
        let class = ((class + 1).ilog2() as usize).min(self.0.len() - 1);
        let mut state = self.0[class].lock();
        let begun = Trial {
            next: now + FIRST,
            pause: FIRST,
        };
        // Nothing has been refused for long: whatever was tried before is of another time.
        let trial = match *state {
            Some(trial) if now < trial.next + trial.pause.max(FIRST * 10) => trial,
            _ => {
                *state = Some(begun);
                return false;
            }
        };
        if now < trial.next {
            return false;
        }
        let pause = (trial.pause * LONGER).min((estimate * SELDOM).max(FIRST));
        *state = Some(Trial {
            next: now + pause,
            pause,
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// Milliseconds.
    fn most(mean: &Mean, now: Instant) -> f64 {
        mean.above(CAUTION, now) * 1e3
    }

    #[test]
    fn what_varies_is_taken_for_longer_than_its_mean() {
        let (steady, shaky) = (Mean::default(), Mean::default());
        for round in 0..200 {
            steady.add(ms(10));
            shaky.add(ms(if round % 2 == 0 { 5 } else { 15 }));
        }
        let ratio = |mean: &Mean| mean.most().as_secs_f64() / mean.get().as_secs_f64();
        assert!((0.99..1.01).contains(&ratio(&steady)), "{steady:?}");
        assert!((1.8..2.2).contains(&ratio(&shaky)), "{shaky:?}");
    }

    #[test]
    fn a_mean_follows_what_is_measured() {
        let mean = Mean::default();
        assert_eq!(mean.get(), Duration::ZERO);
        (0..100).for_each(|_| mean.add(ms(10)));
        let got = mean.get().as_secs_f64();
        assert!((0.009..=0.010).contains(&got), "{got}");
    }

    #[test]
    fn one_measurement_among_many_moves_a_mean_by_little() {
        let (mean, start) = (Mean::default(), Instant::now());
        (0..100).for_each(|n| mean.add_at(ms(10), start + ms(n)));
        mean.add_at(ms(110), start + ms(100));
        let now = mean.above(0.0, start + ms(100)) * 1e3;
        assert!((19.0..21.0).contains(&now), "{now} ms");
    }

    #[test]
    fn what_is_measured_after_a_rest_starts_from_what_is_left() {
        let (mean, start) = (Mean::default(), Instant::now());
        mean.add_at(ms(8000), start);
        let rested = start + Duration::from_secs(20);
        assert!(most(&mean, rested) < 10.0, "ten half-lives");
        mean.add_at(ms(10), rested);
        assert!(most(&mean, rested) < 20.0, "{mean:?}");
    }

    #[test]
    fn what_was_thought_at_first_counts_until_it_is_measured() {
        let (mean, start, first) = (Mean::default(), Instant::now(), ms(100));
        assert_eq!(mean.from(CAUTION, first, start), first);
        mean.add_at(ms(300), start);
        assert_eq!(mean.from(CAUTION, first, start), ms(300));
        let later = start + Duration::from_secs(60);
        assert_eq!(mean.from(CAUTION, first, later), first, "it has faded");
        mean.add_at(ms(1), later);
        let long_after = later + Duration::from_secs(60);
        assert!(mean.from(CAUTION, first, long_after) < ms(2), "{mean:?}");
    }

    #[test]
    fn a_stall_is_forgotten_after_two_trials() {
        let (mean, start) = (Mean::default(), Instant::now());
        (0..100).for_each(|n| mean.add_at(ms(10), start + ms(n)));
        mean.add_at(Duration::from_secs(10), start + ms(101));
        assert!(most(&mean, start + ms(101)) > 1000.0);
        mean.add_at(ms(10), start + ms(201));
        mean.add_at(ms(10), start + ms(501));
        assert!(most(&mean, start + ms(501)) < 100.0, "{mean:?}");
    }

    #[test]
    fn what_is_large_says_little_of_what_is_small() {
        let (costs, start) = (BySize::default(), Instant::now());
        let get = |size| costs.above(size, 0.0, start, 64) * 1e3;
        let most = |size: u64| costs.above(size, CAUTION, start, BySize::class(size) + 1) * 1e3;
        assert_eq!(get(1 << 18), 0.0);
        costs.add_at(1 << 25, ms(1280), start);
        assert!((9.9..10.1).contains(&get(1 << 18)), "{}", get(1 << 18));
        assert_eq!(most(1 << 18), 0.0, "no reason to refuse anybody");
        assert!(
            (1279.0..1281.0).contains(&most(1 << 30)),
            "at least as long"
        );
        costs.add_at(1 << 18, ms(4), start);
        assert!((3.9..4.1).contains(&most(1 << 18)));
        // Which does not change when more of the large come.
        (0..100).for_each(|_| costs.add_at(1 << 25, ms(5000), start));
        assert!((3.9..4.1).contains(&most((1 << 18) + 99)));
        assert!((3.9..4.1).contains(&get((1 << 18) + 99)));
    }

    #[test]
    fn trials_come_soon_and_then_seldom() {
        let (trials, start) = (Trials::default(), Instant::now());
        let allowed = |from: u64, to: u64, estimate| {
            let mut times = Vec::new();
            for at in (from..to).step_by(10) {
                if trials.allow(estimate, start + ms(at)) {
                    times.push(at);
                }
            }
            times
        };
        // One second of work that is refused again and again.
        let times = allowed(0, 60_000, ms(1000));
        assert_eq!(times[..3], [100, 400, 1300]);
        assert!(times.len() <= 8, "{times:?}");
        // Other work is tried by itself, and after a rest all begins anew.
        assert_eq!(allowed(60_000, 60_450, ms(90)), [60_100, 60_400]);
        assert_eq!(allowed(120_000, 120_450, ms(1000)), [120_100, 120_400]);
    }
}
