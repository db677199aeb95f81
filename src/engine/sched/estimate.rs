//! The time to an answer: of the steps that lie before it, and of what comes first.
//!
//! Pure: no clock, no lock. The door and the queue ask the same functions, so that what is let in is not given up for
//! another reason than the time that it has waited.

use std::time::Duration;

/// Where an image is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// It is yet to be decoded.
    Encoded,
    /// It can join a batch.
    Ready,
    /// Its features are there.
    Features,
}

/// What most answers of a kind do not exceed, step by step.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Steps {
    /// Decoding its images.
    pub(crate) decode: Duration,
    /// The batch that its images join.
    pub(crate) batch: Duration,
    /// Its head, and to make a result of the head's output.
    pub(crate) head: Duration,
    /// From the result to the caller.
    pub(crate) delivery: Duration,
}

impl Steps {
    /// How long the steps take that come at `stage` and after it.
    pub(crate) fn from(&self, stage: Stage) -> Duration {
        let last = self.head + self.delivery;
        match stage {
            Stage::Encoded => self.decode + self.batch + last,
            Stage::Ready => self.batch + last,
            Stage::Features => last,
        }
    }
}

/// How long several images of one request take to decode, each as given, on `threads` threads: the longest alone, or all
/// shared out.
pub(crate) fn side_by_side(each: impl Iterator<Item = Duration>, threads: usize) -> Duration {
    let (mut longest, mut all) = (Duration::ZERO, Duration::ZERO);
    for one in each {
        longest = longest.max(one);
        all += one;
    }
    longest.max(all.div_f64(threads.max(1) as f64))
}

/// Seconds until a thread is free for somebody before whom `work` seconds of work go, where each thread is busy for as
/// long as `busy` says: what waits goes to whoever is free first.
pub(crate) fn wait(busy: impl Iterator<Item = f64> + Clone, work: f64) -> f64 {
    let next_after = |time: f64| {
        let later = busy.clone().filter(|until| *until > time);
        later.fold(f64::INFINITY, f64::min)
    };
    let mut now = busy.clone().fold(f64::INFINITY, f64::min);
    if now.is_infinite() {
        return work;
    }
    let mut left = work;
    loop {
        let free = busy.clone().filter(|until| *until <= now).count() as f64;
        let next = next_after(now);
        if left <= free * (next - now) {
            return now + left / free;
        }
        left -= free * (next - now);
        now = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn after(busy: &[f64], work: f64) -> f64 {
        wait(busy.iter().copied(), work)
    }

    #[test]
    fn steps_that_are_done_no_longer_count() {
        let steps = Steps {
            decode: ms(5),
            batch: ms(10),
            head: ms(2),
            delivery: ms(1),
        };
        let from = [Stage::Encoded, Stage::Ready, Stage::Features].map(|s| steps.from(s));
        assert_eq!(from, [ms(18), ms(13), ms(3)]);
    }

    #[test]
    fn frames_are_decoded_side_by_side() {
        let frames = |count: usize| std::iter::repeat_n(ms(10), count);
        assert_eq!(side_by_side(frames(1), 4), ms(10));
        assert_eq!(side_by_side(frames(16), 4), ms(40));
        assert_eq!(side_by_side(frames(0), 4), Duration::ZERO);
        assert_eq!(side_by_side([ms(90), ms(1)].into_iter(), 4), ms(90));
    }

    #[test]
    fn one_free_thread_is_enough() {
        assert_eq!(after(&[0.0, 9.0], 0.0), 0.0);
        // What waits goes to the free one, and little of it does not wait for the other.
        assert_eq!(after(&[0.0, 9.0], 2.0), 2.0);
        assert_eq!(after(&[1.0, 9.0], 2.0), 3.0);
    }

    #[test]
    fn what_waits_is_shared_out_as_threads_come_free() {
        assert_eq!(after(&[0.0, 0.0], 3.0), 1.5);
        assert_eq!(after(&[0.0, 1.0], 3.0), 2.0);
        assert_eq!(after(&[3.0, 1.0, 2.0], 3.0), 3.0);
        assert_eq!(after(&[3.0, 1.0, 2.0], 6.0), 4.0);
        assert_eq!(after(&[], 1.0), 1.0);
    }
}
