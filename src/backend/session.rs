//! Opening sessions.

use std::sync::Arc;

use ort::{
    session::{Session, builder::SessionBuilder},
    value::ValueType,
};
use parking_lot::Mutex;

use super::{
    BackendError, Device, Placement, Runtime, device, openvino, placement::RECORD,
    weights::SharedWeights,
};
use crate::repository::Graph;

/// How a graph's sessions are built.
#[derive(Debug, Clone, Copy)]
pub struct SessionOptions {
    /// Sessions of each graph: one for each lane, all on one copy of the weights.
    pub lanes: usize,
    /// Threads that one session's operators use; 1 where several lanes share a CPU.
    pub threads: usize,
}

/// What a graph's runs look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The backbone: bound to slots of fixed shapes and addresses, so its runs can be captured.
    Backbone,
    /// A head.
    Head,
}

/// One session of a graph for each lane. A lane locks only its own, so nobody waits.
pub(super) struct Sessions {
    lanes: Vec<Mutex<Session>>,
    placement: Option<Placement>,
    // Dropped after the sessions, which use its stream.
    device: Arc<Device>,
}

impl Sessions {
    pub(super) fn open(
        runtime: &Runtime,
        graph: &Graph,
        options: SessionOptions,
        role: Role,
    ) -> Result<Self, BackendError> {
        let weights = match options.lanes {
            0 | 1 => None,
            _ => Some(SharedWeights::of(graph)?),
        };
        let device = runtime.device();
        let lanes: Vec<Session> = (0..options.lanes.max(1))
            .map(|_| open(runtime, graph, options, role, weights.as_ref()))
            .collect::<Result<_, _>>()?;
        let placement = match (device.provider(), lanes.first()) {
            (Some(wanted), Some(session)) => Some(placed(device, graph, session, wanted)?),
            _ => None,
        };
        Ok(Self {
            lanes: lanes.into_iter().map(Mutex::new).collect(),
            placement,
            device: Arc::clone(device),
        })
    }

    /// The session of `lane`.
    pub(super) fn lane(&self, lane: usize) -> parking_lot::MutexGuard<'_, Session> {
        self.lanes[lane % self.lanes.len()].lock()
    }

    pub(super) fn len(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Where the nodes run; `None` on a CPU, where there is no choice.
    pub(super) fn placement(&self) -> Option<&Placement> {
        self.placement.as_ref()
    }
}

/// The type of a session's output; `None` if there is none of this name.
pub(super) fn output_type<'a>(session: &'a Session, name: &str) -> Option<&'a ValueType> {
    let mut outputs = session.outputs().iter();
    outputs.find(|o| o.name() == name).map(|o| o.dtype())
}

/// What every session is opened with: its threads, and its weights from the bytes that were checked.
pub(super) fn builder(
    runtime: &Runtime,
    graph: &Graph,
    threads: usize,
) -> Result<SessionBuilder, ort::Error> {
    let mut builder = Session::builder(&runtime.environment)?
        .with_intra_threads(threads)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?;
    if let Some(weights) = &graph.weights {
        // As the graph itself, from the bytes that were checked: no file is opened again.
        let bytes = Arc::clone(&weights.bytes);
        builder = builder.with_external_initializer_file_in_memory(&weights.name, bytes)?;
    }
    Ok(builder)
}

fn open(
    runtime: &Runtime,
    graph: &Graph,
    options: SessionOptions,
    role: Role,
    weights: Option<&SharedWeights>,
) -> Result<Session, BackendError> {
    let device = runtime.device();
    // Loading uses the device: it must not fall into the capture of a CUDA graph.
    let _device = device.capture().read();
    let builder = || -> Result<SessionBuilder, ort::Error> {
        let mut builder = builder(runtime, graph, options.threads)?;
        if device.is_resident() {
            builder = builder.with_config_entry(RECORD, "1")?;
        }
        if device.is_gpu() {
            // Weights outside the arena: it then holds activations alone, and stays flat.
            let key = "session.use_device_allocator_for_initializers";
            builder = builder.with_config_entry(key, "1")?;
        }
        match weights {
            Some(weights) => weights.give(builder),
            None => Ok(builder),
        }
    };
    let failed = |error: ort::Error| BackendError::run(&graph.name, error);
    let builder = builder().map_err(failed)?;
    let providers = device.providers(role == Role::Backbone);
    let mut builder = match providers.is_empty() {
        // By name: a plugin that is registered would take part in every session that names none.
        true => {
            let own = openvino::own(&runtime.environment);
            let named = builder.with_devices(own, None);
            named.map_err(|error| failed(error.into()))?
        }
        false => builder
            .with_execution_providers(providers)
            .map_err(|error| device::refused(device, &error.into()))?,
    };
    builder.commit_from_memory(&graph.bytes).map_err(failed)
}

/// Reads where the nodes run, says so, and refuses what fell back if that is asked for.
pub(super) fn placed(
    device: &Device,
    graph: &Graph,
    session: &Session,
    wanted: &str,
) -> Result<Placement, BackendError> {
    let placement =
        Placement::read(session, wanted).map_err(|error| BackendError::run(&graph.name, error))?;
    let (summary, fallen_back) = (placement.summary(), placement.fallen_back());
    tracing::info!(graph = graph.name, nodes = summary, fallen_back, "placed");
    if device.options().strict && !fallen_back.is_empty() {
        let reason = format!(
            "is set, and {} of {} nodes do not run on {wanted}: {fallen_back}",
            placement.fallen_back.len(),
            placement.nodes.values().sum::<usize>()
        );
        return Err(BackendError::contract(&graph.name, "device.strict", reason));
    }
    Ok(placement)
}
