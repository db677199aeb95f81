//! Whether two backbones serve alike: their features, and what every head finds on them.

use std::sync::Arc;

use super::super::{Options, Outcome, board, postprocess};
use crate::{
    backend::{
        Backbone, BackendError, FeatureBatch, FeatureRow, HeadModel, HeadRow, Runtime,
        SessionOptions, TensorRow,
    },
    media,
    repository::{HeadEntry, Repository},
    task::{Detection, Point, Pose, Poses, ScoredLabel},
};

/// Features whose cosine to fp32's is less are others.
const LEAST_COSINE: f64 = 0.999;
/// Pictures of each input size.
const PICTURES: usize = 4;
/// A score or a probability that is no further from the line may fall on either side.
const CLOSE: f32 = 0.05;
/// Boxes that overlap less are of other things.
const LEAST_IOU: f32 = 0.8;
/// Points of one body are no further apart, in parts of its extent.
const MOST_APART: f32 = 0.05;
/// Most pixels whose label may change, as a part of all.
const MOST_PIXELS: f64 = 0.02;

/// Compares `other`'s features with `base`'s, and what every head makes of both; the least cosine in words.
///
/// # Errors
/// What differs, or cannot be run.
pub(super) fn agrees(
    repository: &Repository,
    (runtime, base): (&Runtime, &Backbone),
    other: &Backbone,
) -> Result<String, String> {
    let said = |error: BackendError| error.to_string();
    let mut least = (1.0_f64, String::new());
    for &size in &repository.backbone.input.sizes {
        let pictures = pictures(size);
        let features = |backbone: &Backbone| -> Result<Vec<FeatureRow>, BackendError> {
            let each = pictures.iter().map(|picture| {
                let batch: FeatureBatch = backbone.run(0, size, picture, 1)?;
                Ok(FeatureRow::new(&Arc::new(batch), 0))
            });
            each.collect()
        };
        let (ours, theirs) = (
            features(base).map_err(said)?,
            features(other).map_err(said)?,
        );
        for (a, b) in ours.iter().zip(&theirs) {
            for (a, b) in a.maps().zip(b.maps()) {
                let cosine = cosine(&a, &b);
                if cosine < LEAST_COSINE {
                    return Err(format!(
                        "the features {:?} have a cosine of {cosine:.5} to fp32's, {LEAST_COSINE} is the least",
                        a.name
                    ));
                }
                if cosine < least.0 {
                    least = (cosine, a.name.to_owned());
                }
            }
        }
        let reads = |entry: &&HeadEntry| entry.manifest.input_size == size;
        for entry in repository.heads.iter().filter(reads) {
            let name = &entry.manifest.name;
            let options = SessionOptions {
                lanes: 1,
                threads: 1,
            };
            // One that does not load does not serve, whatever the features.
            let Ok(head) = HeadModel::load(runtime, entry, base, options) else {
                continue;
            };
            for at in 0..pictures.len() {
                let found = |rows| results(entry, base, &head, rows, at);
                let (a, b) = (found(&ours)?, found(&theirs)?);
                alike(&a, &b).map_err(|why| format!("the head {name:?}: {why}"))?;
            }
        }
    }
    let (cosine, name) = least;
    Ok(match name.is_empty() {
        true => "its features are equal to fp32's".to_owned(),
        false => format!("the least cosine of its features to fp32's is {cosine:.5} ({name})"),
    })
}

/// What the head finds on the picture `at`, or on the clip that begins there.
fn results(
    entry: &HeadEntry,
    backbone: &Backbone,
    head: &HeadModel,
    rows: &[FeatureRow],
    at: usize,
) -> Result<Outcome, String> {
    let manifest = &entry.manifest;
    let frames = (0..manifest.frames().max(1)).map(|frame| rows[(at + frame) % rows.len()].clone());
    let outputs = head.run(0, &frames.collect::<Vec<_>>(), 1);
    let outputs = outputs.map_err(|error| error.to_string())?;
    let row = HeadRow::new(&Arc::new(outputs), 0);
    let [height, width] = manifest.input_size;
    let preprocess = board::preprocess(backbone.manifest(), [height, width]);
    let geometry = media::geometry(width, height, &preprocess);
    let options = Options {
        omit_masks: true,
        ..Options::default()
    };
    let found = postprocess::run(manifest, row, &geometry, &options, &|| true);
    found.map_err(|error| error.to_string())
}

/// Whether two results say the same, but for what is close to a line.
fn alike(a: &Outcome, b: &Outcome) -> Result<(), String> {
    match (a, b) {
        (Outcome::Detection(a), Outcome::Detection(b)) => {
            objects(a, b)?;
            objects(b, a)
        }
        (Outcome::Segmentation(a), Outcome::Segmentation(b)) => {
            let (Some(a), Some(b)) = (a.labels.map(), b.labels.map()) else {
                return Err("gave no label map".to_owned());
            };
            let pairs = a.labels().iter().zip(b.labels());
            let changed = pairs.filter(|(a, b)| a != b).count();
            let part = changed as f64 / a.labels().len().max(1) as f64;
            match part <= MOST_PIXELS {
                true => Ok(()),
                false => Err(format!("{:.1} % of a map's labels change", part * 100.0)),
            }
        }
        (Outcome::Classification(a), Outcome::Classification(b)) => top(a, b),
        (Outcome::Keypoints(Poses(a)), Outcome::Keypoints(Poses(b))) => {
            poses(a, b)?;
            poses(b, a)
        }
        (Outcome::Tensors(a), Outcome::Tensors(b)) => {
            for (a, b) in a.tensors().zip(b.tensors()) {
                let cosine = cosine(&a, &b);
                if cosine < LEAST_COSINE {
                    return Err(format!(
                        "its output {:?} has a cosine of {cosine:.5} to fp32's",
                        a.name
                    ));
                }
            }
            Ok(())
        }
        _ => Err("gave results of two kinds".to_owned()),
    }
}

/// Whether every sure object of `of` is in `among`.
fn objects(of: &[Detection], among: &[Detection]) -> Result<(), String> {
    // What both sides see with about the least score that is shown may be missing from one of them.
    let line = of.iter().chain(among).map(|found| found.score);
    let line = line.fold(f32::INFINITY, f32::min) + CLOSE;
    for object in of.iter().filter(|object| object.score > line) {
        let same = |other: &&Detection| {
            other.label == object.label && iou(&other.bbox, &object.bbox) >= LEAST_IOU
        };
        if !among.iter().any(|other| same(&other)) {
            return Err(format!(
                "an object of label {} and score {:.2} at {:?} is found at one precision alone",
                object.label, object.score, object.bbox
            ));
        }
    }
    Ok(())
}

/// Whether every sure body of `of` is in `among`.
fn poses(of: &[Pose], among: &[Pose]) -> Result<(), String> {
    let line = of.iter().chain(among).map(|found| found.score);
    let line = line.fold(f32::INFINITY, f32::min) + CLOSE;
    for body in of.iter().filter(|body| body.score > line) {
        if !among.iter().any(|other| apart(body, other) <= MOST_APART) {
            let score = body.score;
            return Err(format!(
                "a body of score {score:.2} is found at one precision alone"
            ));
        }
    }
    Ok(())
}

/// How far the points of two bodies are apart on average, in parts of the first one's extent.
fn apart(a: &Pose, b: &Pose) -> f32 {
    // A point that was not found lies nowhere.
    let found = |pair: &(&Point, &Point)| pair.0.score > 0.0 && pair.1.score > 0.0;
    let pairs: Vec<_> = a.points.iter().zip(&b.points).filter(found).collect();
    let range = |of: fn(&Point) -> f32| {
        let values = || pairs.iter().map(|(point, _)| of(point));
        values().fold(f32::MIN, f32::max) - values().fold(f32::MAX, f32::min)
    };
    let extent = range(|point| point.x)
        .hypot(range(|point| point.y))
        .max(1.0);
    let each = pairs.iter().map(|(a, b)| (a.x - b.x).hypot(a.y - b.y));
    match pairs.is_empty() {
        true => f32::INFINITY,
        false => each.sum::<f32>() / pairs.len() as f32 / extent,
    }
}

fn iou(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let area =
        |[left, top, right, bottom]: [f32; 4]| (right - left).max(0.0) * (bottom - top).max(0.0);
    let both = area([
        a[0].max(b[0]),
        a[1].max(b[1]),
        a[2].min(b[2]),
        a[3].min(b[3]),
    ]);
    both / (area(*a) + area(*b) - both).max(f32::MIN_POSITIVE)
}

/// Whether the most probable label is the same, or was about as probable as the next.
fn top(a: &[ScoredLabel], b: &[ScoredLabel]) -> Result<(), String> {
    let (Some(first), Some(other)) = (a.first(), b.first()) else {
        return Ok(());
    };
    let close = |next: &ScoredLabel| {
        next.label == other.label && first.probability - next.probability <= CLOSE
    };
    if first.label == other.label || a.iter().any(close) {
        return Ok(());
    }
    Err(format!(
        "the most probable label is {} and not {}",
        other.label, first.label
    ))
}

/// Of two tensors' values as vectors; 1 where both are zero, 0 where one is no number.
fn cosine(a: &TensorRow<'_>, b: &TensorRow<'_>) -> f64 {
    let (a, b) = (values(a), values(b));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let lengths = (dot(&a, &a) * dot(&b, &b)).sqrt();
    match lengths == 0.0 {
        true => f64::from(u8::from(a == b)),
        false => Some(dot(&a, &b) / lengths)
            .filter(|cosine| !cosine.is_nan())
            .unwrap_or(0.0),
    }
}

fn values(row: &TensorRow<'_>) -> Vec<f64> {
    use crate::backend::Element;
    if let Some(row) = row.f32() {
        return row.iter().map(|&value| f64::from(value)).collect();
    }
    if let Some(row) = row.i64() {
        return row.iter().map(|&value| value as f64).collect();
    }
    match row.element {
        Element::F16 => {
            let half = |b: &[u8]| f64::from(half::f16::from_ne_bytes([b[0], b[1]]));
            row.bytes().chunks_exact(2).map(half).collect()
        }
        Element::I32 => {
            let int = |b: &[u8]| f64::from(i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
            row.bytes().chunks_exact(4).map(int).collect()
        }
        _ => row.bytes().iter().map(|&b| f64::from(b)).collect(),
    }
}

/// Pictures with things in them: coloured boxes and discs on slopes with some grain, one black.
fn pictures([height, width]: [u32; 2]) -> Vec<Vec<u8>> {
    let mut state = 0x2545_f491_u32;
    let mut random = move |below: u32| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state % below.max(1)
    };
    (0..PICTURES)
        .map(|number| {
            let mut pixels = vec![0_u8; (height * width * 3) as usize];
            if number == 0 {
                return pixels;
            }
            let (red, green) = (random(160), random(160));
            for (at, pixel) in pixels.chunks_exact_mut(3).enumerate() {
                let (x, y) = (at as u32 % width, at as u32 / width);
                let grain = random(16);
                pixel[0] = (red + x * 64 / width + grain) as u8;
                pixel[1] = (green + y * 64 / height + grain) as u8;
                pixel[2] = (90 + grain) as u8;
            }
            for _ in 0..3 + number {
                let (w, h) = (
                    width / 8 + random(width / 4),
                    height / 8 + random(height / 4),
                );
                let (left, top) = (random(width - w.min(width)), random(height - h.min(height)));
                let colour = [random(256), random(256), random(256)].map(|level| level as u8);
                let round = random(2) == 1;
                for y in top..(top + h).min(height) {
                    for x in left..(left + w).min(width) {
                        let off = |at: u32, from: u32, side: u32| {
                            (f64::from(at - from) * 2.0 + 1.0) / f64::from(side.max(1)) - 1.0
                        };
                        let (dx, dy) = (off(x, left, w), off(y, top, h));
                        if !round || dx * dx + dy * dy <= 1.0 {
                            let at = ((y * width + x) * 3) as usize;
                            pixels[at..at + 3].copy_from_slice(&colour);
                        }
                    }
                }
            }
            pixels
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn object(left: f32, score: f32, label: u32) -> Detection {
        Detection {
            bbox: [left, 10.0, left + 40.0, 50.0],
            score,
            label,
            mask: None,
        }
    }

    #[test]
    fn objects_agree_by_label_and_place_but_for_those_at_the_threshold() {
        let alike = |a: &[Detection], b: &[Detection]| {
            alike(
                &Outcome::Detection(a.to_vec()),
                &Outcome::Detection(b.to_vec()),
            )
            .is_ok()
        };
        let both = [object(0.0, 0.9, 1), object(60.0, 0.31, 2)];
        assert!(alike(&both, &both));
        // The one at the line is missing; the sure one moved a little.
        assert!(alike(&both, &[object(2.0, 0.88, 1), object(200.0, 0.3, 7)]));
        for other in [
            vec![],
            vec![object(30.0, 0.9, 1), object(60.0, 0.31, 2)],
            vec![object(0.0, 0.9, 3), object(60.0, 0.31, 2)],
            vec![
                object(0.0, 0.9, 1),
                object(60.0, 0.31, 2),
                object(90.0, 0.8, 2),
            ],
        ] {
            assert!(!alike(&both, &other), "{other:?}");
        }
    }

    #[test]
    fn bodies_agree_by_their_points() {
        let body = |left: f32, score| Pose {
            score,
            points: [(left, 0.0), (left, 40.0), (left + 30.0, 40.0)]
                .map(|(x, y)| Point { x, y, score })
                .to_vec(),
        };
        let alike = |a: &[Pose], b: &[Pose]| {
            let of = |all: &[Pose]| Outcome::Keypoints(Poses(all.to_vec()));
            alike(&of(a), &of(b)).is_ok()
        };
        let both = [body(0.0, 0.9), body(80.0, 0.31)];
        assert!(alike(&both, &both));
        assert!(alike(&both, &[body(2.0, 0.9), body(200.0, 0.3)]));
        assert!(!alike(&both, &[body(10.0, 0.9), body(80.0, 0.31)]));
        assert!(!alike(&both, &[body(80.0, 0.31)]));
    }

    #[test]
    fn the_first_label_may_change_only_where_it_was_no_clear_one() {
        let labels = |all: &[(u32, f32)]| {
            let scored = all
                .iter()
                .map(|&(label, probability)| ScoredLabel { label, probability });
            Outcome::Classification(scored.collect())
        };
        let clear = labels(&[(1, 0.6), (2, 0.3)]);
        let close = labels(&[(1, 0.46), (2, 0.44)]);
        assert!(alike(&clear, &labels(&[(1, 0.5), (2, 0.4)])).is_ok());
        assert!(alike(&clear, &labels(&[(2, 0.5), (1, 0.4)])).is_err());
        assert!(alike(&close, &labels(&[(2, 0.5), (1, 0.4)])).is_ok());
        assert!(alike(&close, &labels(&[(3, 0.5), (1, 0.4)])).is_err());
        assert!(alike(&close, &Outcome::Detection(Vec::new())).is_err());
    }

    #[cfg(feature = "demo-models")]
    #[test]
    fn other_weights_are_found_out_and_the_same_are_equal() {
        let runtime = Runtime::load(None).unwrap();
        let repository = Repository::embedded().unwrap();
        let options = SessionOptions {
            lanes: 1,
            threads: 1,
        };
        let load = |graph| Backbone::load(&runtime, &repository.backbone, graph, options).unwrap();
        let base = load(&repository.graph);
        let same = agrees(&repository, (&runtime, &base), &base).unwrap();
        assert!(same.contains("equal"), "{same}");
        // A part of some weights is gone.
        let mut damaged = repository.graph.clone();
        let mut bytes = damaged.bytes.into_owned();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 65536].fill(0);
        damaged.bytes = bytes.into();
        let other = load(&damaged);
        let why = agrees(&repository, (&runtime, &base), &other).unwrap_err();
        assert!(why.contains("cosine") || why.contains("head"), "{why}");
    }

    #[test]
    fn pictures_are_of_their_size_and_differ() {
        for size in [[128, 96], [1, 1], [7, 512]] {
            let all = pictures(size);
            assert_eq!(all.len(), PICTURES);
            assert!(
                all.iter()
                    .all(|p| p.len() == (size[0] * size[1] * 3) as usize)
            );
            assert!(size == [1, 1] || all.windows(2).all(|pair| pair[0] != pair[1]));
        }
    }
}
