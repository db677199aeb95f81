//! The device that graphs run on: its providers, its memory, its one stream.
//!
//! On a CPU features lie in host memory and nothing here is in the way. On a CUDA device they stay there: a batch is
//! uploaded once from pinned memory, the backbone and the heads run on one stream and read each other's memory, the
//! heads' outputs are downloaded into pinned memory, and one [`Device::synchronize`] ends the batch.

use std::{
    collections::HashMap,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use ort::{
    environment::Environment,
    ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProviderDispatch},
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
};
use parking_lot::{Mutex, RwLock};

use super::{
    BackendError, DeviceChoice, DeviceOptions, Precision,
    cuda::{self, Cuda, Event},
    fault,
    openvino::OpenVino,
};

/// Bytes copied between host and device since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopiedBytes {
    /// Host to device: images, and features that were kept on the host.
    pub to_device: u64,
    /// Device to host: heads' outputs, extracted features, features spilled from the cache.
    pub to_host: u64,
}

/// Where graphs run. One for the process's models, shared by all sessions.
pub struct Device {
    options: DeviceOptions,
    place: Place,
    /// Whether TensorRT comes before CUDA.
    tensorrt: bool,
    /// Why it is this one.
    reason: String,
    /// Pinned blocks that are free, by size.
    pinned: Mutex<HashMap<usize, Vec<Address>>>,
    to_device: AtomicU64,
    to_host: AtomicU64,
    enqueued: AtomicU64,
    synchronized: AtomicU64,
    /// Held for writing while a CUDA graph is captured: no other thread may use the device then.
    capture: RwLock<()>,
    faults: Faults,
}

pub(super) enum Place {
    Cpu,
    /// The CPU, the backbone through OpenVINO, the heads as on [`Place::Cpu`].
    OpenVino(OpenVino),
    /// Host memory treated as a device's.
    Emulated,
    Cuda(Cuda),
}

/// A pinned block that nobody uses.
pub(super) struct Address(pub(super) *mut u8);

// SAFETY: an address of memory that whoever takes it out of the list owns alone.
#[allow(unsafe_code)]
unsafe impl Send for Address {}

/// Failures on demand, for tests of what follows from real ones.
#[doc(hidden)]
#[derive(Debug, Default)]
pub struct Faults {
    /// Batches of more rows find no memory; 0 for none.
    pub out_of_memory_above: AtomicUsize,
    /// The device is gone.
    pub lost: AtomicBool,
    /// Batches that failed on demand.
    pub struck: AtomicU64,
}

impl Device {
    fn new(options: DeviceOptions, place: Place, tensorrt: bool, reason: String) -> Self {
        Self {
            options,
            place,
            tensorrt,
            reason,
            pinned: Mutex::default(),
            to_device: AtomicU64::new(0),
            to_host: AtomicU64::new(0),
            enqueued: AtomicU64::new(0),
            synchronized: AtomicU64::new(0),
            capture: RwLock::default(),
            faults: Faults::default(),
        }
    }

    /// The CPU, taken because of `reason`.
    pub(super) fn cpu(options: DeviceOptions, reason: String) -> Self {
        Self::new(options, Place::Cpu, false, reason)
    }

    /// Opens the device that `options` ask for; `library` is ONNX Runtime's.
    pub(super) fn open(
        options: DeviceOptions,
        environment: &Environment,
        library: &Path,
    ) -> Result<Self, BackendError> {
        let device = |place, tensorrt, reason| Self::new(options.clone(), place, tensorrt, reason);
        if options.emulate {
            return Ok(device(
                Place::Emulated,
                false,
                "emulated for tests".to_owned(),
            ));
        }
        let choice = options.device;
        let fixed = |place| Ok(device(place, false, "as configured".to_owned()));
        if options.precision == Precision::Bf16 && !computes_in_bf16(choice) {
            let why = "bf16 is for device.device = \"openvino:cpu\" alone, let device.precision be \"fp32\" or \"auto\"";
            return Err(unusable(choice, why));
        }
        let (number, tensorrt) = match options.device {
            DeviceChoice::Cpu => return fixed(Place::Cpu),
            DeviceChoice::OpenVino => {
                let plugin = options.openvino_plugin.as_deref();
                let opened = OpenVino::open(environment, library, plugin, options.precision);
                let openvino = opened.map_err(|why| unusable(choice, &why))?;
                return fixed(Place::OpenVino(openvino));
            }
            DeviceChoice::Auto => (0, false),
            DeviceChoice::Cuda(number) => (number, false),
            DeviceChoice::TensorRt(number) => (number, true),
        };
        let opened = provider(library, "cuda")
            .and_then(|()| match tensorrt {
                true => provider(library, "tensorrt").and_then(|()| engines(&options)),
                false => Ok(()),
            })
            .and_then(|()| Cuda::open(number));
        match (opened, options.device) {
            (Ok(cuda), DeviceChoice::Auto) => {
                let reason = format!("{} is there", cuda.name);
                Ok(device(Place::Cuda(cuda), tensorrt, reason))
            }
            (Ok(cuda), _) => Ok(device(
                Place::Cuda(cuda),
                tensorrt,
                "as configured".to_owned(),
            )),
            (Err(why), DeviceChoice::Auto) => Ok(device(Place::Cpu, false, why)),
            (Err(why), choice) => Err(unusable(choice, &why)),
        }
    }

    /// The device in the configuration's words, such as `cuda:0`.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.place {
            Place::Cpu => "cpu".to_owned(),
            Place::OpenVino(_) => "openvino:cpu".to_owned(),
            Place::Emulated => "emulated".to_owned(),
            Place::Cuda(cuda) if self.tensorrt => format!("tensorrt:{}", cuda.ordinal),
            Place::Cuda(cuda) => format!("cuda:{}", cuda.ordinal),
        }
    }

    /// The device and why it is this one, in a line for people.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{}: {}", self.summary(), self.reason)
    }

    /// Why it is this one.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The device, in a line for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let name = self.name();
        match &self.place {
            Place::Cuda(cuda) => {
                let gib = |bytes: usize| bytes as f64 / (1_u64 << 30) as f64;
                let (free, total) = cuda.memory().unwrap_or_default();
                let (model, driver) = (&cuda.name, &cuda.driver);
                let (free, total) = (gib(free), gib(total));
                format!("{name} ({model}, CUDA {driver}, {free:.1} of {total:.1} GiB free)")
            }
            Place::OpenVino(openvino) => format!("{name} in {}", openvino.precision),
            Place::Cpu | Place::Emulated => name,
        }
    }

    /// What the backbone is computed in, where that is not what its graph says.
    #[must_use]
    pub fn precision(&self) -> Option<Precision> {
        match &self.place {
            Place::OpenVino(openvino) if openvino.precision == Precision::Bf16 => {
                Some(Precision::Bf16)
            }
            _ => None,
        }
    }

    /// The options it was opened with.
    #[must_use]
    pub fn options(&self) -> &DeviceOptions {
        &self.options
    }

    /// Whether features stay in the device's own memory, and runs end at [`Device::synchronize`].
    #[must_use]
    pub fn is_resident(&self) -> bool {
        matches!(self.place, Place::Emulated | Place::Cuda(_))
    }

    /// Whether it is a GPU, which one lane keeps busy.
    #[must_use]
    pub fn is_gpu(&self) -> bool {
        matches!(self.place, Place::Cuda(_))
    }

    /// Bytes copied between host and device since the start.
    #[must_use]
    pub fn copied(&self) -> CopiedBytes {
        CopiedBytes {
            to_device: self.to_device.load(Ordering::Relaxed),
            to_host: self.to_host.load(Ordering::Relaxed),
        }
    }

    /// Free and total bytes of the device's memory; `None` where that is the host's.
    #[must_use]
    pub fn memory(&self) -> Option<(usize, usize)> {
        match &self.place {
            Place::Cuda(cuda) => cuda.memory().ok(),
            _ => None,
        }
    }

    /// Waits until everything enqueued is done. Nothing to wait for on a CPU.
    ///
    /// # Errors
    /// What failed on the device since the last call.
    pub fn synchronize(&self) -> Result<(), BackendError> {
        let enqueued = self.enqueued.load(Ordering::Acquire);
        if self.faults.lost.load(Ordering::Relaxed) && self.is_resident() {
            return Err(self.failed("CUDA failure 719: unspecified launch failure (injected)"));
        }
        if let Place::Cuda(cuda) = &self.place {
            cuda.synchronize().map_err(|error| self.failed(error))?;
        }
        self.synchronized.fetch_max(enqueued, Ordering::AcqRel);
        Ok(())
    }

    /// Failures on demand.
    #[doc(hidden)]
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The provider that nodes should run on; `None` on a CPU.
    pub(super) fn provider(&self) -> Option<&'static str> {
        match &self.place {
            // Of the heads; what OpenVINO compiles says itself where it went.
            Place::Cpu | Place::OpenVino(_) => None,
            // No node ever runs on it: whatever a test lists as fallen back is the whole graph.
            Place::Emulated => Some("EmulatedExecutionProvider"),
            Place::Cuda(_) if self.tensorrt => Some("TensorrtExecutionProvider"),
            Place::Cuda(_) => Some("CUDAExecutionProvider"),
        }
    }

    /// What a session registers, first choice first. `graphs`: runs may be captured.
    pub(super) fn providers(&self, graphs: bool) -> Vec<ExecutionProviderDispatch> {
        let Place::Cuda(cuda) = &self.place else {
            return Vec::new();
        };
        let mut first = ep::CUDA::default();
        for (key, value) in self.options.cuda(cuda.ordinal, graphs && !self.tensorrt) {
            first = first.with_arbitrary_config(key, value);
        }
        // SAFETY: the stream lives as long as the device, and every session holds the device.
        #[allow(unsafe_code)]
        let first = unsafe { first.with_compute_stream(cuda.stream()) };
        let mut all = vec![first.build().error_on_failure()];
        if self.tensorrt {
            let id = i32::try_from(cuda.ordinal).unwrap_or(0);
            all.insert(0, self.tensorrt_provider(id).build().error_on_failure());
        }
        all
    }

    /// The CUDA provider's options as ONNX Runtime reads them back, defaults included; `None` without the provider.
    pub(super) fn taken(&self) -> Option<ort::Result<String>> {
        let Place::Cuda(cuda) = &self.place else {
            return None;
        };
        let given = self.options.cuda(cuda.ordinal, self.options.cuda_graphs);
        Some(cuda::read_back(&given))
    }

    fn tensorrt_provider(&self, id: i32) -> ep::TensorRT {
        let options = &self.options.tensorrt;
        let mut provider = ep::TensorRT::default()
            .with_device_id(id)
            .with_fp16(options.fp16);
        if options.workspace_bytes > 0 {
            provider = provider.with_max_workspace_size(options.workspace_bytes);
        }
        if let Some(folder) = &options.engine_cache {
            provider = provider
                .with_engine_cache(true)
                .with_engine_cache_path(folder.display());
        }
        if let Some(folder) = &options.timing_cache {
            provider = provider
                .with_timing_cache(true)
                .with_timing_cache_path(folder.display());
        }
        provider
    }

    /// The description of this device's memory for a tensor that lies in it.
    pub(super) fn memory_info(&self) -> ort::Result<MemoryInfo<'static>> {
        let (device, id) = match &self.place {
            Place::Cuda(cuda) => (
                AllocationDevice::CUDA,
                i32::try_from(cuda.ordinal).unwrap_or(0),
            ),
            _ => (AllocationDevice::CPU, 0),
        };
        MemoryInfo::new(device, id, AllocatorType::Device, MemoryType::Default)
    }

    /// Fails, if a test asked for it, as a batch of `rows` would.
    pub(super) fn strike(&self, graph: &str, rows: usize) -> Result<(), BackendError> {
        let most = self.faults.out_of_memory_above.load(Ordering::Relaxed);
        if most > 0 && rows > most {
            self.faults.struck.fetch_add(1, Ordering::Relaxed);
            let detail = "Failed to allocate memory for requested buffer of size 1 (injected)";
            return Err(BackendError::run(graph, detail));
        }
        Ok(())
    }

    /// Notes that something was enqueued; the ticket is past once [`Device::is_past`] says so.
    pub(super) fn ticket(&self) -> u64 {
        self.enqueued.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Whether everything up to `ticket` is done.
    pub(super) fn is_past(&self, ticket: u64) -> bool {
        self.synchronized.load(Ordering::Acquire) >= ticket
    }

    /// Shared while the device is used, exclusive while a CUDA graph is captured.
    pub(super) fn capture(&self) -> &RwLock<()> {
        &self.capture
    }

    pub(super) fn event(&self) -> Option<Event> {
        match &self.place {
            Place::Cuda(cuda) => cuda.event().ok(),
            _ => None,
        }
    }

    pub(super) fn record(&self, event: &Event) {
        if let Place::Cuda(cuda) = &self.place
            && let Err(error) = cuda.record(event)
        {
            tracing::debug!(error, "an event was not recorded");
        }
    }

    pub(super) fn elapsed(&self, from: &Event, to: &Event) -> Option<f32> {
        match &self.place {
            Place::Cuda(cuda) => cuda.elapsed(from, to),
            _ => None,
        }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Pinned blocks that are free, by size.
    pub(super) fn pinned(&self) -> &Mutex<HashMap<usize, Vec<Address>>> {
        &self.pinned
    }

    pub(super) fn count_to_device(&self, bytes: usize) {
        self.to_device.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn count_to_host(&self, bytes: usize) {
        self.to_host.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, error: impl std::fmt::Display) -> BackendError {
        BackendError::run(&self.name(), error)
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Place::Cuda(cuda) = &self.place {
            let _ = cuda.synchronize();
            for Address(pointer) in self.pinned.get_mut().drain().flat_map(|(_, free)| free) {
                cuda.free_pinned(pointer);
            }
        }
    }
}

/// Whether there is a way to compute in bf16 there.
fn computes_in_bf16(choice: DeviceChoice) -> bool {
    matches!(choice, DeviceChoice::OpenVino | DeviceChoice::Auto)
}

/// Whether the library's folder holds the provider.
fn provider(library: &Path, name: &str) -> Result<(), String> {
    let file = format!("libonnxruntime_providers_{name}.so");
    let folder = library.parent().unwrap_or(Path::new("."));
    if folder.join(&file).is_file() {
        return Ok(());
    }
    Err(format!(
        "{file} is not beside {}: this is ONNX Runtime's CPU build, the GPU build is needed",
        library.display()
    ))
}

/// Whether there are built engines, or leave to build them: a silent build stalls a start for minutes.
fn engines(options: &DeviceOptions) -> Result<(), String> {
    let options = &options.tensorrt;
    if options.build {
        return Ok(());
    }
    let Some(folder) = &options.engine_cache else {
        return Err(
            "there is no folder of built engines: set device.tensorrt_engine_cache, or device.tensorrt_build to build \
             them at start"
                .to_owned(),
        );
    };
    let built = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let engine = |entry: std::fs::DirEntry| {
        entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "engine")
    };
    if built.into_iter().any(engine) {
        return Ok(());
    }
    Err(format!(
        "{} holds no built engine: set device.tensorrt_build to build them at start",
        folder.display()
    ))
}

/// A device that cannot be used, in one sentence.
fn unusable(choice: DeviceChoice, why: &str) -> BackendError {
    BackendError::Device(format!("the device {choice} cannot be used: {why}"))
}

/// What a provider says as it is registered, in one sentence.
pub(super) fn refused(device: &Device, error: &ort::Error) -> BackendError {
    let (name, why) = (device.name(), fault::refusal(error.message()));
    BackendError::Device(format!("the device {name} cannot be used: {why}"))
}
