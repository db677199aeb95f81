//! What graphs give: batches of tensors, and one row's share of them.

use std::{sync::Arc, time::Duration};

use ndarray::{ArrayViewD, IxDyn};
use ort::value::{DynTensor, Tensor, TensorElementType};

use super::{
    BackendError, Device, Element, TensorSpec,
    binding::Lease,
    buffer::{Buffer, Space},
};

/// One output of a graph for a whole batch.
#[derive(Debug)]
pub(super) struct BatchTensor {
    pub(super) name: Arc<str>,
    pub(super) element: Element,
    /// Shape of one row, without the batch.
    pub(super) row_shape: Vec<usize>,
    store: Store,
}

/// Where a tensor's bytes are.
#[derive(Debug)]
enum Store {
    /// In host memory that ONNX Runtime allocated.
    Value(DynTensor),
    /// In a buffer of the device's, or in host memory that it copies to.
    Buffer(Arc<Buffer>),
}

impl BatchTensor {
    /// Wraps a graph's output, which lies in host memory, after checking that it holds `rows` rows.
    pub(super) fn new(
        graph: &str,
        name: &Arc<str>,
        value: DynTensor,
        rows: usize,
    ) -> Result<Self, BackendError> {
        let (element, row_shape) = layout(graph, name, &value, rows)?;
        Ok(Self {
            name: Arc::clone(name),
            element,
            row_shape,
            store: Store::Value(value),
        })
    }

    /// A tensor whose rows lie in `buffer`.
    pub(super) fn in_buffer(
        name: &Arc<str>,
        element: Element,
        row_shape: Vec<usize>,
        buffer: Arc<Buffer>,
    ) -> Self {
        Self {
            name: Arc::clone(name),
            element,
            row_shape,
            store: Store::Buffer(buffer),
        }
    }

    /// Whose memory it lies in.
    pub(super) fn space(&self) -> Space {
        match &self.store {
            Store::Value(_) => Space::Host,
            Store::Buffer(buffer) => buffer.space(),
        }
    }

    /// Where row `index` starts, in the memory of [`BatchTensor::space`].
    pub(super) fn row_pointer(&self, index: usize) -> *const u8 {
        let start = match &self.store {
            Store::Value(value) => value.data_ptr().cast::<u8>(),
            Store::Buffer(buffer) => buffer.pointer().cast_const(),
        };
        start.wrapping_add(index * self.row_bytes())
    }

    pub(super) fn row_bytes(&self) -> usize {
        self.row_shape.iter().product::<usize>() * self.element.size()
    }

    pub(super) fn row(&self, index: usize) -> TensorRow<'_> {
        TensorRow {
            name: &self.name,
            element: self.element,
            shape: &self.row_shape,
            tensor: self,
            index,
        }
    }
}

/// Element type and row shape of a graph's output, after checking that it holds `rows` rows.
pub(super) fn layout(
    graph: &str,
    name: &str,
    value: &DynTensor,
    rows: usize,
) -> Result<(Element, Vec<usize>), BackendError> {
    let element = element(*value.data_type()).ok_or_else(|| {
        let reason = format!(
            "is {}, but must be float32, float16, int64, int32 or uint8",
            type_name(*value.data_type())
        );
        BackendError::contract(graph, format!("output {name:?}"), reason)
    })?;
    let shape: Vec<usize> = value
        .shape()
        .iter()
        .map(|&d| usize::try_from(d).unwrap_or(0))
        .collect();
    match shape.split_first() {
        Some((&first, row_shape)) if first == rows => Ok((element, row_shape.to_vec())),
        _ => {
            let reason = format!(
                "is {shape:?} for a batch of {rows}, but the first dimension must be the batch"
            );
            Err(BackendError::contract(
                graph,
                format!("output {name:?}"),
                reason,
            ))
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
    /// What it looks like.
    #[must_use]
    pub fn spec(&self) -> TensorSpec {
        TensorSpec {
            name: self.name.to_owned(),
            element: self.element,
            shape: self.shape.to_vec(),
        }
    }

    /// The row as float32, if that is its type.
    #[must_use]
    pub fn f32(&self) -> Option<ArrayViewD<'a, f32>> {
        self.view(Element::F32)
    }

    /// The row as int64, if that is its type.
    #[must_use]
    pub fn i64(&self) -> Option<ArrayViewD<'a, i64>> {
        self.view(Element::I64)
    }

    /// Whether none of its numbers is a NaN or an infinity.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        let half = |bytes: &[u8]| half::f16::from_ne_bytes([bytes[0], bytes[1]]);
        match self.element {
            Element::F32 => {
                (self.f32()).is_none_or(|row| row.iter().all(|value| value.is_finite()))
            }
            Element::F16 => self.bytes().chunks_exact(2).all(|b| half(b).is_finite()),
            Element::I64 | Element::I32 | Element::U8 => true,
        }
    }

    /// `T` must be `element`'s type.
    fn view<T>(&self, element: Element) -> Option<ArrayViewD<'a, T>> {
        if self.element != element || size_of::<T>() != element.size() {
            return None;
        }
        let bytes = self.bytes();
        debug_assert!(bytes.as_ptr().cast::<T>().is_aligned());
        // SAFETY: the bytes are `T`s (checked above), and a row starts at a multiple of its size from an allocation
        // that ONNX Runtime or the device aligned for every type.
        #[allow(unsafe_code)]
        let row = unsafe {
            std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>())
        };
        ArrayViewD::from_shape(IxDyn(self.shape), row).ok()
    }

    /// The row's bytes in row-major order, in the machine's byte order.
    ///
    /// # Panics
    /// The row lies in a device's memory: [`FeatureRow::to_host`] was not called.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        assert!(
            self.tensor.space() == Space::Host,
            "device memory is not the host's to read"
        );
        // SAFETY: the tensor lies in host memory (checked above), holds `rows` rows of `row_bytes` each (checked when it
        // was wrapped), and outlives 'a. Whoever enqueued a copy into it waits for that before handing it on.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.tensor.row_pointer(self.index), self.tensor.row_bytes())
        }
    }
}

/// The backbone's outputs for one batch.
#[derive(Debug)]
pub struct FeatureBatch {
    pub(super) maps: Vec<BatchTensor>,
    pub(super) rows: usize,
    /// The device's memory that the maps lie in, if they do; it is used again once the batch is gone.
    pub(super) lease: Option<Lease>,
    /// The device whose memory that is.
    pub(super) device: Option<Arc<Device>>,
}

impl FeatureBatch {
    /// Images in the batch.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How long the device took for it, once [`Device::synchronize`] is past it; `None` where the caller's clock says.
    #[must_use]
    pub fn device_time(&self) -> Option<Duration> {
        self.lease.as_ref()?.device_time()
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

    /// A copy of this row in a batch of its own and in the same memory, so that keeping it does not keep its batch.
    /// `None`: out of memory.
    #[must_use]
    pub fn detached(&self) -> Option<Self> {
        self.detached_of(|_| true)
    }

    /// The same with no other maps than those whose names are `wanted`.
    #[must_use]
    pub fn detached_of(&self, wanted: impl Fn(&str) -> bool) -> Option<Self> {
        if let Some(device) = &self.batch.device {
            return self.copied(device, Space::Device, wanted).ok();
        }
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
                store: Store::Value(value),
            })
        };
        let maps = self.batch.maps.iter().filter(|map| wanted(&map.name));
        let maps = maps.map(copy).collect::<Option<_>>()?;
        Some(Self::alone(maps, None))
    }

    /// This row in host memory: itself if it lies there, else a copy that may be read once [`Device::synchronize`] is
    /// past it.
    ///
    /// # Errors
    /// No memory for it, or what CUDA says.
    pub fn to_host(&self) -> Result<Self, BackendError> {
        match &self.batch.device {
            Some(device) => self.copied(device, Space::Host, |_| true),
            None => Ok(self.clone()),
        }
    }

    /// Whether it lies in a device's memory.
    #[must_use]
    pub fn is_on_device(&self) -> bool {
        self.batch.device.is_some()
    }

    fn copied(
        &self,
        device: &Arc<Device>,
        space: Space,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Self, BackendError> {
        let copy = |map: &BatchTensor| {
            let bytes = map.row_bytes();
            let buffer = Buffer::new(device, bytes, space)?;
            let source = map.row_pointer(self.index);
            // SAFETY: the row has this many bytes. It outlives the copy: its memory is reused or freed in the stream's
            // order only, behind the copy.
            #[allow(unsafe_code)]
            unsafe {
                buffer.fill(0, source, bytes, map.space())?;
            }
            let row_shape = map.row_shape.clone();
            Ok(BatchTensor::in_buffer(
                &map.name,
                map.element,
                row_shape,
                Arc::new(buffer),
            ))
        };
        let maps = self
            .batch
            .maps
            .iter()
            .filter(|map| wanted(&map.name))
            .map(copy)
            .collect::<Result<_, BackendError>>()?;
        let on_device = (space == Space::Device).then(|| Arc::clone(device));
        Ok(Self::alone(maps, on_device))
    }

    fn alone(maps: Vec<BatchTensor>, device: Option<Arc<Device>>) -> Self {
        let batch = FeatureBatch {
            maps,
            rows: 1,
            lease: None,
            device,
        };
        Self {
            batch: Arc::new(batch),
            index: 0,
        }
    }

    /// How long the device took for its batch; as [`FeatureBatch::device_time`].
    #[must_use]
    pub fn device_time(&self) -> Option<Duration> {
        self.batch.device_time()
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

/// An element type by its usual name.
pub(super) fn type_name(kind: TensorElementType) -> String {
    let short = kind.to_string();
    let long = [
        ("bf", "bfloat"),
        ("f", "float"),
        ("i", "int"),
        ("u", "uint"),
    ];
    let found = long.iter().find_map(|(from, to)| {
        let bits = short.strip_prefix(from)?;
        bits.starts_with(|c: char| c.is_ascii_digit())
            .then(|| format!("{to}{bits}"))
    });
    found.unwrap_or(short)
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
