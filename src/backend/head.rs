//! A head: features to raw outputs.

use std::sync::Arc;

use ort::{
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
    session::SessionInputValue,
    value::{Shape, TensorRefMut},
};

use super::{
    Backbone, BackendError, Element, Fault, FeatureRow, HeadBatch, HeadRow, Placement, Runtime,
    SessionOptions, TensorSpec, binding,
    buffer::{Buffer, Space},
    contract,
    features::{BatchTensor, host_tensor, layout},
    session::{Role, Sessions},
};
use crate::repository::HeadEntry;

/// A head's graph, with a session for each lane. Its memory goes with the last reference.
pub struct HeadModel {
    sessions: Sessions,
    graph: String,
    features: Vec<Arc<str>>,
    outputs: Vec<Arc<str>>,
    specs: Vec<TensorSpec>,
    frames: usize,
    clips: bool,
}

impl std::fmt::Debug for HeadModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeadModel")
            .field("graph", &self.graph)
            .finish_non_exhaustive()
    }
}

impl HeadModel {
    /// Builds the sessions and checks them against the manifest with a dry run on a blank image's features.
    ///
    /// # Errors
    /// A graph that does not load, or is not what its manifest says.
    pub fn load(
        runtime: &Runtime,
        entry: &HeadEntry,
        backbone: &Backbone,
        options: SessionOptions,
    ) -> Result<Self, BackendError> {
        let (manifest, graph) = (&entry.manifest, &entry.graph);
        let sessions = Sessions::open(runtime, graph, options, Role::Head)?;
        let outputs: Vec<Arc<str>> = {
            let session = sessions.lane(0);
            let sample = Self::samples(&graph.name, backbone, manifest.input_size)?;
            contract::check_inputs(&graph.name, session.inputs(), manifest, &sample[0])?;
            let names = session.outputs().iter().map(|o| Arc::from(o.name()));
            names.collect()
        };
        let features = manifest.features.iter().map(|f| Arc::from(f.as_str()));
        let mut head = Self {
            sessions,
            graph: graph.name.clone(),
            features: features.collect(),
            outputs,
            specs: Vec::new(),
            frames: manifest.frames(),
            clips: manifest.task.spec().clip,
        };
        for lane in 0..head.sessions.len() {
            let outputs = head.dry_run(lane, backbone, manifest.input_size, 1)?;
            contract::check_outputs(&graph.name, manifest, &outputs)?;
            head.specs = outputs.tensors.iter().map(|t| t.row(0).spec()).collect();
        }
        Ok(head)
    }

    /// What its outputs looked like in the dry run, in the graph's order.
    #[must_use]
    pub fn outputs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// Runs `calls` calls on a blank image's features.
    ///
    /// # Errors
    /// As [`HeadModel::run`], or an input size that the backbone does not take.
    pub fn dry_run(
        &self,
        lane: usize,
        backbone: &Backbone,
        size: [u32; 2],
        calls: usize,
    ) -> Result<HeadBatch, BackendError> {
        let [blank, _] = Self::samples(&self.graph, backbone, size)?;
        let outputs = self.run(lane, &vec![blank.clone(); calls * self.frames], calls)?;
        self.sessions.device().synchronize()?;
        Ok(outputs)
    }

    /// Runs a call on each of the backbone's sample images, all of them in one batch, which must go where one call does.
    ///
    /// # Errors
    /// As [`HeadModel::dry_run`].
    pub fn sample_run(
        &self,
        lane: usize,
        backbone: &Backbone,
        size: [u32; 2],
    ) -> Result<Vec<HeadRow>, BackendError> {
        let samples = Self::samples(&self.graph, backbone, size)?;
        let frames = samples
            .iter()
            .flat_map(|row| vec![row.clone(); self.frames]);
        let outputs = self.run(lane, &frames.collect::<Vec<_>>(), samples.len());
        let outputs = outputs.map_err(|error| match error.fault() {
            Fault::Graph => {
                let reason = format!(
                    "a run of {} calls at once fails, one of a single call does not: is the batch fixed inside the \
                     graph? {error}",
                    samples.len()
                );
                BackendError::contract(&self.graph, "batch", reason)
            }
            _ => error,
        })?;
        self.sessions.device().synchronize()?;
        let outputs = Arc::new(outputs);
        let rows = (0..samples.len()).map(|index| HeadRow::new(&outputs, index));
        Ok(rows.collect())
    }

    fn samples<'a>(
        graph: &str,
        backbone: &'a Backbone,
        size: [u32; 2],
    ) -> Result<&'a [FeatureRow; 2], BackendError> {
        backbone.samples(size).ok_or_else(|| {
            let sizes = &backbone.manifest().input.sizes;
            let reason = format!("{size:?} is not among the backbone's input sizes {sizes:?}");
            BackendError::contract(graph, "input_size", reason)
        })
    }

    /// Which provider each node runs on; `None` on a CPU, where there is one.
    #[must_use]
    pub fn placement(&self) -> Option<&Placement> {
        self.sessions.placement()
    }

    /// Runs `calls` calls on `lane`; `rows` holds each call's frames, one call after another. On a device it returns once
    /// that is enqueued: [`Device::synchronize`](super::Device::synchronize) comes before the outputs are read.
    ///
    /// # Errors
    /// What ONNX Runtime says, or an output of an unexpected shape.
    pub fn run(
        &self,
        lane: usize,
        rows: &[FeatureRow],
        calls: usize,
    ) -> Result<HeadBatch, BackendError> {
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
        if self.sessions.device().is_resident() {
            return self.run_resident(lane, rows, calls, contiguous);
        }
        let mut inputs: Vec<(&str, SessionInputValue<'_>)> =
            Vec::with_capacity(self.features.len());
        for name in &self.features {
            let map = self.map(&rows[0], name)?;
            let shape = self.input_shape(map, calls);
            let value = if contiguous {
                view_rows(map, rows[0].index, &shape).map_err(failed)?
            } else {
                gather_rows(map, rows, name, &shape).map_err(failed)?
            };
            inputs.push((name, value));
        }
        let mut session = self.sessions.lane(lane);
        let mut outputs = session.run(inputs).map_err(failed)?;
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

    /// A run on features in the device's memory. What the head finds stays there until it is copied, in the stream's
    /// order, into host memory.
    fn run_resident(
        &self,
        lane: usize,
        rows: &[FeatureRow],
        calls: usize,
        contiguous: bool,
    ) -> Result<HeadBatch, BackendError> {
        let graph = self.graph.as_str();
        let failed = |error: ort::Error| BackendError::run(graph, error);
        let device = self.sessions.device();
        let info = device.memory_info().map_err(failed)?;
        let mut session = self.sessions.lane(lane);
        let mut bound = session.create_binding().map_err(failed)?;
        // Rows put together; they are freed in the stream's order, behind the run that reads them.
        let mut gathered = Vec::new();
        for name in &self.features {
            let map = self.map(&rows[0], name)?;
            let shape = self.input_shape(map, calls);
            let start = if contiguous && map.space() == Space::Device {
                map.row_pointer(rows[0].index).cast_mut()
            } else {
                let buffer = self.gather_resident(map, rows, name)?;
                let start = buffer.pointer();
                gathered.push(buffer);
                start
            };
            // SAFETY: `start` lies in the device's memory and holds this shape; it outlives the run in the stream's
            // order, and a session does not write to its inputs.
            #[allow(unsafe_code)]
            unsafe {
                let side = binding::Side::Input;
                binding::bind(&mut bound, side, name, &info, start, map.element, &shape)
            }
            .map_err(failed)?;
        }
        for name in &self.outputs {
            bound
                .bind_output_to_device(&**name, &info)
                .map_err(failed)?;
        }
        let options = binding::enqueued(None).map_err(failed)?;
        let _device = device.capture().read();
        let mut outputs = session
            .run_binding_with_options(&bound, &options)
            .map_err(failed)?;
        device.ticket();
        let mut tensors = Vec::with_capacity(self.outputs.len());
        for name in &self.outputs {
            let value = outputs
                .remove(&**name)
                .ok_or_else(|| BackendError::run(graph, format!("gave no output {name:?}")))?
                .downcast::<ort::value::DynTensorValueType>()
                .map_err(failed)?;
            let (element, row_shape) = layout(graph, name, &value, calls)?;
            let bytes = row_shape.iter().product::<usize>() * element.size() * calls;
            let buffer = Buffer::new(device, bytes, Space::Host)?;
            if bytes > 0 {
                let source = value.data_ptr().cast();
                // SAFETY: the output has this many bytes, and its memory is used again in the stream's order only.
                #[allow(unsafe_code)]
                unsafe {
                    buffer.fill(0, source, bytes, Space::Device)?;
                }
            }
            tensors.push(BatchTensor::in_buffer(
                name,
                element,
                row_shape,
                Arc::new(buffer),
            ));
        }
        Ok(HeadBatch { tensors })
    }

    /// Rows of several batches, or of the host's memory, put together in the device's.
    fn gather_resident(
        &self,
        map: &BatchTensor,
        rows: &[FeatureRow],
        name: &str,
    ) -> Result<Buffer, BackendError> {
        let bytes = map.row_bytes();
        let device = self.sessions.device();
        let buffer = Buffer::new(device, bytes * rows.len(), Space::Device)?;
        for (position, row) in rows.iter().enumerate() {
            let source = self.map(row, name)?;
            let start = source.row_pointer(row.index);
            // SAFETY: a row of the same map has this many bytes, and lives until the job that it is for is finished,
            // which is after the stream is past the copy.
            #[allow(unsafe_code)]
            unsafe {
                buffer.fill(position * bytes, start, bytes, source.space())?;
            }
        }
        Ok(buffer)
    }

    fn map<'a>(&self, row: &'a FeatureRow, name: &str) -> Result<&'a BatchTensor, BackendError> {
        let found = row.batch.maps.iter().find(|map| &*map.name == name);
        found.ok_or_else(|| BackendError::run(&self.graph, format!("there is no feature {name:?}")))
    }

    fn input_shape(&self, map: &BatchTensor, calls: usize) -> Vec<usize> {
        let mut shape = vec![calls];
        if self.clips {
            shape.push(self.frames);
        }
        shape.extend(&map.row_shape);
        shape
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
    // SAFETY: the caller's rows all belong to `map`'s batch, so `shape` starting at `first` stays inside the value;
    // the view borrows `map`, and a session does not write to its inputs.
    #[allow(unsafe_code)]
    unsafe {
        let start = map.row_pointer(first).cast_mut().cast();
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
