//! What `backbone.toml` and `head.toml` say, and what they may say.

use std::{collections::BTreeMap, fmt};

use serde::Deserialize;

use super::RepositoryError;

/// `backbone.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneManifest {
    /// Name for people.
    pub name: String,
    /// Version for people.
    pub version: String,
    /// The graph's file name, beside the manifest.
    pub file: String,
    /// SHA-256 of that file, lower-case hex: the fingerprint that heads name.
    pub sha256: String,
    /// `fp32`, `fp16`, `bf16` or `int8`.
    pub precision: String,
    /// Where the weights are from.
    #[serde(default)]
    pub source: Source,
    /// What the graph takes.
    pub input: Input,
    /// What the graph gives.
    pub features: Vec<Feature>,
    /// How far the exported graph was from its source when it was made, by level; for people.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
}

/// Where the weights are from; free text.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Architecture and its sizes.
    #[serde(default)]
    pub architecture: String,
    /// Checkpoint, or how it was trained.
    #[serde(default)]
    pub checkpoint: String,
    /// Licence of the weights.
    #[serde(default)]
    pub licence: String,
}

/// The backbone's input: uint8 RGB `[N, height, width, 3]`, normalization inside the graph.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Name of the graph's input.
    pub name: String,
    /// Accepted `[height, width]` in pixels; the first is the default.
    pub sizes: Vec<[u32; 2]>,
    /// How images are fitted to it.
    pub resize: Resize,
    /// Resampling filter.
    #[serde(default)]
    pub filter: Filter,
    /// Gray level around a letterboxed image.
    #[serde(default = "default_pad")]
    pub pad: u8,
}

/// How images of another size are fitted to the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// Whole image, aspect ratio kept, centred on a plain ground.
    Letterbox,
    /// Whole image, aspect ratio given up.
    Stretch,
    /// Shortest side to the input's, then the middle.
    CenterCrop,
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Letterbox => "letterbox",
            Self::Stretch => "stretch",
            Self::CenterCrop => "center_crop",
        })
    }
}

/// Resampling filter, antialiased when shrinking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Triangle filter.
    #[default]
    Bilinear,
    /// Catmull-Rom.
    Bicubic,
}

/// One of the backbone's outputs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// Name of the graph's output, and of the heads' inputs that read it.
    pub name: String,
    /// Input pixels per cell.
    pub stride: u32,
    /// Number of channels.
    pub channels: u32,
    /// Order of its axes.
    pub layout: Layout,
}

/// Order of a feature map's axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Layout {
    /// Batch, channels, height, width.
    #[serde(rename = "NCHW")]
    Nchw,
    /// Batch, height, width, channels.
    #[serde(rename = "NHWC")]
    Nhwc,
}

impl Feature {
    /// Shape of one image's map at an input of `[height, width]` pixels.
    #[must_use]
    pub fn row_shape(&self, [height, width]: [u32; 2]) -> [usize; 3] {
        let (c, h, w) = (
            self.channels as usize,
            (height / self.stride) as usize,
            (width / self.stride) as usize,
        );
        match self.layout {
            Layout::Nchw => [c, h, w],
            Layout::Nhwc => [h, w, c],
        }
    }
}

/// Kind of answer that a head gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Boxes, with or without instance masks.
    Detection,
    /// A label for each pixel.
    Segmentation,
    /// Probabilities for a clip.
    Action,
    /// Probabilities for an image.
    Classification,
    /// A vector for an image.
    Embedding,
    /// Raw outputs.
    Tensor,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Detection => "detection",
            Self::Segmentation => "segmentation",
            Self::Action => "action",
            Self::Classification => "classification",
            Self::Embedding => "embedding",
            Self::Tensor => "tensor",
        })
    }
}

/// `head.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadManifest {
    /// The folder's name, by which callers ask for it.
    pub name: String,
    /// Version, told with every answer.
    pub version: String,
    /// Kind of answer.
    pub task: Task,
    /// The graph's file name, beside the manifest.
    pub file: String,
    /// SHA-256 of that file, lower-case hex.
    pub sha256: String,
    /// The backbone's SHA-256 that it was trained on.
    pub backbone: String,
    /// `[height, width]` in pixels that it was trained at.
    pub input_size: [u32; 2],
    /// Names of the feature maps that it reads; the graph's inputs have these names.
    pub features: Vec<String>,
    /// Names of its labels, by index.
    #[serde(default)]
    pub labels: Vec<String>,
    /// How outputs become results.
    #[serde(default)]
    pub postprocess: Postprocess,
    /// How it was trained; free text.
    #[serde(default)]
    pub trained: BTreeMap<String, String>,
    /// Measured on held-out data.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
}

/// How a head's outputs become results. Which keys may be set depends on the task.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Postprocess {
    /// Detection: least score, 0 to 1.
    pub score_threshold: Option<f32>,
    /// Detection: boxes of one label that overlap more than this are one object; unset when the graph suppresses.
    pub nms_iou: Option<f32>,
    /// Detection: most objects in an answer.
    pub max_detections: Option<usize>,
    /// Detection: what the masks' grid covers.
    pub mask: Option<MaskSpace>,
    /// Detection: least probability of a mask's pixel.
    pub mask_threshold: Option<f32>,
    /// Action: frames per clip.
    pub frames: Option<usize>,
    /// Action: distance of sampled frames in the stream it was trained on.
    pub frame_stride: Option<usize>,
    /// Action and classification: labels in an answer.
    pub top_k: Option<usize>,
}

/// What an instance mask's grid covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskSpace {
    /// The whole input image.
    Image,
    /// The detection's box.
    Box,
}

impl HeadManifest {
    /// Frames that one call of the head reads; 1 for an image.
    #[must_use]
    pub fn frames(&self) -> usize {
        match self.task {
            Task::Action => self.postprocess.frames.unwrap_or(1),
            _ => 1,
        }
    }

    /// Reads and checks `text`; `file` is its name, for messages.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn parse(file: &str, text: &str) -> Result<Self, RepositoryError> {
        let manifest: Self = parse(file, text)?;
        let fail = |field: &str, reason: String| Err(RepositoryError::field(file, field, reason));
        check_name(file, "name", &manifest.name)?;
        check_file(file, &manifest.file)?;
        check_hash(file, "sha256", &manifest.sha256)?;
        check_hash(file, "backbone", &manifest.backbone)?;
        if manifest.features.is_empty() {
            return fail("features", "names no feature map".to_owned());
        }
        let labelled = !matches!(manifest.task, Task::Embedding | Task::Tensor);
        if labelled && manifest.labels.is_empty() {
            return fail(
                "labels",
                format!("is empty, but the task is {}", manifest.task),
            );
        }
        manifest.postprocess.check(file, manifest.task)?;
        Ok(manifest)
    }

    /// Checks what the head says of the backbone.
    ///
    /// # Errors
    /// Another backbone's fingerprint, an input size or a feature that this backbone does not have.
    pub(super) fn check_against(
        &self,
        file: &str,
        backbone: &BackboneManifest,
    ) -> Result<(), RepositoryError> {
        if self.backbone != backbone.sha256 {
            let reason = format!(
                "the head was trained on {}, but the repository's backbone is {}",
                self.backbone, backbone.sha256
            );
            return Err(RepositoryError::field(file, "backbone", reason));
        }
        if !backbone.input.sizes.contains(&self.input_size) {
            let reason = format!(
                "{:?} is not among the backbone's sizes {:?}",
                self.input_size, backbone.input.sizes
            );
            return Err(RepositoryError::field(file, "input_size", reason));
        }
        for (index, name) in self.features.iter().enumerate() {
            if !backbone
                .features
                .iter()
                .any(|feature| feature.name == *name)
            {
                let known: Vec<_> = backbone.features.iter().map(|f| f.name.as_str()).collect();
                let reason = format!("{name:?} is not among the backbone's features {known:?}");
                return Err(RepositoryError::field(
                    file,
                    format!("features[{index}]"),
                    reason,
                ));
            }
            if self.features[..index].contains(name) {
                let reason = format!("{name:?} is named twice");
                return Err(RepositoryError::field(
                    file,
                    format!("features[{index}]"),
                    reason,
                ));
            }
        }
        Ok(())
    }
}

impl Postprocess {
    fn check(&self, file: &str, task: Task) -> Result<(), RepositoryError> {
        let fraction = |field: &str, value: Option<f32>| match value {
            Some(value) if !(0.0..=1.0).contains(&value) => {
                let reason = format!("is {value}, but must be from 0 to 1");
                Err(RepositoryError::field(
                    file,
                    format!("postprocess.{field}"),
                    reason,
                ))
            }
            _ => Ok(()),
        };
        fraction("score_threshold", self.score_threshold)?;
        fraction("nms_iou", self.nms_iou)?;
        fraction("mask_threshold", self.mask_threshold)?;
        let count = |field: &str, value: Option<usize>, most: usize| match value {
            Some(value) if !(1..=most).contains(&value) => {
                let reason = format!("is {value}, but must be from 1 to {most}");
                Err(RepositoryError::field(
                    file,
                    format!("postprocess.{field}"),
                    reason,
                ))
            }
            _ => Ok(()),
        };
        count("max_detections", self.max_detections, 10_000)?;
        count("frames", self.frames, 1024)?;
        count("frame_stride", self.frame_stride, 1024)?;
        count("top_k", self.top_k, 100_000)?;

        let detection = [
            ("score_threshold", self.score_threshold.is_some()),
            ("nms_iou", self.nms_iou.is_some()),
            ("max_detections", self.max_detections.is_some()),
            ("mask", self.mask.is_some()),
            ("mask_threshold", self.mask_threshold.is_some()),
        ];
        let clip = [
            ("frames", self.frames.is_some()),
            ("frame_stride", self.frame_stride.is_some()),
        ];
        let top = [("top_k", self.top_k.is_some())];
        let foreign: Vec<(&str, bool)> = match task {
            Task::Detection => [&clip[..], &top].concat(),
            Task::Action => detection.to_vec(),
            Task::Classification => [&detection[..], &clip].concat(),
            Task::Segmentation | Task::Embedding | Task::Tensor => {
                [&detection[..], &clip, &top].concat()
            }
        };
        if let Some((field, _)) = foreign.iter().find(|(_, set)| *set) {
            let reason = format!("has no meaning for the task {task}");
            return Err(RepositoryError::field(
                file,
                format!("postprocess.{field}"),
                reason,
            ));
        }
        if task == Task::Action && self.frames.is_none() {
            let reason = "is missing: an action head names the frames of a clip";
            return Err(RepositoryError::field(file, "postprocess.frames", reason));
        }
        Ok(())
    }
}

impl BackboneManifest {
    /// Reads and checks `text`; `file` is its name, for messages.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn parse(file: &str, text: &str) -> Result<Self, RepositoryError> {
        let manifest: Self = parse(file, text)?;
        check_file(file, &manifest.file)?;
        check_hash(file, "sha256", &manifest.sha256)?;
        const PRECISIONS: [&str; 4] = ["fp32", "fp16", "bf16", "int8"];
        if !PRECISIONS.contains(&manifest.precision.as_str()) {
            let reason = format!(
                "is {:?}, but must be one of {PRECISIONS:?}",
                manifest.precision
            );
            return Err(RepositoryError::field(file, "precision", reason));
        }
        if manifest.input.sizes.is_empty() {
            return Err(RepositoryError::field(file, "input.sizes", "names no size"));
        }
        if manifest.features.is_empty() {
            return Err(RepositoryError::field(
                file,
                "features",
                "names no feature map",
            ));
        }
        for [height, width] in &manifest.input.sizes {
            if !(1..=8192).contains(height) || !(1..=8192).contains(width) {
                let reason = format!("[{height}, {width}] must be from 1 to 8192 pixels a side");
                return Err(RepositoryError::field(file, "input.sizes", reason));
            }
            for feature in &manifest.features {
                if feature.stride == 0
                    || height % feature.stride != 0
                    || width % feature.stride != 0
                {
                    let reason = format!(
                        "{} of {:?} does not divide the input size [{height}, {width}]",
                        feature.stride, feature.name
                    );
                    return Err(RepositoryError::field(file, "features.stride", reason));
                }
            }
        }
        Ok(manifest)
    }
}

fn default_pad() -> u8 {
    114
}

fn parse<T: for<'de> Deserialize<'de>>(file: &str, text: &str) -> Result<T, RepositoryError> {
    toml::from_str(text).map_err(|error| RepositoryError::Syntax {
        file: file.to_owned(),
        detail: error.to_string().trim_end().replace('\n', "\n  "),
    })
}

fn check_hash(file: &str, field: &str, hash: &str) -> Result<(), RepositoryError> {
    let valid = hash.len() == 64 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if valid {
        return Ok(());
    }
    let reason = format!("{hash:?} is not a SHA-256 of 64 lower-case hex digits");
    Err(RepositoryError::field(file, field, reason))
}

fn check_file(file: &str, name: &str) -> Result<(), RepositoryError> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0']);
    if plain {
        return Ok(());
    }
    let reason = format!("{name:?} is not the name of a file beside the manifest");
    Err(RepositoryError::field(file, "file", reason))
}

fn check_name(file: &str, field: &str, name: &str) -> Result<(), RepositoryError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let valid = (1..=64).contains(&name.len())
        && name.bytes().all(plain)
        && name.as_bytes()[0].is_ascii_alphanumeric();
    if valid {
        return Ok(());
    }
    let reason = format!("{name:?} must be 1 to 64 letters, digits, '-', '_' or '.'");
    Err(RepositoryError::field(file, field, reason))
}
