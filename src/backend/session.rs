//! Sessions: loading a graph, checking it against its manifest, running it.

use std::{collections::HashMap, sync::Arc};

use ort::{
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
    session::{Session, SessionInputValue, builder::SessionBuilder},
    value::{Shape, TensorRefMut, ValueType},
};

use super::{
    BackendError, Element, FeatureBatch, FeatureRow, HeadBatch, Runtime,
    features::{BatchTensor, element, host_tensor},
};
use crate::repository::{BackboneManifest, Graph, HeadEntry, HeadManifest, Task};

/// How a lane's sessions are built.
#[derive(Debug, Clone, Copy)]
pub struct LaneOptions {
    /// Threads that one graph's operators use; 1 where several lanes share a CPU.
    pub threads: usize,
}

/// What one thread owns: a backbone session and a session of every head.
pub struct Lane {
    backbone: BackboneSession,
    heads: HashMap<Arc<str>, HeadSession>,
    options: LaneOptions,
    runtime: Runtime,
}

impl Lane {
    /// Builds the backbone's session and checks it against its manifest with a dry run.
    ///
    /// # Errors
    /// A graph that does not load, or is not what its manifest says.
    pub fn new(
        runtime: &Runtime,
        manifest: &BackboneManifest,
        graph: &Graph,
        options: LaneOptions,
    ) -> Result<Self, BackendError> {
        let mut backbone = BackboneSession::load(runtime, manifest, graph, options)?;
        for size in &manifest.input.sizes {
            backbone.run(*size, &vec![0; pixels(*size)], 1)?;
        }
        Ok(Self {
            backbone,
            heads: HashMap::new(),
            options,
            runtime: runtime.clone(),
        })
    }

    /// Loads or replaces a head and checks it against its manifest with a dry run.
    ///
    /// # Errors
    /// A graph that does not load, or is not what its manifest says; a head loaded before stays.
    pub fn load_head(&mut self, entry: &HeadEntry) -> Result<(), BackendError> {
        let head = HeadSession::load(&self.runtime, &entry.manifest, &entry.graph, self.options)?;
        let size = entry.manifest.input_size;
        let frames = entry.manifest.frames();
        let batch = Arc::new(
            self.backbone
                .run(size, &vec![0; pixels(size) * frames], frames)?,
        );
        let rows: Vec<_> = (0..frames)
            .map(|index| FeatureRow::new(&batch, index))
            .collect();
        let mut head = head;
        let outputs = head.run(&rows, 1)?;
        check_outputs(&entry.manifest, &entry.graph.name, &outputs)?;
        self.heads
            .insert(Arc::from(entry.manifest.name.as_str()), head);
        Ok(())
    }

    /// Computes the features of `rows` images of `[height, width]`; `input` holds them one after another, NHWC RGB.
    ///
    /// # Errors
    /// What ONNX Runtime says, or an output of an unexpected shape.
    pub fn run_backbone(
        &mut self,
        size: [u32; 2],
        input: &[u8],
        rows: usize,
    ) -> Result<FeatureBatch, BackendError> {
        self.backbone.run(size, input, rows)
    }

    /// Runs the head `name` on `calls` calls; `rows` holds each call's frames, one call after another.
    ///
    /// # Errors
    /// An unloaded head, what ONNX Runtime says, or an output of an unexpected shape.
    pub fn run_head(
        &mut self,
        name: &str,
        rows: &[FeatureRow],
        calls: usize,
    ) -> Result<HeadBatch, BackendError> {
        match self.heads.get_mut(name) {
            Some(head) => head.run(rows, calls),
            None => Err(BackendError::run(
                name,
                "the head is not loaded on this lane",
            )),
        }
    }
}

fn pixels([height, width]: [u32; 2]) -> usize {
    height as usize * width as usize * 3
}

// === impl BackboneSession ===

struct BackboneSession {
    session: Session,
    graph: String,
    input: String,
    outputs: Vec<Arc<str>>,
    manifest: BackboneManifest,
}

impl BackboneSession {
    fn load(
        runtime: &Runtime,
        manifest: &BackboneManifest,
        graph: &Graph,
        options: LaneOptions,
    ) -> Result<Self, BackendError> {
        let session = open(runtime, graph, options)?;
        let fail =
            |field: &str, reason: String| Err(BackendError::contract(&graph.name, field, reason));
        match session.inputs() {
            [input] if input.name() == manifest.input.name => match input.dtype() {
                ValueType::Tensor { ty, shape, .. }
                    if element(*ty) == Some(Element::U8) && shape.len() == 4 && shape[3] == 3 => {}
                other => {
                    let reason = format!("is {other:?}, but must be uint8 [N, H, W, 3]");
                    return fail(input.name(), reason);
                }
            },
            inputs => {
                let names: Vec<_> = inputs.iter().map(|input| input.name()).collect();
                let reason = format!(
                    "is {:?}, but the graph's inputs are {names:?}",
                    manifest.input.name
                );
                return fail("input.name", reason);
            }
        }
        for feature in &manifest.features {
            if !session
                .outputs()
                .iter()
                .any(|output| output.name() == feature.name)
            {
                let names: Vec<_> = session.outputs().iter().map(|o| o.name()).collect();
                let reason = format!(
                    "{:?} is not among the graph's outputs {names:?}",
                    feature.name
                );
                return fail("features", reason);
            }
        }
        Ok(Self {
            session,
            graph: graph.name.clone(),
            input: manifest.input.name.clone(),
            outputs: manifest
                .features
                .iter()
                .map(|f| Arc::from(f.name.as_str()))
                .collect(),
            manifest: manifest.clone(),
        })
    }

    fn run(
        &mut self,
        size: [u32; 2],
        input: &[u8],
        rows: usize,
    ) -> Result<FeatureBatch, BackendError> {
        let graph = self.graph.as_str();
        let failed = |error: ort::Error| BackendError::run(graph, error);
        let shape = [rows, size[0] as usize, size[1] as usize, 3];
        let tensor = ort::value::TensorRef::from_array_view((shape, input)).map_err(failed)?;
        let inputs: Vec<(String, SessionInputValue<'_>)> =
            vec![(self.input.clone(), tensor.into())];
        let mut outputs = self.session.run(inputs).map_err(failed)?;
        let mut maps = Vec::with_capacity(self.outputs.len());
        for (name, feature) in self.outputs.iter().zip(&self.manifest.features) {
            let value = outputs
                .remove(&**name)
                .ok_or_else(|| BackendError::run(graph, format!("gave no output {name:?}")))?
                .downcast()
                .map_err(failed)?;
            let map = BatchTensor::new(graph, name, value, rows)?;
            let expected = feature.row_shape(size);
            if map.row_shape != expected {
                let reason = format!(
                    "is {:?} per image at {size:?}, but the manifest's stride, channels and layout make {expected:?}",
                    map.row_shape
                );
                return Err(BackendError::contract(graph, &**name, reason));
            }
            maps.push(map);
        }
        Ok(FeatureBatch { maps, rows })
    }
}

// === impl HeadSession ===

struct HeadSession {
    session: Session,
    graph: String,
    features: Vec<Arc<str>>,
    outputs: Vec<Arc<str>>,
    frames: usize,
    clips: bool,
}

impl HeadSession {
    fn load(
        runtime: &Runtime,
        manifest: &HeadManifest,
        graph: &Graph,
        options: LaneOptions,
    ) -> Result<Self, BackendError> {
        let session = open(runtime, graph, options)?;
        let mut names: Vec<_> = session
            .inputs()
            .iter()
            .map(|input| input.name().to_owned())
            .collect();
        let mut wanted = manifest.features.clone();
        names.sort();
        wanted.sort();
        if names != wanted {
            let reason = format!("are {wanted:?}, but the graph's inputs are {names:?}");
            return Err(BackendError::contract(&graph.name, "features", reason));
        }
        let outputs: Vec<Arc<str>> = session
            .outputs()
            .iter()
            .map(|output| Arc::from(output.name()))
            .collect();
        Ok(Self {
            session,
            graph: graph.name.clone(),
            features: manifest
                .features
                .iter()
                .map(|name| Arc::from(name.as_str()))
                .collect(),
            outputs,
            frames: manifest.frames(),
            clips: manifest.task == Task::Action,
        })
    }

    fn run(&mut self, rows: &[FeatureRow], calls: usize) -> Result<HeadBatch, BackendError> {
        let graph = self.graph.as_str();
        let failed = |error: ort::Error| BackendError::run(graph, error);
        if rows.len() != calls * self.frames || rows.is_empty() {
            let detail = format!(
                "{} rows for {calls} calls of {} frames",
                rows.len(),
                self.frames
            );
            return Err(BackendError::run(graph, detail));
        }
        let contiguous = rows.windows(2).all(|pair| pair[0].precedes(&pair[1]));
        let mut inputs: Vec<(String, SessionInputValue<'_>)> =
            Vec::with_capacity(self.features.len());
        for name in &self.features {
            let map = rows[0]
                .batch
                .maps
                .iter()
                .find(|map| map.name == *name)
                .ok_or_else(|| BackendError::run(graph, format!("there is no feature {name:?}")))?;
            let mut shape = if self.clips {
                vec![calls, self.frames]
            } else {
                vec![calls]
            };
            shape.extend(&map.row_shape);
            let value = if contiguous {
                view_rows(map, rows[0].index, &shape).map_err(failed)?
            } else {
                gather_rows(map, rows, name, &shape).map_err(failed)?
            };
            inputs.push((name.to_string(), value));
        }
        let mut outputs = self.session.run(inputs).map_err(failed)?;
        let mut tensors = Vec::with_capacity(self.outputs.len());
        for name in &self.outputs {
            let value = outputs
                .remove(&**name)
                .ok_or_else(|| BackendError::run(graph, format!("gave no output {name:?}")))?
                .downcast()
                .map_err(failed)?;
            tensors.push(BatchTensor::new(graph, name, value, calls)?);
        }
        Ok(HeadBatch { tensors })
    }
}

/// Rows of `map` from `first` on, read in place.
fn view_rows<'a>(
    map: &'a BatchTensor,
    first: usize,
    shape: &[usize],
) -> ort::Result<SessionInputValue<'a>> {
    let info = MemoryInfo::new(
        AllocationDevice::CPU,
        0,
        AllocatorType::Device,
        MemoryType::Default,
    )?;
    let shape = Shape::new(shape.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)));
    let offset = first * map.row_bytes();
    // SAFETY: the caller's rows all belong to `map`'s batch, so `shape` starting at `first` stays inside the value;
    // the view borrows `map`, and a session does not write to its inputs.
    #[allow(unsafe_code)]
    unsafe {
        let start = map
            .value
            .data_ptr()
            .cast::<u8>()
            .add(offset)
            .cast_mut()
            .cast();
        Ok(match map.element {
            Element::F32 => TensorRefMut::<f32>::from_raw(info, start, shape)?.into(),
            Element::F16 => TensorRefMut::<half::f16>::from_raw(info, start, shape)?.into(),
            Element::I64 => TensorRefMut::<i64>::from_raw(info, start, shape)?.into(),
            Element::I32 => TensorRefMut::<i32>::from_raw(info, start, shape)?.into(),
            Element::U8 => TensorRefMut::<u8>::from_raw(info, start, shape)?.into(),
        })
    }
}

/// Rows of several batches, copied together.
fn gather_rows<'a>(
    map: &BatchTensor,
    rows: &[FeatureRow],
    name: &str,
    shape: &[usize],
) -> ort::Result<SessionInputValue<'a>> {
    let length = map.row_bytes();
    let value = host_tensor(map.element, shape, |bytes| {
        for (target, row) in bytes.chunks_exact_mut(length).zip(rows) {
            if let Some(source) = row.maps().find(|source| source.name == name) {
                target.copy_from_slice(source.bytes());
            }
        }
    })?;
    Ok(value.into())
}

fn open(runtime: &Runtime, graph: &Graph, options: LaneOptions) -> Result<Session, BackendError> {
    let builder = || -> Result<SessionBuilder, ort::Error> {
        Ok(Session::builder(&runtime.environment)?
            .with_intra_threads(options.threads)?
            .with_inter_threads(1)?
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?)
    };
    let failed = |error: ort::Error| BackendError::run(&graph.name, error);
    let mut builder = builder().map_err(failed)?;
    builder.commit_from_memory(&graph.bytes).map_err(failed)
}

/// Checks a dry run's outputs against what the task asks for.
fn check_outputs(
    manifest: &HeadManifest,
    graph: &str,
    outputs: &HeadBatch,
) -> Result<(), BackendError> {
    let find = |name: &str| outputs.tensors.iter().find(|tensor| &*tensor.name == name);
    let require = |name: &str, element: Element, ranks: &[usize]| {
        let names: Vec<_> = outputs.tensors.iter().map(|tensor| &*tensor.name).collect();
        let Some(tensor) = find(name) else {
            let reason = format!(
                "the task {} needs this output, but the graph's are {names:?}",
                manifest.task
            );
            return Err(BackendError::contract(graph, name, reason));
        };
        if tensor.element != element || !ranks.contains(&tensor.row_shape.len()) {
            let reason = format!(
                "is {:?} of {:?} per call, but the task {} needs {element:?} of {ranks:?} dimensions",
                tensor.element, tensor.row_shape, manifest.task
            );
            return Err(BackendError::contract(graph, name, reason));
        }
        Ok(tensor)
    };
    let labels = manifest.labels.len();
    let check_labels = |tensor: &BatchTensor| {
        if tensor.row_shape.first() == Some(&labels) {
            return Ok(());
        }
        let reason = format!(
            "is {:?} per call, but the manifest has {labels} labels",
            tensor.row_shape
        );
        Err(BackendError::contract(graph, &*tensor.name, reason))
    };
    match manifest.task {
        Task::Detection => {
            let boxes = require("boxes", Element::F32, &[2])?;
            let count = boxes.row_shape[0];
            if boxes.row_shape[1] != 4 {
                let reason = format!("is {:?} per call, but must be [K, 4]", boxes.row_shape);
                return Err(BackendError::contract(graph, "boxes", reason));
            }
            let mut counted = vec![
                require("scores", Element::F32, &[1])?,
                require("labels", Element::I64, &[1])?,
            ];
            if manifest.postprocess.mask.is_some() {
                counted.push(require("masks", Element::F32, &[3])?);
            }
            for tensor in counted {
                if tensor.row_shape[0] != count {
                    let reason = format!(
                        "is {:?} per call, but there are {count} boxes",
                        tensor.row_shape
                    );
                    return Err(BackendError::contract(graph, &*tensor.name, reason));
                }
            }
            Ok(())
        }
        Task::Segmentation if find("label_map").is_some() => {
            require("label_map", Element::I64, &[2]).map(|_| ())
        }
        Task::Segmentation => check_labels(require("logits", Element::F32, &[3])?),
        Task::Action | Task::Classification => check_labels(require("logits", Element::F32, &[1])?),
        Task::Embedding | Task::Tensor => Ok(()),
    }
}
