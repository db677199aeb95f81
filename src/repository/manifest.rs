//! What `backbone.toml` and `head.toml` say, and what they may say.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::RepositoryError;
use crate::task::{KeyError, Output, Postprocess, Task};

/// Longest side of an input in pixels.
const MAX_SIDE: u32 = 8192;
/// Least share of an image that a centre crop may keep of each side.
const MIN_CROP: f64 = 0.1;
/// What weights may be in.
const PRECISIONS: [&str; 4] = ["fp32", "fp16", "bf16", "int8"];
/// A SHA-256, for the schema.
const HASH: &str = "^[0-9a-f]{64}$";
/// The name of a file beside the manifest, for the schema.
const FILE: &str = r"^[^./\\][^/\\]*$";
/// A head's name, for the schema.
const NAME: &str = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$";

/// `backbone.toml`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackboneManifest {
    /// Name for people.
    pub name: String,
    /// Version for people.
    pub version: String,
    /// The graph's file name, beside the manifest.
    #[schemars(regex(pattern = FILE))]
    pub file: String,
    /// SHA-256 of that file, lower-case hex: the fingerprint that heads name.
    #[schemars(regex(pattern = HASH))]
    pub sha256: String,
    /// What the weights are in, for people.
    #[schemars(extend("enum" = PRECISIONS))]
    pub precision: String,
    /// Where the weights are from.
    #[serde(default)]
    pub source: Source,
    /// What the graph takes.
    pub input: Input,
    /// What the graph gives.
    #[schemars(length(min = 1))]
    pub features: Vec<Feature>,
    /// How far the exported graph was from its source when it was made, by level; for people.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
}

/// Where the weights are from; free text.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Name of the graph's input.
    pub name: String,
    /// Accepted `[height, width]` in pixels; the first is the default.
    #[schemars(length(min = 1), inner(inner(range(min = 1, max = MAX_SIDE))))]
    pub sizes: Vec<[u32; 2]>,
    /// How images are fitted to it.
    pub resize: Resize,
    /// Resampling filter.
    #[serde(default)]
    pub filter: Filter,
    /// Gray level around a letterboxed image.
    #[serde(default = "default_pad")]
    pub pad: u8,
    /// With `center_crop`, the share of the covered width and height that the middle is: timm's `crop_pct`, 0.875 for
    /// most ImageNet classifiers. Unset: 1.
    #[schemars(range(min = MIN_CROP, max = 1.0))]
    pub crop_fraction: Option<f64>,
}

impl Input {
    /// The share that a centre crop keeps; 1 where the manifest says nothing.
    #[must_use]
    pub fn crop_fraction(&self) -> f64 {
        self.crop_fraction.unwrap_or(1.0)
    }

    fn check(&self, file: &str) -> Result<(), RepositoryError> {
        let Some(fraction) = self.crop_fraction else {
            return Ok(());
        };
        let reason = if self.resize != Resize::CenterCrop {
            format!("has no meaning for resize = \"{}\"", self.resize)
        } else if !(MIN_CROP..=1.0).contains(&fraction) {
            format!("is {fraction}, but must be from {MIN_CROP} to 1")
        } else {
            return Ok(());
        };
        Err(RepositoryError::field(file, "input.crop_fraction", reason))
    }
}

/// How images of another size are fitted to the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// Whole image, aspect ratio kept, centred on a plain ground.
    Letterbox,
    /// Whole image, aspect ratio given up.
    Stretch,
    /// Aspect ratio kept, resized to cover, then the middle: what it cuts away is not seen.
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Triangle filter.
    #[default]
    Bilinear,
    /// Catmull-Rom.
    Bicubic,
}

/// One of the backbone's outputs.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// Name of the graph's output, and of the heads' inputs that read it.
    pub name: String,
    /// Input pixels per cell. A map has as many cells as it takes to cover the input: 19 of 16 pixels over 300.
    #[schemars(range(min = 1))]
    pub stride: u32,
    /// Number of channels.
    pub channels: u32,
    /// Order of its axes.
    pub layout: Layout,
}

/// Order of a feature map's axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
            height.div_ceil(self.stride) as usize,
            width.div_ceil(self.stride) as usize,
        );
        match self.layout {
            Layout::Nchw => [c, h, w],
            Layout::Nhwc => [h, w, c],
        }
    }
}

/// `head.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeadManifest {
    /// The folder's name, by which callers ask for it.
    #[schemars(regex(pattern = NAME))]
    pub name: String,
    /// Version, told with every answer.
    pub version: String,
    /// Kind of answer.
    pub task: Task,
    /// The graph's file name, beside the manifest.
    #[schemars(regex(pattern = FILE))]
    pub file: String,
    /// SHA-256 of that file, lower-case hex.
    #[schemars(regex(pattern = HASH))]
    pub sha256: String,
    /// The backbone's SHA-256 that it was trained on.
    #[schemars(regex(pattern = HASH))]
    pub backbone: String,
    /// `[height, width]` in pixels that it was trained at.
    pub input_size: [u32; 2],
    /// Names of the feature maps that it reads; the graph's inputs have these names.
    #[schemars(length(min = 1))]
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

impl HeadManifest {
    /// Frames that one call of the head reads; 1 for an image.
    #[must_use]
    pub fn frames(&self) -> usize {
        match self.task.spec().clip {
            true => self.postprocess.action.frames.unwrap_or(1),
            false => 1,
        }
    }

    /// The outputs that its graph must give if the graph's outputs are called `names`.
    #[must_use]
    pub fn outputs<'a>(&self, names: impl Iterator<Item = &'a str>) -> &'static [Output] {
        let names: Vec<_> = names.collect();
        self.task.spec().outputs_of(&self.postprocess, &names)
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
        if manifest.task.spec().labelled && manifest.labels.is_empty() {
            return fail(
                "labels",
                format!("is empty, but the task is {}", manifest.task),
            );
        }
        let checked = manifest
            .postprocess
            .check(manifest.task, manifest.labels.len());
        checked.map_err(|KeyError { key, reason }| {
            RepositoryError::field(file, format!("postprocess.{key}"), reason)
        })?;
        Ok(manifest)
    }

    /// Checks what the head says of the backbone.
    ///
    /// # Errors
    /// The backbone's own name, another backbone's fingerprint, an input size or a feature that this backbone does not have.
    pub(super) fn check_against(
        &self,
        file: &str,
        backbone: &BackboneManifest,
    ) -> Result<(), RepositoryError> {
        if self.name == backbone.name {
            let reason = format!(
                "is {:?}, which is the backbone's name too: the Open Inference Protocol knows both by it",
                self.name
            );
            return Err(RepositoryError::field(file, "name", reason));
        }
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

impl BackboneManifest {
    /// Reads and checks `text`; `file` is its name, for messages.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn parse(file: &str, text: &str) -> Result<Self, RepositoryError> {
        let manifest: Self = parse(file, text)?;
        check_file(file, &manifest.file)?;
        check_hash(file, "sha256", &manifest.sha256)?;
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
        manifest.input.check(file)?;
        for [height, width] in &manifest.input.sizes {
            if !(1..=MAX_SIDE).contains(height) || !(1..=MAX_SIDE).contains(width) {
                let reason =
                    format!("[{height}, {width}] must be from 1 to {MAX_SIDE} pixels a side");
                return Err(RepositoryError::field(file, "input.sizes", reason));
            }
            for feature in &manifest.features {
                if !(1..=*height.min(width)).contains(&feature.stride) {
                    let reason = format!(
                        "{} of {:?} must be from 1 to the sides of the input size [{height}, {width}]",
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
        detail: said(&error, text),
    })
}

/// Longest complaint of the TOML reader that is passed on, characters.
const MOST_SAID: usize = 500;

/// Where and what, without the text itself: a manifest may be huge, and what it holds another's.
fn said(error: &toml::de::Error, text: &str) -> String {
    let what: String = error.message().chars().take(MOST_SAID).collect();
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => {
            let line = before.matches('\n').count() + 1;
            format!("line {line}: {what}")
        }
        None => what,
    }
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
