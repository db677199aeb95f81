//! Opening sessions.

use ort::session::{Session, builder::SessionBuilder};
use parking_lot::Mutex;

use super::{BackendError, Runtime, weights::SharedWeights};
use crate::repository::Graph;

/// How a graph's sessions are built.
#[derive(Debug, Clone, Copy)]
pub struct SessionOptions {
    /// Sessions of each graph: one for each lane, all on one copy of the weights.
    pub lanes: usize,
    /// Threads that one session's operators use; 1 where several lanes share a CPU.
    pub threads: usize,
}

/// One session of a graph for each lane. A lane locks only its own, so nobody waits.
pub(super) struct Sessions(Vec<Mutex<Session>>);

impl Sessions {
    pub(super) fn open(
        runtime: &Runtime,
        graph: &Graph,
        options: SessionOptions,
    ) -> Result<Self, BackendError> {
        let weights = match options.lanes {
            0 | 1 => None,
            _ => Some(SharedWeights::of(graph)?),
        };
        let lanes = 0..options.lanes.max(1);
        lanes
            .map(|_| open(runtime, graph, options, weights.as_ref()).map(Mutex::new))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The session of `lane`.
    pub(super) fn lane(&self, lane: usize) -> parking_lot::MutexGuard<'_, Session> {
        self.0[lane % self.0.len()].lock()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

fn open(
    runtime: &Runtime,
    graph: &Graph,
    options: SessionOptions,
    weights: Option<&SharedWeights>,
) -> Result<Session, BackendError> {
    let builder = || -> Result<SessionBuilder, ort::Error> {
        let builder = Session::builder(&runtime.environment)?
            .with_intra_threads(options.threads)?
            .with_inter_threads(1)?
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?;
        match weights {
            Some(weights) => weights.give(builder),
            None => Ok(builder),
        }
    };
    let failed = |error: ort::Error| BackendError::run(&graph.name, error);
    let mut builder = builder().map_err(failed)?;
    builder.commit_from_memory(&graph.bytes).map_err(failed)
}
