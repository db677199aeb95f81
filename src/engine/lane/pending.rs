//! What a lane has enqueued on its device.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    backend::{FeatureBatch, FeatureRow, HeadBatch},
    engine::{Head, job::Job},
};

/// How long the parts of a step took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Parts {
    pub(super) backbone: Duration,
    /// Making results.
    pub(super) results: Duration,
}

/// What was enqueued on a device and is not yet done.
#[derive(Default)]
pub(super) struct Pending {
    /// Whether every lane was busy when it began.
    pub(super) crowded: bool,
    /// How long its parts took, as far as it is known.
    pub(super) spent: Parts,
    pub(super) runs: Vec<Ran>,
    pub(super) features: Vec<(Arc<Job>, FeatureRow)>,
    pub(super) answers: Vec<Answer>,
}

/// A batch of the backbone.
pub(super) struct Ran {
    pub(super) features: Arc<FeatureBatch>,
    pub(super) size: [u32; 2],
    pub(super) bucket: usize,
    pub(super) begun: Instant,
}

/// A batch of a head.
pub(super) struct Answer {
    pub(super) head: Arc<Head>,
    pub(super) calls: Vec<Call>,
    pub(super) batch: HeadBatch,
    pub(super) begun: Instant,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.features.is_empty() && self.answers.is_empty()
    }
}

/// One call of a head's batch, and the jobs that want it.
pub(super) struct Call {
    pub(super) rows: Vec<FeatureRow>,
    pub(super) jobs: Vec<Arc<Job>>,
}
