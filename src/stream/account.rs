//! What has become of a stream's frames: each one offered is answered, dropped for one reason, or still under way.

/// Why a frame was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A newer frame took its place.
    Superseded,
    /// The stream's settings take only some of the frames, and not this one.
    Skipped,
    /// It grew too old before it was answered.
    Age,
    /// The server was full.
    Overload,
    /// Its caller is over its quota.
    Quota,
    /// Its image cannot be read, or is over a limit.
    Image,
    /// Its number does not rise.
    Duplicate,
    /// Another mistake of its sender's.
    Invalid,
    /// The server failed on it.
    Failed,
    /// The stream ended first.
    Ended,
}

impl Reason {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 10] = [
        Self::Superseded,
        Self::Skipped,
        Self::Age,
        Self::Overload,
        Self::Quota,
        Self::Image,
        Self::Duplicate,
        Self::Invalid,
        Self::Failed,
        Self::Ended,
    ];

    /// As a label of metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Superseded => "superseded",
            Self::Skipped => "skipped",
            Self::Age => "age",
            Self::Overload => "overload",
            Self::Quota => "quota",
            Self::Image => "image",
            Self::Duplicate => "duplicate",
            Self::Invalid => "invalid",
            Self::Failed => "failed",
            Self::Ended => "ended",
        }
    }
}

/// A frame's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Each head that it was for has answered.
    Answered,
    /// It was given up.
    Dropped(Reason),
}

/// Counts of a stream's frames since its begin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account {
    offered: u64,
    answered: u64,
    dropped: [u64; Reason::ALL.len()],
}

impl Account {
    /// Frames that came.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// Those that were answered.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered
    }

    /// Those that were dropped for `reason`.
    #[must_use]
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Those that have not had their last word.
    #[must_use]
    pub fn under_way(&self) -> u64 {
        self.offered - self.answered - self.dropped.iter().sum::<u64>()
    }

    pub(super) fn offer(&mut self) {
        self.offered += 1;
    }

    pub(super) fn end(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Answered => self.answered += 1,
            Outcome::Dropped(reason) => self.dropped[reason as usize] += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_where_they_are_counted() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
