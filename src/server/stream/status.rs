//! When a stream says how it is, and what.

use std::time::Duration;

use super::words;
use crate::{proto, stream::Account};

/// What was said last, and when it is time again.
#[derive(Debug, Default)]
pub(super) struct Pace {
    interval: Duration,
    last: Duration,
    offered: u64,
    answered: u64,
    /// When the newest frame came that was answered.
    newest: Option<Duration>,
}

impl Pace {
    pub(super) fn begin(&mut self, now: Duration, interval: Duration) {
        (self.last, self.interval) = (now, interval);
    }

    pub(super) fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// A frame that came at `arrived` was answered.
    pub(super) fn answered(&mut self, arrived: Duration) {
        self.newest = self.newest.max(Some(arrived));
    }

    /// Nothing is said this time.
    pub(super) fn put_off(&mut self, now: Duration) {
        self.last = now;
    }

    /// When it is time again.
    pub(super) fn next(&self) -> Duration {
        self.last + self.interval
    }

    pub(super) fn status(&mut self, account: &Account, now: Duration) -> proto::StreamStatus {
        let since = now.saturating_sub(self.last).as_secs_f32().max(1e-3);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f32 / since;
        let message = proto::StreamStatus {
            frames_offered: words::narrow(account.offered()),
            frames: words::counts(account),
            offered_per_second: rate(account.offered(), self.offered),
            answered_per_second: rate(account.answered(), self.answered),
            age: self
                .newest
                .and_then(|newest| now.saturating_sub(newest).try_into().ok()),
            ..Default::default()
        };
        (self.offered, self.answered) = (account.offered(), account.answered());
        self.last = now;
        message
    }
}
