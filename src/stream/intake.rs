//! A stream's frames from their arrival to their last word.

use std::{collections::VecDeque, time::Duration};

use super::{
    account::{Account, Outcome, Reason},
    due::Due,
};

/// Which frames go when more come than can be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The newest waits, and none beside it.
    Latest,
    /// So many wait; one more pushes out the oldest.
    Queue(usize),
    /// So many wait; no more are taken in before one of them goes.
    Wait(usize),
}

impl Policy {
    /// How many may wait.
    #[must_use]
    pub fn waiting(self) -> usize {
        match self {
            Self::Latest => 1,
            Self::Queue(most) | Self::Wait(most) => most.max(1),
        }
    }
}

/// What a stream does with its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Which of them go.
    pub policy: Policy,
    /// One of so many is taken, the others are skipped.
    pub every: u64,
    /// Age at which a frame is dropped.
    pub max_age: Option<Duration>,
    /// Most frames that are handed out and not begun.
    pub ahead: usize,
    /// Most frames that are handed out.
    pub running: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            policy: Policy::Latest,
            every: 1,
            max_age: None,
            ahead: 1,
            running: 8,
        }
    }
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<T> {
    /// Its number in the stream, given here: rises by 1 with each frame that is well formed.
    pub ordinal: u64,
    /// Its sender's number.
    pub id: u64,
    /// When it was taken, in nanoseconds of its sender's clock.
    pub captured: Option<i64>,
    /// When it came.
    pub arrived: Duration,
    /// Before this it is not handed out again.
    pub not_before: Duration,
    /// The rest of it.
    pub content: T,
}

/// A frame's last word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// The number that it was given here, where it had got so far.
    pub ordinal: Option<u64>,
    /// Its sender's number.
    pub id: u64,
    /// When it was taken, in nanoseconds of its sender's clock.
    pub captured: Option<i64>,
    /// When it came.
    pub arrived: Duration,
    /// What became of it.
    pub outcome: Outcome,
    /// What was wrong with it, where the intake saw that.
    pub detail: Option<Detail>,
}

/// What is wrong with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Its number is not above that of the frame before it, which is this.
    IdNotRising(u64),
    /// It was taken before the frame before it, which was taken at this time.
    TimeBackwards(i64),
}

#[derive(Debug)]
struct Running {
    ordinal: u64,
    id: u64,
    captured: Option<i64>,
    arrived: Duration,
    begun: bool,
}

impl Running {
    fn word(&self, outcome: Outcome) -> Word {
        Word {
            ordinal: Some(self.ordinal),
            id: self.id,
            captured: self.captured,
            arrived: self.arrived,
            outcome,
            detail: None,
        }
    }
}

/// A stream's frames.
#[derive(Debug)]
pub struct Intake<T> {
    rules: Rules,
    account: Account,
    ordinals: u64,
    last_id: Option<u64>,
    last_captured: Option<i64>,
    due: Due,
    waiting: VecDeque<Frame<T>>,
    running: Vec<Running>,
    closed: bool,
}

impl<T> Intake<T> {
    /// No frames yet.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            account: Account::default(),
            ordinals: 0,
            last_id: None,
            last_captured: None,
            due: Due::default(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            closed: false,
        }
    }

    /// What has become of the frames.
    #[must_use]
    pub fn account(&self) -> Account {
        self.account
    }

    /// Frames that wait here.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = &Frame<T>> {
        self.waiting.iter()
    }

    /// Frames that are handed out.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Whether one more frame may be offered; where not, its sender has to wait.
    #[must_use]
    pub fn has_room(&self) -> bool {
        match self.rules.policy {
            Policy::Latest | Policy::Queue(_) => true,
            Policy::Wait(_) => self.waiting.len() < self.rules.policy.waiting(),
        }
    }

    /// A frame comes at `now`; `content` is what it holds, or why that is of no use. Frames that have their last word by
    /// that, itself or others, are told to `words`.
    pub fn offer(
        &mut self,
        id: u64,
        captured: Option<i64>,
        content: Result<T, Reason>,
        now: Duration,
        words: &mut Vec<Word>,
    ) {
        self.account.offer();
        let mut word = Word {
            ordinal: None,
            id,
            captured,
            arrived: now,
            outcome: Outcome::Answered,
            detail: None,
        };
        let content = match self.check(id, captured, content) {
            Ok(content) => content,
            Err((reason, detail)) => {
                word.detail = detail;
                return self.end(word, Outcome::Dropped(reason), words);
            }
        };
        let ordinal = self.ordinals;
        self.ordinals += 1;
        if !self.due.is(ordinal, self.rules.every) {
            return self.end(word, Outcome::Dropped(Reason::Skipped), words);
        }
        self.due.take(ordinal);
        self.waiting.push_back(Frame {
            ordinal,
            id,
            captured,
            arrived: now,
            not_before: Duration::ZERO,
            content,
        });
        self.make_room(words);
    }

    fn check(
        &mut self,
        id: u64,
        captured: Option<i64>,
        content: Result<T, Reason>,
    ) -> Result<T, (Reason, Option<Detail>)> {
        if self.closed {
            return Err((Reason::Ended, None));
        }
        if let Some(last) = self.last_id.filter(|last| id <= *last) {
            return Err((Reason::Duplicate, Some(Detail::IdNotRising(last))));
        }
        self.last_id = Some(id);
        if let (Some(last), Some(this)) = (self.last_captured, captured)
            && this < last
        {
            return Err((Reason::Invalid, Some(Detail::TimeBackwards(last))));
        }
        self.last_captured = captured.or(self.last_captured);
        content.map_err(|reason| (reason, None))
    }

    /// Pushes out those that are too many.
    fn make_room(&mut self, words: &mut Vec<Word>) {
        if matches!(self.rules.policy, Policy::Wait(_)) {
            return;
        }
        while self.waiting.len() > self.rules.policy.waiting() {
            if let Some(frame) = self.waiting.pop_front() {
                self.drop_waiting(&frame, Reason::Superseded, words);
            }
        }
    }

    /// Drops those that wait and have grown too old by `now`.
    pub fn expire(&mut self, now: Duration, words: &mut Vec<Word>) {
        let Some(max_age) = self.rules.max_age else {
            return;
        };
        let old = |frame: &Frame<T>| frame.arrived + max_age <= now;
        while self.waiting.front().is_some_and(old)
            && let Some(frame) = self.waiting.pop_front()
        {
            self.drop_waiting(&frame, Reason::Age, words);
        }
    }

    /// When after `now` [`Intake::expire`] or [`Intake::next`] has something to do again though nothing has come.
    #[must_use]
    pub fn wakes(&self, now: Duration) -> Option<Duration> {
        let front = self.waiting.front()?;
        let expiry = self.rules.max_age.map(|max_age| front.arrived + max_age);
        let retry = Some(front.not_before).filter(|at| *at > now);
        expiry.into_iter().chain(retry).min()
    }

    /// The frame to compute next, if one may be handed out at `now`.
    pub fn next(&mut self, now: Duration) -> Option<Frame<T>> {
        let fresh = self.running.iter().filter(|frame| !frame.begun).count();
        if fresh >= self.rules.ahead || self.running.len() >= self.rules.running {
            return None;
        }
        self.waiting.front().filter(|f| f.not_before <= now)?;
        let frame = self.waiting.pop_front()?;
        self.running.push(Running {
            ordinal: frame.ordinal,
            id: frame.id,
            captured: frame.captured,
            arrived: frame.arrived,
            begun: false,
        });
        Some(frame)
    }

    /// The frame that was handed out, is not begun and had better make way for the one that waits.
    #[must_use]
    pub fn outdated(&self) -> Option<u64> {
        if self.rules.policy != Policy::Latest || self.waiting.is_empty() {
            return None;
        }
        let fresh = self.running.iter().find(|frame| !frame.begun);
        fresh.map(|frame| frame.ordinal)
    }

    /// Work on the frame `ordinal` has begun.
    pub fn begun(&mut self, ordinal: u64) {
        if let Some(frame) = self.running.iter_mut().find(|f| f.ordinal == ordinal) {
            frame.begun = true;
        }
    }

    /// The frame `ordinal`, which was handed out, has ended.
    pub fn finished(&mut self, ordinal: u64, outcome: Outcome, words: &mut Vec<Word>) {
        let Some(index) = self.running.iter().position(|f| f.ordinal == ordinal) else {
            return;
        };
        let word = self.running.remove(index).word(outcome);
        self.end(word, outcome, words);
    }

    /// The frame, which was handed out, could not be taken and is to be tried again at `not_before`. One that is older
    /// than those that wait may be pushed out at once.
    pub fn put_back(&mut self, mut frame: Frame<T>, not_before: Duration, words: &mut Vec<Word>) {
        let before = self.running.len();
        self.running.retain(|f| f.ordinal != frame.ordinal);
        if self.running.len() == before {
            return;
        }
        frame.not_before = not_before;
        self.waiting.push_front(frame);
        self.make_room(words);
    }

    /// Other rules from here on.
    pub fn set_rules(&mut self, rules: Rules, words: &mut Vec<Word>) {
        self.rules = rules;
        self.make_room(words);
    }

    /// No further frame is taken; what is under way goes on.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Whether no further frame is taken.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether no frame is to come and none is under way.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.closed && self.waiting.is_empty() && self.running.is_empty()
    }

    /// Ends everything: each frame under way is dropped for `reason`.
    pub fn stop(&mut self, reason: Reason, words: &mut Vec<Word>) {
        self.closed = true;
        let outcome = Outcome::Dropped(reason);
        for frame in std::mem::take(&mut self.running) {
            self.end(frame.word(outcome), outcome, words);
        }
        for frame in std::mem::take(&mut self.waiting) {
            self.drop_waiting(&frame, reason, words);
        }
    }

    fn drop_waiting(&mut self, frame: &Frame<T>, reason: Reason, words: &mut Vec<Word>) {
        let outcome = Outcome::Dropped(reason);
        let word = Word {
            ordinal: Some(frame.ordinal),
            id: frame.id,
            captured: frame.captured,
            arrived: frame.arrived,
            outcome,
            detail: None,
        };
        self.end(word, outcome, words);
    }

    fn end(&mut self, mut word: Word, outcome: Outcome, words: &mut Vec<Word>) {
        self.account.end(outcome);
        word.outcome = outcome;
        words.push(word);
    }
}

#[cfg(test)]
mod tests;
