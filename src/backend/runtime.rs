//! Finding and loading the ONNX Runtime library.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use ort::environment::Environment;

use super::{
    BackendError, Device, DeviceChoice, DeviceOptions, device,
    library::{LIBRARY_VERSION, Surroundings},
    openvino,
};

/// The loaded library, its one environment, and the device that graphs run on. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    pub(super) environment: Environment,
    library: PathBuf,
    device: Arc<Device>,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime")
            .field("library", &self.library)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl Runtime {
    /// Loads the library from `library`, or else from the first place where it is found: `ORT_DYLIB_PATH`, the
    /// executable's folder, `../lib` beside it, `target/onnxruntime` of a source checkout, and PyPI's `onnxruntime` in the
    /// executable's or the active environment of Python. Graphs run on the CPU until [`Runtime::on`] says otherwise.
    ///
    /// A process has one environment: later calls return it, whatever path they give.
    ///
    /// # Errors
    /// No library, or one that cannot be used, in a sentence that says what to do.
    pub fn load(library: Option<&Path>) -> Result<Self, BackendError> {
        static LOADED: std::sync::OnceLock<Result<Runtime, BackendError>> =
            std::sync::OnceLock::new();
        LOADED.get_or_init(|| Self::load_once(library)).clone()
    }

    /// Where the library is that [`Runtime::load`] takes without being given one.
    ///
    /// # Errors
    /// None of the places has it, with all of them.
    pub fn locate() -> Result<PathBuf, BackendError> {
        Surroundings::of_process().find().map_err(|miss| {
            BackendError::Library(format!(
                "the ONNX Runtime {LIBRARY_VERSION} library is not found: run `make runtime`, `pip install \
                 onnxruntime=={LIBRARY_VERSION}` in the active environment, or set device.library or ORT_DYLIB_PATH; \
                 looked at {}",
                miss.list()
            ))
        })
    }

    fn load_once(library: Option<&Path>) -> Result<Self, BackendError> {
        let (library, named) = match library {
            Some(path) => (path.to_path_buf(), "device.library"),
            None => (Self::locate()?, "ORT_DYLIB_PATH"),
        };
        if !library.is_file() {
            return Err(BackendError::Library(format!(
                "there is no ONNX Runtime library at {}, where {named} says: run `make runtime`, or let it name \
                 libonnxruntime.so {LIBRARY_VERSION}",
                library.display()
            )));
        }
        let unusable = |detail: String| {
            BackendError::Library(format!(
                "{} is not a usable ONNX Runtime {LIBRARY_VERSION} library ({detail}): run `make runtime`, or set \
                 ORT_DYLIB_PATH to the right one",
                library.display()
            ))
        };
        let environment = ort::init_from(&library)
            .map_err(|error| unusable(error.to_string()))?
            .with_name("frostline")
            .with_telemetry(false)
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        let options = DeviceOptions {
            device: DeviceChoice::Cpu,
            ..DeviceOptions::default()
        };
        let device = Arc::new(Device::open(options, &environment, &library)?);
        Ok(Self {
            environment,
            library,
            device,
        })
    }

    /// This library with graphs on the device that `options` ask for.
    ///
    /// # Errors
    /// A device that cannot be used, in a sentence that says what is missing. `auto` never fails: it falls back to the
    /// CPU, and [`Device::describe`] says why.
    pub fn on(&self, options: &DeviceOptions) -> Result<Self, BackendError> {
        let mut device = Device::open(options.clone(), &self.environment, &self.library)?;
        if let Err(error) = self.register(&device) {
            if options.device != DeviceChoice::Auto {
                return Err(error);
            }
            device = Device::cpu(options.clone(), error.to_string());
        }
        Ok(Self {
            device: Arc::new(device),
            ..self.clone()
        })
    }

    /// Registers the device's providers once, so that what they lack is found before any graph is read.
    fn register(&self, device: &Device) -> Result<(), BackendError> {
        let providers = device.providers(false);
        if providers.is_empty() {
            return Ok(());
        }
        let builder = ort::session::Session::builder(&self.environment);
        let builder = builder.map_err(|error| device::refused(device, &error))?;
        let registered = builder.with_execution_providers(providers);
        registered.map_err(|error| device::refused(device, &error.into()))?;
        match device.taken() {
            Some(Ok(options)) => tracing::info!(options, "the CUDA provider's options"),
            Some(Err(error)) => tracing::debug!(%error, "the provider's options are not told"),
            None => {}
        }
        Ok(())
    }

    /// What there is of OpenVINO's plugin: it changes when another one is put in its place.
    #[must_use]
    pub fn plugin_stamp(&self) -> String {
        let folder = self.device.options().openvino_plugin.as_deref();
        openvino::stamp(&self.library, folder)
    }

    /// Whether OpenVINO's plugin is there, usable on this processor or not.
    #[must_use]
    pub fn has_plugin(&self) -> bool {
        let folder = self.device.options().openvino_plugin.as_deref();
        openvino::find(&self.library, folder).is_ok()
    }

    /// What graphs run on.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Where the library was found.
    #[must_use]
    pub fn library(&self) -> &Path {
        &self.library
    }
}
