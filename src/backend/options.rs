//! Where graphs run, and how the device is used.

use std::{fmt, path::PathBuf, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The device that graphs run on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum DeviceChoice {
    /// The first CUDA device if there is one and the library can use it, else what a trial shows to be the fastest on the
    /// CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CPU, with the backbone compiled by OpenVINO.
    OpenVino,
    /// A CUDA device by its number.
    Cuda(u32),
    /// A CUDA device by its number, through TensorRT; what TensorRT does not take runs on CUDA.
    TensorRt(u32),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) = text.split_once(':').unwrap_or((text, "0"));
        match (name, number.parse::<u32>()) {
            ("auto", _) if text == name => Ok(Self::Auto),
            ("cpu", _) if text == name => Ok(Self::Cpu),
            _ if text == "openvino:cpu" => Ok(Self::OpenVino),
            ("cuda", Ok(number)) if number < 1024 => Ok(Self::Cuda(number)),
            ("tensorrt", Ok(number)) if number < 1024 => Ok(Self::TensorRt(number)),
            _ => Err(format!(
                "{text:?} is no device: use \"auto\", \"cpu\", \"openvino:cpu\", \"cuda:N\" or \"tensorrt:N\""
            )),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::OpenVino => f.write_str("openvino:cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::TensorRt(number) => write!(f, "tensorrt:{number}"),
        }
    }
}

/// What OpenVINO computes the backbone in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// bf16 where a trial shows that it is faster and that every head answers alike, else fp32.
    #[default]
    Auto,
    /// 32-bit floating point.
    Fp32,
    /// bfloat16, on processors that compute in it.
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
        })
    }
}

/// How the device's memory arena grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Arena {
    /// By what is asked for; flat, since batches come in few sizes.
    #[default]
    SameAsRequested,
    /// By doubling.
    NextPowerOfTwo,
}

/// How cuDNN chooses a convolution's algorithm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConvSearch {
    /// By rule, in milliseconds.
    #[default]
    Heuristic,
    /// By trying all of them, seconds for each new shape.
    Exhaustive,
    /// Always the same one.
    Default,
}

/// What becomes of a cached row that has no room on the device any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CachePolicy {
    /// It moves to host memory, within `engine.cache_bytes`.
    #[default]
    Spill,
    /// It is forgotten.
    Drop,
}

/// Options of the TensorRT provider.
#[derive(Debug, Clone, Default)]
pub struct TensorRtOptions {
    /// Lets TensorRT compute fp32 graphs in half precision.
    pub fp16: bool,
    /// Folder of built engines.
    pub engine_cache: Option<PathBuf>,
    /// Folder of measured kernel timings, which make building faster.
    pub timing_cache: Option<PathBuf>,
    /// Scratch memory in bytes while building; 0 for TensorRT's own choice.
    pub workspace_bytes: usize,
    /// Allows building engines at start, which takes minutes. Unset, a start without built engines is refused.
    pub build: bool,
}

/// How graphs run.
#[derive(Debug, Clone, Default)]
pub struct DeviceOptions {
    /// Which device.
    pub device: DeviceChoice,
    /// What OpenVINO computes the backbone in.
    pub precision: Precision,
    /// Folder of OpenVINO's plugin; the library's, or PyPI's package beside it, if unset.
    pub openvino_plugin: Option<PathBuf>,
    /// Refuses graphs of which some nodes fall back to the CPU.
    pub strict: bool,
    /// Most bytes of the device memory arena of one graph; 0 for no bound.
    pub memory_limit_bytes: usize,
    /// How that arena grows.
    pub arena: Arena,
    /// How convolution algorithms are chosen.
    pub conv_search: ConvSearch,
    /// Lets fp32 matrix products use TensorFloat-32.
    pub tf32: bool,
    /// Captures the backbone's run for each batch size as a CUDA graph, where every node runs on CUDA.
    pub cuda_graphs: bool,
    /// Lets convolutions use the NHWC layout.
    pub prefer_nhwc: bool,
    /// Bytes of finished features that may stay on the device.
    pub cache_bytes: usize,
    /// What becomes of those beyond it.
    pub cache_policy: CachePolicy,
    /// TensorRT's own.
    pub tensorrt: TensorRtOptions,
    /// Treats host memory as a device's: every step of the resident path runs, with copies in place of transfers. For
    /// tests.
    #[doc(hidden)]
    pub emulate: bool,
}

impl DeviceOptions {
    /// What the CUDA provider on device `ordinal` is given, by the provider's keys. `graphs`: runs may be captured.
    pub(super) fn cuda(&self, ordinal: u32, graphs: bool) -> Vec<(&'static str, String)> {
        let arena = match self.arena {
            Arena::SameAsRequested => "kSameAsRequested",
            Arena::NextPowerOfTwo => "kNextPowerOfTwo",
        };
        let search = match self.conv_search {
            ConvSearch::Heuristic => "HEURISTIC",
            ConvSearch::Exhaustive => "EXHAUSTIVE",
            ConvSearch::Default => "DEFAULT",
        };
        let switch = |on: bool| u8::from(on).to_string();
        let mut given = vec![
            ("device_id", ordinal.to_string()),
            ("arena_extend_strategy", arena.to_owned()),
            ("cudnn_conv_algo_search", search.to_owned()),
            ("use_tf32", switch(self.tf32)),
            ("prefer_nhwc", switch(self.prefer_nhwc)),
            ("enable_cuda_graph", switch(graphs && self.cuda_graphs)),
        ];
        if self.memory_limit_bytes > 0 {
            given.push(("gpu_mem_limit", self.memory_limit_bytes.to_string()));
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_provider_is_given_what_is_configured() {
        let options = DeviceOptions {
            memory_limit_bytes: 1 << 30,
            tf32: true,
            cuda_graphs: true,
            ..DeviceOptions::default()
        };
        let given = |graphs| {
            let each = options.cuda(3, graphs);
            let each = each.iter().map(|(key, value)| format!("{key}={value}"));
            each.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            given(true),
            "device_id=3 arena_extend_strategy=kSameAsRequested cudnn_conv_algo_search=HEURISTIC use_tf32=1 \
             prefer_nhwc=0 enable_cuda_graph=1 gpu_mem_limit=1073741824"
        );
        // A head's runs are not captured.
        assert!(given(false).contains("enable_cuda_graph=0"));
    }

    #[test]
    fn devices_are_named_as_they_are_shown() {
        for text in [
            "auto",
            "cpu",
            "openvino:cpu",
            "cuda:0",
            "cuda:7",
            "tensorrt:1",
        ] {
            assert_eq!(
                text.parse::<DeviceChoice>().map(|d| d.to_string()),
                Ok(text.to_owned())
            );
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for text in [
            "gpu",
            "cpu:1",
            "openvino",
            "openvino:0",
            "openvino:gpu",
            "auto:0",
            "cuda:",
            "cuda:-1",
            "cuda:x",
            "cuda:99999",
            "",
        ] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }
}
