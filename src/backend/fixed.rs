//! Graphs compiled for fixed shapes, one for each input size and batch size: what OpenVINO runs fastest by far.

#![allow(unsafe_code)]

use std::{borrow::Cow, collections::BTreeMap, ffi::CString, ptr, sync::Arc};

use ort::{
    AsPointer,
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::Session,
    sys,
    value::{
        DynTensor, DynValueTypeMarker, Shape, TensorElementType, TensorRef, TensorRefMut,
        ValueRefMut, ValueType,
    },
};
use parking_lot::{Mutex, RwLock};

use super::{
    BackendError, Element, Placement, Runtime, SessionOptions,
    features::element,
    openvino::{self, OpenVino},
    placement::RECORD,
    session::{builder, output_type, placed},
};
use crate::repository::Graph;

/// Weights of more bytes than this are not compiled for each lane: one compiled graph then runs on all lanes at once.
/// Smaller ones are a little faster apart.
const SHARED_FROM: usize = 32 << 20;

/// Input `[height, width]` and images of a batch.
type Batch = ([u32; 2], usize);

/// A graph and what was compiled of it.
pub(super) struct Fixed {
    runtime: Runtime,
    openvino: OpenVino,
    name: String,
    /// What is compiled from; gone once no more shapes are wanted.
    graph: Mutex<Option<Arc<Graph>>>,
    input: String,
    input_name: CString,
    outputs: Vec<(CString, Element)>,
    options: SessionOptions,
    shared: bool,
    compiled: RwLock<BTreeMap<Batch, Arc<Compiled>>>,
}

/// A session for each lane, or one for all.
struct Compiled {
    sessions: Vec<Session>,
    placement: Placement,
}

impl Fixed {
    /// Compiles the graph for single images of each of `sizes`.
    pub(super) fn new(
        runtime: &Runtime,
        openvino: &OpenVino,
        graph: &Graph,
        (input, outputs, sizes): (&str, &[Arc<str>], &[[u32; 2]]),
        options: SessionOptions,
    ) -> Result<Self, BackendError> {
        let outside = graph.weights.as_ref().map_or(0, |w| w.bytes.len());
        let mut fixed = Self {
            runtime: runtime.clone(),
            openvino: openvino.clone(),
            name: graph.name.clone(),
            graph: Mutex::new(Some(Arc::new(graph.clone()))),
            input: input.to_owned(),
            input_name: c_name(&graph.name, input)?,
            outputs: Vec::with_capacity(outputs.len()),
            options,
            shared: graph.bytes.len() + outside > SHARED_FROM,
            compiled: RwLock::default(),
        };
        for &size in sizes {
            fixed.prepare(size, 1)?;
        }
        for name in outputs {
            let kind = fixed.look(|session| match output_type(session, name) {
                Some(ValueType::Tensor { ty, .. }) => element(*ty),
                _ => None,
            });
            // What is of another type, or is none, is refused by whoever checks the contract.
            let kind = kind.flatten().unwrap_or(Element::F32);
            fixed.outputs.push((c_name(&graph.name, name)?, kind));
        }
        Ok(fixed)
    }

    /// Compiles the graph for batches of `rows` images of `size`, unless it is. After [`Fixed::keep`] nothing is compiled
    /// any more.
    pub(super) fn prepare(&self, size: [u32; 2], rows: usize) -> Result<(), BackendError> {
        if self.compiled.read().contains_key(&(size, rows)) {
            return Ok(());
        }
        let Some(graph) = self.graph.lock().clone() else {
            return Ok(());
        };
        let sessions = if self.shared {
            1
        } else {
            self.options.lanes.max(1)
        };
        let streams = if self.shared {
            self.options.lanes.max(1)
        } else {
            1
        };
        let sessions = (0..sessions).map(|_| self.open(&graph, (size, rows), streams));
        let sessions = sessions.collect::<Result<Vec<_>, _>>()?;
        let placement = match sessions.first() {
            Some(session) => placed(self.runtime.device(), &graph, session, openvino::PROVIDER)?,
            None => Placement::default(),
        };
        if !placement.nodes.contains_key(openvino::PROVIDER) {
            // It would run, on another provider.
            let detail = format!("no node of it runs on OpenVINO: {}", placement.summary());
            return Err(BackendError::run(&self.name, detail));
        }
        let compiled = Arc::new(Compiled {
            sessions,
            placement,
        });
        self.compiled.write().insert((size, rows), compiled);
        Ok(())
    }

    fn open(&self, graph: &Graph, shape: Batch, streams: usize) -> Result<Session, BackendError> {
        let failed = |error: ort::Error| BackendError::run(&self.name, error);
        let ([height, width], rows) = shape;
        let dims = [rows, height as usize, width as usize, 3];
        let given = self
            .openvino
            .options((&self.input, &dims), streams, self.options.threads);
        let given = given.map_err(|reason| BackendError::contract(&self.name, "input", reason))?;
        let environment = &self.runtime.environment;
        let none = || BackendError::Device("OpenVINO's device is gone".to_owned());
        let device = openvino::offer(environment).ok_or_else(none)?;
        let builder = builder(&self.runtime, graph, self.options.threads).map_err(failed)?;
        let builder = builder.with_config_entry(RECORD, "1");
        let builder = builder.map_err(|error| failed(error.into()))?;
        let builder = builder.with_devices([device], Some(&given));
        let mut builder = builder.map_err(|error| failed(error.into()))?;
        builder.commit_from_memory(&graph.bytes).map_err(failed)
    }

    /// Lets go of what was compiled for other batch sizes than these, and of the graph.
    pub(super) fn keep(&self, size: [u32; 2], rows: &[usize]) {
        let wanted = |shape: &Batch| shape.0 != size || rows.contains(&shape.1);
        self.compiled.write().retain(|shape, _| wanted(shape));
    }

    /// Nothing more will be compiled.
    pub(super) fn seal(&self) {
        *self.graph.lock() = None;
    }

    /// Where the nodes run.
    pub(super) fn placement(&self) -> Option<Placement> {
        let compiled = self.compiled.read();
        compiled.values().next().map(|c| c.placement.clone())
    }

    pub(super) fn lanes(&self) -> usize {
        self.options.lanes.max(1)
    }

    /// A session of it, for its inputs and outputs.
    pub(super) fn look<T>(&self, at: impl FnOnce(&Session) -> T) -> Option<T> {
        let compiled = self.compiled.read();
        compiled
            .values()
            .next()
            .and_then(|c| c.sessions.first())
            .map(at)
    }

    /// Runs `rows` images of `size`, which `input` holds one after another, on outputs whose rows have these `shapes`; the
    /// outputs and their rows, more than were given where no batch of so many is compiled.
    pub(super) fn run(
        &self,
        lane: usize,
        size: [u32; 2],
        (input, rows): (&[u8], usize),
        shapes: &[[usize; 3]],
    ) -> Result<(usize, Vec<DynTensor>), BackendError> {
        let failed = |error: ort::Error| BackendError::run(&self.name, error);
        let sizes: Vec<usize> = {
            let compiled = self.compiled.read();
            let keys = compiled.keys().filter(|shape| shape.0 == size);
            keys.map(|shape| shape.1).collect()
        };
        let batches = split(rows, &sizes);
        let all: usize = batches.iter().sum();
        let kinds = self.outputs.iter().zip(shapes);
        let blank = kinds.map(|((_, element), row)| blank(*element, &batch_of(all, row)));
        let outputs: Vec<DynTensor> = blank.collect::<Result<_, _>>().map_err(failed)?;
        let bytes = size[0] as usize * size[1] as usize * 3;
        let mut done = 0;
        for rows in batches {
            let compiled = self.compiled.read().get(&(size, rows)).cloned();
            let none =
                || BackendError::run(&self.name, format!("nothing is compiled for {size:?}"));
            let compiled = compiled.ok_or_else(none)?;
            let session = &compiled.sessions[lane % compiled.sessions.len()];
            let rest = &input[(done * bytes).min(input.len())..];
            let images = match rest.get(..rows * bytes) {
                Some(images) => Cow::Borrowed(images),
                None => {
                    let mut padded = rest.to_vec();
                    padded.resize(rows * bytes, 0);
                    Cow::Owned(padded)
                }
            };
            let parts = self.outputs.iter().zip(shapes).zip(&outputs);
            // SAFETY: the rows from `done` on are within the value (`all` is their sum), nothing else reads or writes
            // them, and the value outlives the part.
            let parts = parts.map(|(((_, element), row), whole)| unsafe {
                part(whole, *element, row, done, rows)
            });
            let parts: Vec<Part<'_>> = parts.collect::<Result<_, _>>().map_err(failed)?;
            self.run_one(session, size, (&images, rows), &parts)?;
            done += rows;
        }
        if done < rows {
            return Err(BackendError::run(
                &self.name,
                format!("nothing is compiled for {size:?}"),
            ));
        }
        Ok((done, outputs))
    }

    fn run_one(
        &self,
        session: &Session,
        [height, width]: [u32; 2],
        (images, rows): (&[u8], usize),
        outputs: &[Part<'_>],
    ) -> Result<(), BackendError> {
        let failed = |error: ort::Error| BackendError::run(&self.name, error);
        let shape = [rows, height as usize, width as usize, 3];
        let tensor = TensorRef::from_array_view((shape, images)).map_err(failed)?;
        let names: Vec<_> = self.outputs.iter().map(|(name, _)| name.as_ptr()).collect();
        let values = outputs.iter().map(|part| part.ptr().cast_mut());
        let mut values: Vec<*mut sys::OrtValue> = values.collect();
        let (input_names, inputs) = ([self.input_name.as_ptr()], [tensor.ptr()]);
        // SAFETY: every name and value outlives the call, and there are as many as is said; ONNX Runtime writes to the
        // outputs' memory, which is this call's alone. ONNX Runtime lets any number of threads run one session at once.
        // The crate's own method asks for `&mut`, since some providers' allocators do not: here nothing is allocated by
        // the session but what OpenVINO keeps for each of its streams.
        unsafe {
            let status = (ort::api().Run)(
                session.ptr().cast_mut(),
                ptr::null(),
                input_names.as_ptr(),
                inputs.as_ptr(),
                1,
                names.as_ptr(),
                names.len(),
                values.as_mut_ptr(),
            );
            ort::Error::result_from_status(status).map_err(failed)
        }
    }
}

/// Some rows of an output, which a run writes to.
type Part<'a> = ValueRefMut<'a, DynValueTypeMarker>;

fn batch_of(rows: usize, row: &[usize]) -> Shape {
    let dims = std::iter::once(&rows).chain(row);
    Shape::new(dims.map(|&d| i64::try_from(d).unwrap_or(i64::MAX)))
}

/// Memory for an output, of the host's allocator and no session's.
fn blank(element: Element, shape: &Shape) -> ort::Result<DynTensor> {
    let kind = match element {
        Element::F32 => TensorElementType::Float32,
        Element::F16 => TensorElementType::Float16,
        Element::I64 => TensorElementType::Int64,
        Element::I32 => TensorElementType::Int32,
        Element::U8 => TensorElementType::Uint8,
    };
    DynTensor::new(&Allocator::default(), kind, shape.clone())
}

/// `rows` rows of `whole` from row `first` on, in place.
///
/// # Safety
/// `whole` holds them, outlives the part, and nobody else uses them meanwhile.
unsafe fn part<'a>(
    whole: &'a DynTensor,
    element: Element,
    row: &[usize],
    first: usize,
    rows: usize,
) -> ort::Result<Part<'a>> {
    let host = MemoryInfo::new(
        AllocationDevice::CPU,
        0,
        AllocatorType::Device,
        MemoryType::Default,
    )?;
    let shape = batch_of(rows, row);
    let skip = first * row.iter().product::<usize>() * element.size();
    let start = whole.data_ptr().cast_mut().cast::<u8>().wrapping_add(skip);
    // SAFETY: as this function asks.
    unsafe {
        Ok(match element {
            Element::F32 => TensorRefMut::<f32>::from_raw(host, start.cast(), shape)?.into_dyn(),
            Element::F16 => {
                TensorRefMut::<half::f16>::from_raw(host, start.cast(), shape)?.into_dyn()
            }
            Element::I64 => TensorRefMut::<i64>::from_raw(host, start.cast(), shape)?.into_dyn(),
            Element::I32 => TensorRefMut::<i32>::from_raw(host, start.cast(), shape)?.into_dyn(),
            Element::U8 => TensorRefMut::<u8>::from_raw(host, start.cast(), shape)?.into_dyn(),
        })
    }
}

/// Batches to run for `rows` images, of the `sizes` that there are, smallest first: the one that holds them, unless it
/// would be half empty and smaller ones do.
fn split(rows: usize, sizes: &[usize]) -> Vec<usize> {
    let mut left = rows;
    let mut batches = Vec::with_capacity(1);
    while left > 0 {
        let holds = sizes.iter().find(|&&size| size >= left);
        let fills = sizes.iter().rfind(|&&size| size <= left);
        let Some(&batch) = holds.filter(|&&size| size < 2 * left).or(fills).or(holds) else {
            break;
        };
        batches.push(batch);
        left = left.saturating_sub(batch);
    }
    batches
}

fn c_name(graph: &str, name: &str) -> Result<CString, BackendError> {
    CString::new(name).map_err(|error| BackendError::run(graph, error))
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn batches_are_of_sizes_that_there_are() {
        let sizes = [1, 2, 8];
        for (rows, batches) in [
            (0, vec![]),
            (1, vec![1]),
            (2, vec![2]),
            (3, vec![2, 1]),
            (5, vec![8]),
            (8, vec![8]),
            (10, vec![8, 2]),
            (20, vec![8, 8, 2, 2]),
        ] {
            assert_eq!(split(rows, &sizes), batches, "{rows}");
        }
        assert_eq!(split(3, &[1]), [1, 1, 1]);
        assert_eq!(split(1, &[4]), [4]);
        assert!(split(3, &[]).is_empty());
    }
}
