//! What graphs give: batches of tensors, and one row's share of them.

use std::sync::Arc;

use ndarray::{ArrayViewD, IxDyn};
use ort::value::{DynTensor, Tensor, TensorElementType};

use super::{BackendError, Element};

/// One output of a graph for a whole batch.
#[derive(Debug)]
pub(super) struct BatchTensor {
    pub(super) name: Arc<str>,
    pub(super) element: Element,
    /// Shape of one row, without the batch.
    pub(super) row_shape: Vec<usize>,
    pub(super) value: DynTensor,
}

impl BatchTensor {
    /// Wraps a graph's output after checking that it holds `rows` rows.
    pub(super) fn new(
        graph: &str,
        name: &Arc<str>,
        value: DynTensor,
        rows: usize,
    ) -> Result<Self, BackendError> {
        let element = element(*value.data_type()).ok_or_else(|| {
            let reason = format!("has the unsupported element type {}", value.data_type());
            BackendError::contract(graph, &**name, reason)
        })?;
        let shape: Vec<usize> = value
            .shape()
            .iter()
            .map(|&d| usize::try_from(d).unwrap_or(0))
            .collect();
        match shape.split_first() {
            Some((&first, row_shape)) if first == rows => {
                let row_shape = row_shape.to_vec();
                Ok(Self {
                    name: Arc::clone(name),
                    element,
                    row_shape,
                    value,
                })
            }
            _ => {
                let reason = format!("has the shape {shape:?}, but the batch has {rows} rows");
                Err(BackendError::contract(graph, &**name, reason))
            }
        }
    }

    pub(super) fn row_bytes(&self) -> usize {
        self.row_shape.iter().product::<usize>() * self.element.size()
    }

    fn row(&self, index: usize) -> TensorRow<'_> {
        TensorRow {
            name: &self.name,
            element: self.element,
            shape: &self.row_shape,
            tensor: self,
            index,
        }
    }
}

/// One row of an output, in host memory.
#[derive(Debug, Clone, Copy)]
pub struct TensorRow<'a> {
    /// Name of the graph's output.
    pub name: &'a str,
    /// Element type.
    pub element: Element,
    /// Shape without the batch.
    pub shape: &'a [usize],
    tensor: &'a BatchTensor,
    index: usize,
}

impl<'a> TensorRow<'a> {
    /// The row as float32, if that is its type.
    #[must_use]
    pub fn f32(&self) -> Option<ArrayViewD<'a, f32>> {
        self.view()
    }

    /// The row as int64, if that is its type.
    #[must_use]
    pub fn i64(&self) -> Option<ArrayViewD<'a, i64>> {
        self.view()
    }

    fn view<T: ort::value::PrimitiveTensorElementType>(&self) -> Option<ArrayViewD<'a, T>> {
        let (_, all) = self.tensor.value.try_extract_tensor::<T>().ok()?;
        let length: usize = self.shape.iter().product();
        let row = all.get(self.index * length..(self.index + 1) * length)?;
        ArrayViewD::from_shape(IxDyn(self.shape), row).ok()
    }

    /// The row's bytes in row-major order, in the machine's byte order.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        let length = self.tensor.row_bytes();
        // SAFETY: the value lives in host memory (lanes ask for host outputs), holds `rows` rows of `row_bytes` each
        // (checked when it was wrapped), and outlives 'a.
        #[allow(unsafe_code)]
        unsafe {
            let start = self
                .tensor
                .value
                .data_ptr()
                .cast::<u8>()
                .add(self.index * length);
            std::slice::from_raw_parts(start, length)
        }
    }
}

/// The backbone's outputs for one batch.
#[derive(Debug)]
pub struct FeatureBatch {
    pub(super) maps: Vec<BatchTensor>,
    pub(super) rows: usize,
}

impl FeatureBatch {
    /// Images in the batch.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// One image's features: a share of a batch, which stays alive as long as any of its rows does.
#[derive(Debug, Clone)]
pub struct FeatureRow {
    pub(super) batch: Arc<FeatureBatch>,
    pub(super) index: usize,
}

impl FeatureRow {
    /// Row `index` of `batch`.
    #[must_use]
    pub fn new(batch: &Arc<FeatureBatch>, index: usize) -> Self {
        debug_assert!(index < batch.rows);
        Self {
            batch: Arc::clone(batch),
            index,
        }
    }

    /// Feature maps in the manifest's order.
    pub fn maps(&self) -> impl Iterator<Item = TensorRow<'_>> {
        self.batch.maps.iter().map(|map| map.row(self.index))
    }

    /// A copy of this row in a batch of its own, so that keeping it does not keep its batch. `None`: out of memory.
    #[must_use]
    pub fn detached(&self) -> Option<Self> {
        let copy = |map: &BatchTensor| {
            let shape: Vec<usize> = std::iter::once(1)
                .chain(map.row_shape.iter().copied())
                .collect();
            let source = map.row(self.index);
            let value = host_tensor(map.element, &shape, |bytes| {
                bytes.copy_from_slice(source.bytes())
            })
            .ok()?;
            let (name, row_shape) = (Arc::clone(&map.name), map.row_shape.clone());
            Some(BatchTensor {
                name,
                element: map.element,
                row_shape,
                value,
            })
        };
        let maps = self.batch.maps.iter().map(copy).collect::<Option<_>>()?;
        Some(Self {
            batch: Arc::new(FeatureBatch { maps, rows: 1 }),
            index: 0,
        })
    }

    /// Bytes of this row over all maps.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.batch.maps.iter().map(BatchTensor::row_bytes).sum()
    }

    /// Identity of the row: equal for two handles on the same row.
    #[must_use]
    pub fn id(&self) -> (usize, usize) {
        (Arc::as_ptr(&self.batch) as usize, self.index)
    }

    /// Whether `next` lies right behind this row in memory.
    #[must_use]
    pub fn precedes(&self, next: &Self) -> bool {
        Arc::ptr_eq(&self.batch, &next.batch) && self.index + 1 == next.index
    }
}

/// A head's outputs for one batch.
#[derive(Debug)]
pub struct HeadBatch {
    pub(super) tensors: Vec<BatchTensor>,
}

/// One call's share of a head's outputs.
#[derive(Debug, Clone)]
pub struct HeadRow {
    batch: Arc<HeadBatch>,
    index: usize,
}

impl HeadRow {
    /// Row `index` of `batch`.
    #[must_use]
    pub fn new(batch: &Arc<HeadBatch>, index: usize) -> Self {
        Self {
            batch: Arc::clone(batch),
            index,
        }
    }

    /// The output called `name`.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<TensorRow<'_>> {
        self.batch
            .tensors
            .iter()
            .find(|tensor| &*tensor.name == name)
            .map(|t| t.row(self.index))
    }

    /// All outputs, in the graph's order.
    pub fn tensors(&self) -> impl Iterator<Item = TensorRow<'_>> {
        self.batch
            .tensors
            .iter()
            .map(|tensor| tensor.row(self.index))
    }
}

/// The element types that cross the backend's border.
pub(super) fn element(kind: TensorElementType) -> Option<Element> {
    match kind {
        TensorElementType::Float32 => Some(Element::F32),
        TensorElementType::Float16 => Some(Element::F16),
        TensorElementType::Int64 => Some(Element::I64),
        TensorElementType::Int32 => Some(Element::I32),
        TensorElementType::Uint8 => Some(Element::U8),
        _ => None,
    }
}

/// A new host tensor of `shape` with `fill` writing its bytes.
pub(super) fn host_tensor(
    element: Element,
    shape: &[usize],
    fill: impl FnOnce(&mut [u8]),
) -> ort::Result<DynTensor> {
    let shape: Vec<i64> = shape
        .iter()
        .map(|&d| i64::try_from(d).unwrap_or(i64::MAX))
        .collect();
    let count = shape.iter().product::<i64>().unsigned_abs() as usize;
    let mut bytes = vec![0_u8; count * element.size()];
    fill(&mut bytes);
    // Chunks of the element's own size: the copy also aligns the buffer for its type.
    macro_rules! typed {
        ($kind:ty, $from:expr) => {{
            let data: Vec<$kind> = bytes
                .chunks_exact(element.size())
                .map(|c| $from(c))
                .collect();
            Tensor::from_array((shape, data))?.upcast()
        }};
    }
    fn array<const N: usize>(chunk: &[u8]) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(chunk);
        out
    }
    Ok(match element {
        Element::F32 => typed!(f32, |c| f32::from_ne_bytes(array(c))),
        Element::F16 => typed!(half::f16, |c| half::f16::from_ne_bytes(array(c))),
        Element::I64 => typed!(i64, |c| i64::from_ne_bytes(array(c))),
        Element::I32 => typed!(i32, |c| i32::from_ne_bytes(array(c))),
        Element::U8 => Tensor::from_array((shape, bytes))?.upcast(),
    })
}
