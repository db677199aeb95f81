//! What threads take from the queue.

use std::sync::Arc;

use bytes::Bytes;

use crate::engine::{
    cost::Costs,
    flight::Flight,
    job::{Finish, Job},
    sched::batch::Plan,
};

/// An image ready for the backbone.
pub(in crate::engine) struct Ready {
    pub(in crate::engine) flight: Arc<Flight>,
    /// NHWC RGB at the input's size.
    pub(in crate::engine) pixels: Bytes,
    /// Whether the pixels were made here; those that came raw are the caller's.
    pub(in crate::engine) decoded: bool,
}

/// What a thread does next.
pub(in crate::engine) enum Work {
    /// A head's output that becomes a result.
    Finish(Finish),
    /// Complete jobs of one head whose features are there already, or jobs that only want features.
    Jobs(Vec<Arc<Job>>),
    /// Images of one size for the backbone.
    Batch(Batch),
    /// An image to decode.
    Decode(Arc<Flight>),
    /// Nothing but what was dropped.
    Nothing,
}

/// Images of one size for the backbone.
pub(in crate::engine) struct Batch {
    pub(in crate::engine) images: Vec<Ready>,
    pub(in crate::engine) plan: Plan,
    /// Whether no lane is idle.
    pub(in crate::engine) crowded: bool,
}

impl Work {
    /// About how many seconds a thread is busy with it.
    pub(super) fn takes(&self, costs: &Costs) -> f64 {
        match self {
            Self::Finish(finish) => finishing(finish),
            Self::Batch(batch) => batch.takes(costs),
            Self::Jobs(jobs) => jobs.iter().map(|job| job.load()).sum(),
            Self::Decode(flight) => flight.cost.load.decode,
            Self::Nothing => 0.0,
        }
    }

    /// Whether it runs graphs.
    pub(super) fn is_on_device(&self) -> bool {
        !matches!(self, Self::Finish(_) | Self::Decode(_))
    }
}

impl Batch {
    fn takes(&self, costs: &Costs) -> f64 {
        let rest = self.images.iter().map(|ready| ready.flight.cost.load.rest);
        let first = self.images.first();
        let size = first.map_or([0, 0], |ready| ready.flight.size());
        let alone = costs.batch(size, self.plan.bucket).as_secs_f64();
        rest.sum::<f64>().max(alone)
    }
}

/// What it takes to make a result, in seconds.
pub(super) fn finishing(finish: &Finish) -> f64 {
    finish.job.finishing().as_secs_f64()
}
