//! Memory bound to a session: a batch's input and outputs at fixed addresses, used again and again.

use std::{
    collections::HashMap,
    ffi::CString,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use ort::{
    AsPointer,
    memory::MemoryInfo,
    session::{IoBinding, NoSelectedOutputs, RunOptions, Session},
    value::{Shape, TensorRefMut},
};
use parking_lot::Mutex;

use super::{
    BackendError, Device, Element,
    buffer::{Buffer, Space},
    cuda::Event,
};

/// Free slots by input size and rows.
type Free = HashMap<([u32; 2], usize), Vec<Slot>>;

/// Slots of one session's shapes that nobody uses.
pub(super) struct Pool {
    device: Arc<Device>,
    free: Mutex<Free>,
}

/// A batch's memory, bound to a session.
pub(super) struct Slot {
    binding: IoBinding,
    options: RunOptions<NoSelectedOutputs>,
    /// Where the host writes the images; pinned, so that the device copies by itself.
    staging: Buffer,
    input: Buffer,
    outputs: Vec<(Element, Arc<Buffer>)>,
    device: Arc<Device>,
    /// Marks before and after a run on the device.
    events: Option<(Event, Event)>,
    /// What was enqueued last on this memory.
    ticket: u64,
    /// Whether the first run, which captures the CUDA graph, is over.
    warm: bool,
}

// SAFETY: the binding and the run's options are used through `&mut` alone, and ONNX Runtime lets them move between
// threads; what `&self` gives (buffers, events, the device) may be shared.
#[allow(unsafe_code)]
unsafe impl Send for Slot {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Slot {}

/// A slot in use; it goes back to its pool when this is dropped.
pub(super) struct Lease {
    slot: Option<Slot>,
    pool: Arc<Pool>,
    shape: ([u32; 2], usize),
}

/// A side of a binding.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Input,
    Output,
}

impl Pool {
    pub(super) fn new(device: &Arc<Device>) -> Self {
        Self {
            device: Arc::clone(device),
            free: Mutex::default(),
        }
    }

    /// A free slot of this shape, if there is one.
    pub(super) fn take(
        self: &Arc<Self>,
        size: [u32; 2],
        rows: usize,
    ) -> Result<Option<Lease>, BackendError> {
        let slot = self.free.lock().get_mut(&(size, rows)).and_then(Vec::pop);
        let Some(slot) = slot else { return Ok(None) };
        let lease = Self::lend(self, size, rows, slot);
        // Its last batch was given up before anybody waited for it: the staging memory may still be read.
        let ticket = lease.slot.as_ref().map_or(0, |slot| slot.ticket);
        if !self.device.is_past(ticket) {
            self.device.synchronize()?;
        }
        Ok(Some(lease))
    }

    /// A new slot, lent at once.
    pub(super) fn lend(pool: &Arc<Self>, size: [u32; 2], rows: usize, slot: Slot) -> Lease {
        Lease {
            slot: Some(slot),
            pool: Arc::clone(pool),
            shape: (size, rows),
        }
    }

    /// Frees the slots that nobody uses: their memory may be what a batch lacks.
    pub(super) fn clear(&self) {
        let free = std::mem::take(&mut *self.free.lock());
        drop(free);
    }
}

impl Slot {
    /// Memory for one batch: `input` is the graph's input with its shape (uint8), `outputs` its outputs.
    pub(super) fn new(
        session: &Session,
        device: &Arc<Device>,
        graph: &str,
        (input, shape): (&str, &[usize]),
        outputs: &[(&str, Element, Vec<usize>)],
    ) -> Result<Self, BackendError> {
        static CAPTURES: AtomicI32 = AtomicI32::new(1);
        let failed = |error: ort::Error| BackendError::run(graph, error);
        let info = device.memory_info().map_err(failed)?;
        let mut binding = session.create_binding().map_err(failed)?;
        let bytes: usize = shape.iter().product();
        let staging = Buffer::new(device, bytes, Space::Host)?;
        let buffer = Buffer::new(device, bytes, Space::Device)?;
        // SAFETY: the buffer has these bytes and lives as long as the binding: both are the slot's.
        #[allow(unsafe_code)]
        unsafe {
            let (side, start) = (Side::Input, buffer.pointer());
            bind(&mut binding, side, input, &info, start, Element::U8, shape).map_err(failed)?;
        }
        let mut buffers = Vec::with_capacity(outputs.len());
        for (name, element, shape) in outputs {
            let bytes = shape.iter().product::<usize>() * element.size();
            let buffer = Buffer::new(device, bytes, Space::Device)?;
            // SAFETY: as above.
            #[allow(unsafe_code)]
            unsafe {
                let (side, start) = (Side::Output, buffer.pointer());
                bind(&mut binding, side, name, &info, start, *element, shape).map_err(failed)?;
            }
            buffers.push((*element, Arc::new(buffer)));
        }
        let graphs = device.is_gpu() && device.options().cuda_graphs;
        let capture = graphs.then(|| CAPTURES.fetch_add(1, Ordering::Relaxed));
        Ok(Self {
            binding,
            options: enqueued(capture).map_err(failed)?,
            staging,
            input: buffer,
            outputs: buffers,
            device: Arc::clone(device),
            events: device.event().zip(device.event()),
            ticket: 0,
            warm: !graphs,
        })
    }
}

impl Lease {
    /// Enqueues the copy of the images and the run.
    pub(super) fn run(
        &mut self,
        session: &mut Session,
        graph: &str,
        images: &[&[u8]],
    ) -> Result<(), BackendError> {
        let Some(slot) = &mut self.slot else {
            return Ok(());
        };
        let device = Arc::clone(&slot.device);
        let mut rest = slot.staging.bytes_mut();
        let bytes = rest.len();
        for image in images {
            let (here, behind) = rest.split_at_mut(image.len());
            here.copy_from_slice(image);
            rest = behind;
        }
        rest.fill(0);
        if let Some((before, _)) = &slot.events {
            device.record(before);
        }
        // SAFETY: the staging memory has these bytes, and is written again only after the stream is past this run.
        #[allow(unsafe_code)]
        unsafe {
            let staging = slot.staging.pointer().cast_const();
            slot.input.fill(0, staging, bytes, Space::Host)?;
        }
        let run = |session: &mut Session| {
            let ran = session.run_binding_with_options(&slot.binding, &slot.options);
            ran.map(|_| ())
                .map_err(|error| BackendError::run(graph, error))
        };
        if slot.warm {
            let _device = device.capture().read();
            run(session)?;
        } else {
            let _device = device.capture().write();
            run(session)?;
            slot.warm = true;
        }
        if let Some((_, after)) = &slot.events {
            device.record(after);
        }
        slot.ticket = device.ticket();
        Ok(())
    }

    /// Element type and memory of each output.
    pub(super) fn outputs(&self) -> impl Iterator<Item = (Element, Arc<Buffer>)> + '_ {
        let outputs = self.slot.iter().flat_map(|slot| &slot.outputs);
        outputs.map(|(element, buffer)| (*element, Arc::clone(buffer)))
    }

    /// How long the device took, once the stream is past the run.
    pub(super) fn device_time(&self) -> Option<Duration> {
        let slot = self.slot.as_ref()?;
        let (before, after) = slot.events.as_ref()?;
        let millis = slot.device.elapsed(before, after)?;
        Some(Duration::from_secs_f64(f64::from(millis.max(0.0)) / 1e3))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.pool
                .free
                .lock()
                .entry(self.shape)
                .or_default()
                .push(slot);
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease")
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

/// Options of a run that ends when it is enqueued; `capture` numbers the CUDA graph that it captures and replays.
pub(super) fn enqueued(capture: Option<i32>) -> ort::Result<RunOptions<NoSelectedOutputs>> {
    let mut options = RunOptions::new()?;
    options.disable_device_sync()?;
    options.set("gpu_graph_id", capture.unwrap_or(-1).to_string())?;
    Ok(options)
}

/// Options of a run whose memory is not bound, and which is therefore not captured.
pub(super) fn unbound() -> ort::Result<RunOptions<NoSelectedOutputs>> {
    let mut options = RunOptions::new()?;
    options.set("gpu_graph_id", "-1")?;
    Ok(options)
}

/// Binds memory at `start` as it is: the crate's own method would copy what it does not own.
///
/// # Safety
/// `start` holds `shape` of `element` in the memory that `info` describes, as long as the binding is run.
#[allow(unsafe_code)]
pub(super) unsafe fn bind(
    binding: &mut IoBinding,
    side: Side,
    name: &str,
    info: &MemoryInfo<'_>,
    start: *mut u8,
    element: Element,
    shape: &[usize],
) -> ort::Result<()> {
    let name = CString::new(name).map_err(ort::Error::wrap)?;
    let shape = Shape::new(shape.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)));
    macro_rules! bind {
        ($kind:ty) => {{
            // SAFETY: as this function asks. The binding keeps its own reference to the value.
            unsafe {
                let value = TensorRefMut::<$kind>::from_raw(info.clone(), start.cast(), shape)?;
                let api = ort::api();
                let bind = match side {
                    Side::Input => api.BindInput,
                    Side::Output => api.BindOutput,
                };
                let status = bind(binding.ptr().cast_mut(), name.as_ptr(), value.ptr());
                ort::Error::result_from_status(status)
            }
        }};
    }
    match element {
        Element::F32 => bind!(f32),
        Element::F16 => bind!(half::f16),
        Element::I64 => bind!(i64),
        Element::I32 => bind!(i32),
        Element::U8 => bind!(u8),
    }
}
