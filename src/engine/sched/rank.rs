//! How urgent something is, and at whose cost it is served.

use std::{sync::Arc, time::Instant};

/// Classes of urgency. A lower one waits while a higher one has work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// For what can wait: bulk work.
    Background,
    /// For everything else.
    #[default]
    Normal,
    /// For what somebody waits for.
    High,
}

impl Priority {
    pub(crate) const COUNT: usize = 3;
}

/// Who shares: one caller's use of one head.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    pub(crate) caller: Arc<str>,
    pub(crate) head: Arc<str>,
}

/// How urgent an entry is, and at whose cost it is served.
#[derive(Debug, Clone)]
pub(crate) struct Rank {
    pub(crate) priority: Priority,
    pub(crate) flow: Flow,
    /// Weights of the caller and of the head.
    pub(crate) weights: (f64, f64),
    pub(crate) deadline: Option<Instant>,
}

impl Rank {
    /// Whether this rank is more urgent than `other` in any way.
    pub(crate) fn before(&self, other: &Self) -> bool {
        self.priority > other.priority || order(self.deadline) < order(other.deadline)
    }

    /// This flow's rank with the urgency of both.
    pub(crate) fn joined(mut self, other: &Self) -> Self {
        self.priority = self.priority.max(other.priority);
        if order(other.deadline) < order(self.deadline) {
            self.deadline = other.deadline;
        }
        self
    }
}

/// Earlier deadlines first, none last.
pub(crate) fn order(deadline: Option<Instant>) -> (bool, Option<Instant>) {
    (deadline.is_none(), deadline)
}
