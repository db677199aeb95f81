//! Between the protocol's messages and the engine's types.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{masks, status};
use crate::{
    backend::{Element, TensorRow},
    engine::{
        self, FeatureSource, Head, LabelMapAs, Labels, Options, Outcome, Priority, Segmentation,
        Source,
    },
    error::{Error, Kind, Result},
    proto::{self, LabelMapFormat, MaskFormat},
    repository::{HeadManifest, Layout, Resize, Task},
    task::{Ask, Detection, Point, Pose, Poses, ScoredLabel},
};

/// The most detections that a caller may ask for.
pub const MAX_DETECTIONS: u32 = 10_000;
/// The most labels that a caller may ask for.
pub const MAX_TOP_K: u32 = 100_000;

// === requests ===

/// An image and the path of its field.
pub(super) fn image(image: Option<proto::Image>, field: &str) -> Result<(Source, String)> {
    match image.and_then(|image| image.content) {
        Some(proto::image::Content::Encoded(bytes)) => {
            let field = format!("{field}.encoded");
            if bytes.is_empty() {
                return Err(Error::invalid(field, "is empty"));
            }
            Ok((Source::Encoded(bytes), field))
        }
        Some(proto::image::Content::Raw(raw)) => {
            let proto::RawImage { width, height, rgb } = raw;
            Ok((Source::Raw { width, height, rgb }, format!("{field}.raw")))
        }
        None => Err(Error::invalid(field, "is missing: set encoded or raw")),
    }
}

/// A clip's frames, each with the path of its field; `prefix` is where in the request the clip is.
pub(super) fn clip(clip: Option<proto::Clip>, prefix: &str) -> Result<Vec<(Source, String)>> {
    let frames = clip.map(|clip| clip.frames).unwrap_or_default();
    if frames.is_empty() {
        return Err(Error::invalid(
            format!("{prefix}clip.frames"),
            "has no frame",
        ));
    }
    frames
        .into_iter()
        .enumerate()
        .map(|(index, frame)| image(Some(frame), &format!("{prefix}clip.frames[{index}]")))
        .collect()
}

/// A call's class of urgency.
pub(super) fn priority(value: i32) -> Result<Priority> {
    match proto::Priority::try_from(value) {
        Ok(proto::Priority::Unspecified | proto::Priority::Normal) => Ok(Priority::Normal),
        Ok(proto::Priority::Background) => Ok(Priority::Background),
        Ok(proto::Priority::High) => Ok(Priority::High),
        Err(_) => {
            let message = "must be one of Priority's values";
            Err(Error::invalid("priority", message).with("value", value))
        }
    }
}

pub(super) fn detection_options(
    options: Option<&proto::DetectionOptions>,
    field: &str,
    out: &mut Options,
) -> Result<()> {
    let Some(options) = options else {
        return Ok(());
    };
    if let Some(threshold) = options.score_threshold {
        if !(0.0..=1.0).contains(&threshold) {
            let error = Error::invalid(format!("{field}.score_threshold"), "must be from 0 to 1");
            return Err(error.with("value", threshold).with("limit", 1));
        }
        out.score_threshold = Some(threshold);
    }
    if let Some(most) = options.max_detections {
        if !(1..=MAX_DETECTIONS).contains(&most) {
            let message = format!("must be from 1 to {MAX_DETECTIONS}");
            let error = Error::invalid(format!("{field}.max_detections"), message);
            return Err(error.with("value", most).with("limit", MAX_DETECTIONS));
        }
        out.max_detections = Some(most as usize);
    }
    out.omit_masks = options.omit_masks;
    Ok(())
}

pub(super) fn classification_options(
    options: Option<&proto::ClassificationOptions>,
    field: &str,
    out: &mut Options,
) -> Result<()> {
    if let Some(count) = options.and_then(|options| options.top_k) {
        if !(1..=MAX_TOP_K).contains(&count) {
            let message = format!("must be from 1 to {MAX_TOP_K}");
            let error = Error::invalid(format!("{field}.top_k"), message);
            return Err(error.with("value", count).with("limit", MAX_TOP_K));
        }
        out.top_k = Some(count as usize);
    }
    Ok(())
}

/// Refuses options beyond what one of the `heads` gives; `fields` are where most detections and labels come from.
pub(super) fn check_bounds(
    options: &Options,
    heads: &[Arc<Head>],
    fields: [&str; 2],
) -> Result<()> {
    for head in heads {
        let manifest = &head.manifest;
        for ask in manifest.task.spec().asks {
            let (asked, most, field) = match ask {
                Ask::MaxDetections => {
                    let most = manifest.postprocess.detection.max_detections();
                    (options.max_detections, most, fields[0])
                }
                Ask::TopK => (options.top_k, manifest.labels.len(), fields[1]),
                Ask::ScoreThreshold => continue,
            };
            if let Some(asked) = asked.filter(|&asked| asked > most) {
                let message = format!(
                    "must be from 1 to {most}, the most that the head {:?} gives",
                    manifest.name
                );
                let error = Error::invalid(field, message);
                return Err(error.with("value", asked).with("limit", most));
            }
        }
    }
    Ok(())
}

pub(super) fn label_map_format(
    options: proto::SegmentationOptions,
    field: &str,
) -> Result<LabelMapAs> {
    match LabelMapFormat::try_from(options.format) {
        Ok(LabelMapFormat::Unspecified | LabelMapFormat::Png) => Ok(LabelMapAs::Png),
        Ok(LabelMapFormat::Rle) => Ok(LabelMapAs::Rle),
        Err(_) => {
            let message = "must be one of LabelMapFormat's values";
            Err(Error::invalid(field, message).with("value", options.format))
        }
    }
}

// === answers ===

pub(super) fn head_result(
    head: &Head,
    outcome: Result<Outcome>,
    format: MaskFormat,
) -> proto::HeadResult {
    use proto::head_result::Outcome as Answer;
    let converted = outcome.and_then(|outcome| {
        Ok(match outcome {
            Outcome::Detection(found) => Answer::Detection(detections(found, head, format)?),
            Outcome::Segmentation(found) => Answer::Segmentation(label_map(found, head)?),
            Outcome::Classification(top) => Answer::Classification(classification(&top, head)),
            Outcome::Keypoints(found) => Answer::Keypoints(keypoints(found, head)),
            Outcome::Tensors(row) => Answer::Tensor(proto::TensorResult {
                outputs: row.tensors().map(tensor).collect(),
            }),
            Outcome::Sent => {
                let message = "the result went elsewhere";
                return Err(Error::new(Kind::Internal, message));
            }
        })
    });
    let outcome = converted.unwrap_or_else(|error| Answer::Error(status::part(&error)));
    proto::HeadResult {
        head: head.manifest.name.clone(),
        version: head.manifest.version.clone(),
        outcome: Some(outcome),
    }
}

pub(super) fn detections(
    found: Vec<Detection>,
    head: &Head,
    format: MaskFormat,
) -> Result<proto::DetectionResult> {
    let detections = found
        .into_iter()
        .map(|detection| {
            let [x_min, y_min, x_max, y_max] = detection.bbox;
            Ok(proto::Detection {
                bbox: Some(proto::BoundingBox {
                    x_min,
                    y_min,
                    x_max,
                    y_max,
                }),
                score: detection.score,
                class_index: detection.label,
                label: label(&head.manifest, detection.label),
                mask: detection
                    .mask
                    .as_ref()
                    .map(|rle| masks::mask(rle, format))
                    .transpose()?,
            })
        })
        .collect::<Result<_>>()?;
    Ok(proto::DetectionResult { detections })
}

pub(super) fn label_map(found: Segmentation, head: &Head) -> Result<proto::SegmentationResult> {
    let (png, masks) = match found.labels {
        Labels::Png(png) => (png.into(), Vec::new()),
        Labels::Masks(masks) => (Bytes::new(), masks),
        Labels::Map(map) => (map.into_png()?.into(), Vec::new()),
    };
    let mut masks = masks.into_iter().peekable();
    let segments = found
        .counts
        .into_iter()
        .map(|(class_index, pixels)| {
            // Both are in the order of their labels.
            let mask = masks.next_if(|(other, _)| *other == class_index);
            let mask = mask.map(|(_, rle)| masks::mask(&rle, MaskFormat::Rle));
            Ok(proto::Segment {
                class_index,
                label: label(&head.manifest, class_index),
                pixels: u32::try_from(pixels).unwrap_or(u32::MAX),
                mask: mask.transpose()?,
            })
        })
        .collect::<Result<_>>()?;
    Ok(proto::SegmentationResult {
        width: found.width,
        height: found.height,
        png,
        segments,
    })
}

pub(super) fn classification(top: &[ScoredLabel], head: &Head) -> proto::ClassificationResult {
    let top = top
        .iter()
        .map(|scored| proto::ScoredLabel {
            class_index: scored.label,
            label: label(&head.manifest, scored.label),
            probability: scored.probability,
        })
        .collect();
    let frames = u32::try_from(head.manifest.frames()).unwrap_or(u32::MAX);
    proto::ClassificationResult { top, frames }
}

fn keypoints(Poses(found): Poses, head: &Head) -> proto::KeypointResult {
    let keypoint = |Point { x, y, score }: Point| proto::Keypoint { x, y, score };
    let pose = |Pose { score, points }: Pose| proto::Pose {
        score,
        keypoints: points.into_iter().map(keypoint).collect(),
    };
    let manifest = &head.manifest;
    let bones = manifest.postprocess.keypoints.skeleton.iter().flatten();
    proto::KeypointResult {
        poses: found.into_iter().map(pose).collect(),
        labels: manifest.labels.clone(),
        skeleton: bones
            .map(|&[first, second]| proto::Bone { first, second })
            .collect(),
    }
}

pub(super) fn tensor(row: TensorRow<'_>) -> proto::Tensor {
    proto::Tensor {
        name: row.name.to_owned(),
        data_type: data_type(row.element).into(),
        shape: row
            .shape
            .iter()
            .map(|&d| u32::try_from(d).unwrap_or(u32::MAX))
            .collect(),
        data: Bytes::copy_from_slice(row.bytes()),
    }
}

pub(super) fn data_type(element: Element) -> proto::DataType {
    match element {
        Element::F32 => proto::DataType::Float32,
        Element::F16 => proto::DataType::Float16,
        Element::I64 => proto::DataType::Int64,
        Element::I32 => proto::DataType::Int32,
        Element::U8 => proto::DataType::Uint8,
    }
}

/// `total` is what the call has taken until now.
pub(super) fn provenance(
    made: &engine::Provenance,
    backbone: &str,
    total: Duration,
) -> proto::Provenance {
    let source = match made.source {
        FeatureSource::Computed => proto::FeatureSource::Computed,
        FeatureSource::Shared => proto::FeatureSource::Shared,
        FeatureSource::Cached => proto::FeatureSource::Cached,
    };
    let micros = |duration: Duration| u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
    let timing = proto::Timing {
        queue_us: micros(made.timing.queue),
        decode_us: micros(made.timing.decode),
        backbone_us: micros(made.timing.backbone),
        head_us: micros(made.timing.head),
        postprocess_us: micros(made.timing.postprocess),
        total_us: micros(total),
    };
    proto::Provenance {
        backbone: backbone.to_owned(),
        feature_source: source.into(),
        backbone_rows: u32::try_from(made.backbone_rows).unwrap_or(u32::MAX),
        batch_size: u32::try_from(made.batch_size).ok().filter(|&size| size > 0),
        timing: Some(timing),
    }
}

pub(super) fn backbone(engine: &engine::Engine) -> proto::Backbone {
    let manifest = engine.backbone();
    let feature_maps = manifest.features.iter().map(|feature| proto::FeatureMap {
        name: feature.name.clone(),
        stride: feature.stride,
        channels: feature.channels,
        layout: match feature.layout {
            Layout::Nchw => proto::TensorLayout::Nchw.into(),
            Layout::Nhwc => proto::TensorLayout::Nhwc.into(),
        },
    });
    // The manifest's check knows no other.
    let precision = match engine.precision().as_str() {
        "fp32" => proto::Precision::Fp32,
        "fp16" => proto::Precision::Fp16,
        "bf16" => proto::Precision::Bf16,
        "int8" => proto::Precision::Int8,
        _ => proto::Precision::Unspecified,
    };
    let resize = match manifest.input.resize {
        Resize::Letterbox => proto::ResizeMode::Letterbox,
        Resize::Stretch => proto::ResizeMode::Stretch,
        Resize::CenterCrop => proto::ResizeMode::CenterCrop,
    };
    proto::Backbone {
        name: manifest.name.clone(),
        version: manifest.version.clone(),
        fingerprint: engine.identity().to_owned(),
        architecture: manifest.source.architecture.clone(),
        checkpoint: manifest.source.checkpoint.clone(),
        license: manifest.source.licence.clone(),
        input_sizes: manifest.input.sizes.iter().map(size).collect(),
        feature_maps: feature_maps.collect(),
        precision: precision.into(),
        resize: resize.into(),
        crop_fraction: match manifest.input.resize {
            Resize::CenterCrop => Some(manifest.input.crop_fraction()),
            Resize::Letterbox | Resize::Stretch => None,
        },
    }
}

pub(super) fn head(manifest: &HeadManifest) -> proto::Head {
    let task = match manifest.task {
        Task::Detection => proto::HeadTask::Detection,
        Task::Segmentation => proto::HeadTask::Segmentation,
        Task::Action => proto::HeadTask::Action,
        Task::Classification => proto::HeadTask::Classification,
        Task::Embedding => proto::HeadTask::Embedding,
        Task::Tensor => proto::HeadTask::Tensor,
        Task::Keypoints => proto::HeadTask::Keypoints,
    };
    let asks = manifest.task.spec().asks;
    proto::Head {
        name: manifest.name.clone(),
        version: manifest.version.clone(),
        task: task.into(),
        fingerprint: manifest.sha256.clone(),
        input_size: Some(size(&manifest.input_size)),
        reads: manifest.features.clone(),
        labels: manifest.labels.clone(),
        frames: u32::try_from(manifest.frames()).unwrap_or(u32::MAX),
        trained: manifest.trained.clone().into_iter().collect(),
        metrics: manifest.metrics.clone().into_iter().collect(),
        frame_stride: manifest
            .postprocess
            .action
            .frame_stride
            .and_then(|stride| u32::try_from(stride).ok()),
        detection: (asks.contains(&Ask::MaxDetections)).then(|| detection_settings(manifest)),
        classification: (asks.contains(&Ask::TopK)).then(|| classification_settings(manifest)),
    }
}

fn detection_settings(manifest: &HeadManifest) -> proto::DetectionSettings {
    let post = &manifest.postprocess.detection;
    proto::DetectionSettings {
        score_threshold: post.score_threshold(),
        max_detections: u32::try_from(post.max_detections()).unwrap_or(u32::MAX),
        nms_iou: post.nms_iou,
        has_masks: post.mask.is_some(),
        mask_threshold: post.mask.map(|_| post.mask_threshold()),
    }
}

fn classification_settings(manifest: &HeadManifest) -> proto::ClassificationSettings {
    let labels = manifest.labels.len();
    proto::ClassificationSettings {
        top_k: u32::try_from(manifest.postprocess.classification.top_k().min(labels))
            .unwrap_or(u32::MAX),
        max_top_k: u32::try_from(labels).unwrap_or(u32::MAX),
    }
}

pub(super) fn size(&[height, width]: &[u32; 2]) -> proto::ImageSize {
    proto::ImageSize { height, width }
}

fn label(manifest: &HeadManifest, class_index: u32) -> String {
    manifest
        .labels
        .get(class_index as usize)
        .cloned()
        .unwrap_or_else(|| class_index.to_string())
}
