//! Keypoints: named points of each body, such as the joints of people.
//!
//! The score of a body is the mean of its points' scores, as MoveNet and OpenPose have it. A graph fills up with rows whose
//! points all have the score 0; what such a point's coordinates say means nothing, and it is given as COCO gives points that
//! are not labelled, at 0, 0.

use ndarray::{ArrayView3, Axis, s};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Found, Options, Postprocess, TaskError, detection,
    error::{check_finite, check_probabilities},
    spec::{Ask, Call, Key, KeyError, LABELS, Output, Set, Spec},
};
use crate::media::Geometry;

/// Named points of each body.
pub(super) const SPEC: Spec = Spec {
    name: "keypoints",
    labelled: true,
    outputs: &[&[KEYPOINTS]],
    keys: &[
        detection::SCORE_THRESHOLD,
        detection::MAX_DETECTIONS,
        SKELETON,
    ],
    asks: &[Ask::ScoreThreshold, Ask::MaxDetections],
    sound: check_skeleton,
    run: |call| poses(call).map(|poses| Some(Found::Keypoints(poses))),
    check: |call| check(&call.f32(KEYPOINTS.name)?),
    size: |post, options, _| most(post, options) as u64,
    bytes: |post, options, labels, _| {
        let points = (most(post, options) * labels) as u64;
        Some(points * POINT_BYTES + labels as u64 * LABEL_BYTES)
    },
    ..Spec::PLAIN
};

const KEYPOINTS: Output = Output {
    name: "keypoints",
    element: "float32",
    shape: &["K", LABELS, "3"],
    values: "for each body and label x and y in pixels of the input, and the point's score, a probability, 0 to 1; a point of \
             score 0 is none, its x and y mean nothing, and a body of such points alone only fills up",
    when: "",
};

/// Bytes of a point from the output to the message.
const POINT_BYTES: u64 = 48;
/// Bytes of a label's name.
const LABEL_BYTES: u64 = 64;
/// Most bones.
const MOST_BONES: usize = 1000;

/// The manifest's keys, beside [`detection`]'s.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
pub struct Keys {
    /// Pairs of labels, by index, whose points are joined in pictures. Unset: none are.
    pub skeleton: Option<Vec<[u32; 2]>>,
}

const SKELETON: Key = Key {
    name: "skeleton",
    range: None,
    default: None,
    required: false,
    get: |post| post.keypoints.skeleton.as_ref().map(|_| Set::Other),
};

fn check_skeleton(post: &Postprocess, labels: usize) -> Result<(), KeyError> {
    let bones = post.keypoints.skeleton.as_deref().unwrap_or_default();
    let fail = |key: String, reason: String| Err(KeyError { key, reason });
    if bones.len() > MOST_BONES {
        let reason = format!(
            "has {} pairs, but must have at most {MOST_BONES}",
            bones.len()
        );
        return fail("skeleton".to_owned(), reason);
    }
    for (index, bone) in bones.iter().enumerate() {
        let outside = bone.iter().any(|&label| label as usize >= labels);
        if outside || bone[0] == bone[1] {
            let reason =
                format!("is {bone:?}, but must be two of the {labels} labels, numbered from 0");
            return fail(format!("skeleton[{index}]"), reason);
        }
    }
    Ok(())
}

/// A point of a body.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// In the original image's pixels; it may lie outside of the image.
    pub x: f32,
    /// In the original image's pixels.
    pub y: f32,
    /// 0 to 1; 0 for a point that was not found, which lies at 0, 0.
    pub score: f32,
}

/// A body.
#[derive(Debug, Clone, PartialEq)]
pub struct Pose {
    /// Mean of its points' scores.
    pub score: f32,
    /// One for each of the head's labels.
    pub points: Vec<Point>,
}

/// The bodies of one image, highest score first, equal ones in the graph's order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Poses(pub Vec<Pose>);

/// Most bodies in an answer.
fn most(post: &Postprocess, options: &Options) -> usize {
    let most = post.detection.max_detections();
    options.max_detections.map_or(most, |asked| asked.min(most))
}

/// `[K, P, 3]`: scores are probabilities, and points that are some lie somewhere.
fn check(rows: &ArrayView3<'_, f32>) -> Result<(), TaskError> {
    let name = KEYPOINTS.name;
    check_probabilities(name, rows.slice(s![.., .., 2]).iter())?;
    let points = rows
        .lanes(Axis(2))
        .into_iter()
        .filter(|point| point[2] > 0.0);
    for point in points {
        check_finite(name, point.iter())?;
    }
    Ok(())
}

fn poses(call: &Call<'_>) -> Result<Poses, TaskError> {
    let rows = call.f32(KEYPOINTS.name)?;
    check(&rows)?;
    let threshold = call.options.score_threshold;
    let threshold = threshold.unwrap_or_else(|| call.post.detection.score_threshold());
    let mut found: Vec<(usize, f32)> = Vec::new();
    for (row, points) in rows.outer_iter().enumerate() {
        let scores = points.column(2);
        let sum: f64 = scores.iter().map(|&score| f64::from(clipped(score))).sum();
        let score = (sum / scores.len().max(1) as f64) as f32;
        if score > 0.0 && score >= threshold {
            found.push((row, score));
        }
    }
    found.sort_by(|a, b| b.1.total_cmp(&a.1));
    found.truncate(most(call.post, call.options));
    let pose = |(row, score): (usize, f32)| {
        let points = rows.index_axis(Axis(0), row);
        let points = points.outer_iter();
        Pose {
            score,
            points: points
                .map(|point| placed([point[0], point[1], point[2]], call.geometry))
                .collect(),
        }
    };
    Ok(Poses(found.into_iter().map(pose).collect()))
}

/// A score without what rounding has carried beyond 0 to 1.
fn clipped(score: f32) -> f32 {
    score.clamp(0.0, 1.0)
}

fn placed([x, y, score]: [f32; 3], geometry: &Geometry) -> Point {
    if score <= 0.0 {
        return Point {
            x: 0.0,
            y: 0.0,
            score: 0.0,
        };
    }
    let (x, y) = (f64::from(x), f64::from(y));
    let [x, y, ..] = geometry.box_to_original([x, y, x, y]);
    Point {
        x: x as f32,
        y: y as f32,
        score: clipped(score),
    }
}
