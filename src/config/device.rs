//! The section `[device]`.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Config;
use crate::backend::{
    Arena, CachePolicy, ConvSearch, DeviceChoice, DeviceOptions, Precision, TensorRtOptions,
};
use crate::{engine::TrialOptions, files};

/// `[device]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Device {
    /// The ONNX Runtime library; found where it was installed if unset.
    pub library: Option<PathBuf>,
    /// Where graphs run: `auto`, `cpu`, `openvino:cpu`, `cuda:N` or `tensorrt:N`. `auto` takes the first CUDA device, if
    /// the library can use one, else what a trial shows to be the fastest on the CPU.
    pub device: DeviceChoice,
    /// What OpenVINO computes the backbone in: `auto`, `fp32` or `bf16`. `auto` takes bf16 where a trial shows that it is
    /// faster and that every head answers as at fp32.
    pub precision: Precision,
    /// Folder of OpenVINO's plugin; found beside the library, or in PyPI's package beside that one's, if unset.
    pub openvino_plugin: Option<PathBuf>,
    /// How long the trial at the start may go on before nothing more is begun, milliseconds; 0 for none: then `auto` is `cpu`
    /// and `fp32`.
    pub trial_ms: u64,
    /// Where the trial's outcome is remembered; if unset, `trial.json` in the repository's folder where the server may write
    /// there, else in `frostline` of the user's cache folder.
    pub trial_file: Option<PathBuf>,
    /// Refuses graphs of which some nodes fall back to the CPU.
    pub strict: bool,
    /// Most bytes of one graph's memory arena on the device; 0 for no bound.
    pub memory_limit_bytes: usize,
    /// How that arena grows: `same_as_requested` or `next_power_of_two`.
    pub arena: Arena,
    /// How convolution algorithms are chosen: `heuristic`, `exhaustive` or `default`.
    pub conv_search: ConvSearch,
    /// Lets fp32 matrix products use TensorFloat-32.
    pub tf32: bool,
    /// Captures the backbone's run for each batch size as a CUDA graph; every node has to run on CUDA.
    pub cuda_graphs: bool,
    /// Lets convolutions use the NHWC layout.
    pub prefer_nhwc: bool,
    /// Bytes of finished features to keep in the device's memory.
    pub cache_bytes: usize,
    /// What becomes of those beyond it: `spill` to host memory, within `engine.cache_bytes`, or `drop`.
    pub cache_policy: CachePolicy,
    /// Lets TensorRT compute fp32 graphs in half precision.
    pub tensorrt_fp16: bool,
    /// Folder of built TensorRT engines.
    pub tensorrt_engine_cache: Option<PathBuf>,
    /// Folder of measured TensorRT kernel timings.
    pub tensorrt_timing_cache: Option<PathBuf>,
    /// Scratch bytes while TensorRT builds an engine; 0 for its own choice.
    pub tensorrt_workspace_bytes: usize,
    /// Allows building engines at start, which takes minutes; unset, a start without built engines is refused.
    pub tensorrt_build: bool,
}

impl Default for Device {
    fn default() -> Self {
        let device = DeviceOptions::default();
        let tensorrt = device.tensorrt;
        Self {
            library: None,
            device: device.device,
            precision: device.precision,
            openvino_plugin: device.openvino_plugin,
            trial_ms: 5000,
            trial_file: None,
            strict: device.strict,
            memory_limit_bytes: device.memory_limit_bytes,
            arena: device.arena,
            conv_search: device.conv_search,
            tf32: device.tf32,
            cuda_graphs: device.cuda_graphs,
            prefer_nhwc: device.prefer_nhwc,
            cache_bytes: device.cache_bytes,
            cache_policy: device.cache_policy,
            tensorrt_fp16: tensorrt.fp16,
            tensorrt_engine_cache: tensorrt.engine_cache,
            tensorrt_timing_cache: tensorrt.timing_cache,
            tensorrt_workspace_bytes: tensorrt.workspace_bytes,
            tensorrt_build: tensorrt.build,
        }
    }
}

impl Config {
    /// How the trial of providers is made.
    #[must_use]
    pub fn trial(&self) -> TrialOptions {
        let named = self.device.trial_file.clone();
        TrialOptions {
            budget: Duration::from_millis(self.device.trial_ms),
            file: named.or_else(|| remembered(self.repository.path.as_deref())),
        }
    }

    /// The device's part.
    #[must_use]
    pub fn device(&self) -> DeviceOptions {
        let device = &self.device;
        DeviceOptions {
            device: device.device,
            precision: device.precision,
            openvino_plugin: device.openvino_plugin.clone(),
            strict: device.strict,
            memory_limit_bytes: device.memory_limit_bytes,
            arena: device.arena,
            conv_search: device.conv_search,
            tf32: device.tf32,
            cuda_graphs: device.cuda_graphs,
            prefer_nhwc: device.prefer_nhwc,
            cache_bytes: device.cache_bytes,
            cache_policy: device.cache_policy,
            tensorrt: TensorRtOptions {
                fp16: device.tensorrt_fp16,
                engine_cache: device.tensorrt_engine_cache.clone(),
                timing_cache: device.tensorrt_timing_cache.clone(),
                workspace_bytes: device.tensorrt_workspace_bytes,
                build: device.tensorrt_build,
            },
            ..DeviceOptions::default()
        }
    }
}

/// Where a trial's outcome is kept if nothing is said: beside the models, where that folder can be written to, else in the
/// user's cache; nowhere where there is none.
fn remembered(repository: Option<&Path>) -> Option<PathBuf> {
    const NAME: &str = "trial.json";
    if let Some(folder) = repository.filter(|folder| files::may_write(folder)) {
        return Some(folder.join(NAME));
    }
    let given = |name| env::var_os(name).filter(|value| !value.is_empty());
    let cache = given("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(given("HOME")?).join(".cache")));
    let cache = cache.filter(|folder| folder.is_absolute());
    Some(cache?.join("frostline").join(NAME))
}
