use ndarray::{Array1, Array2};
use proptest::prelude::*;

use super::*;
use crate::media::{Filter, Preprocess, ResizeMode, geometry};

fn preprocess(mode: ResizeMode) -> Preprocess {
    Preprocess {
        mode,
        filter: Filter::Bilinear,
        pad: 0,
        height: 40,
        width: 56,
    }
}

/// What a head gives: boxes by corner and extent, a few of which are inside out; scores with ties; three labels.
type Row = ((f32, f32), (f32, f32), u8, i64);

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let corner = (-30.0..60.0_f32, -30.0..60.0_f32);
    let extent = (-2.0..50.0_f32, -2.0..50.0_f32);
    proptest::collection::vec((corner, extent, 0..20_u8, 0..3_i64), 0..40)
}

struct Given {
    boxes: Array2<f32>,
    scores: Array1<f32>,
    labels: Array1<i64>,
}

impl Given {
    fn new(rows: &[Row]) -> Self {
        let sides = rows
            .iter()
            .flat_map(|((x, y), (w, h), ..)| [*x, *y, x + w, y + h]);
        Self {
            boxes: Array2::from_shape_vec((rows.len(), 4), sides.collect()).expect("4 sides"),
            scores: rows.iter().map(|row| f32::from(row.2) / 20.0).collect(),
            labels: rows.iter().map(|row| row.3).collect(),
        }
    }

    fn detect(
        &self,
        threshold: f32,
        nms_iou: Option<f32>,
        most: usize,
        place: &Geometry,
    ) -> Vec<Detection> {
        let outputs = DetectionOutputs {
            boxes: self.boxes.view(),
            scores: self.scores.view(),
            labels: self.labels.view(),
            masks: None,
        };
        let params = DetectionParams {
            score_threshold: threshold,
            nms_iou,
            max_detections: most,
            mask: None,
            mask_threshold: 0.5,
        };
        detect(&outputs, &params, place, 3).expect("the outputs keep the contract")
    }
}

fn overlap(a: &Detection, b: &Detection) -> f64 {
    let corner = |d: &Detection, low: usize| f64::from(d.bbox[low]);
    let along = |low: usize| {
        let end = corner(a, low + 2).min(corner(b, low + 2));
        (end - corner(a, low).max(corner(b, low))).max(0.0)
    };
    let area = |d: &Detection| (corner(d, 2) - corner(d, 0)) * (corner(d, 3) - corner(d, 1));
    let both = along(0) * along(1);
    both / (area(a) + area(b) - both)
}

proptest! {
    /// By what a caller can see: of all that the picture shows, exactly what a better one does not stand for is left
    /// out.
    #[test]
    fn answers_are_the_best_that_the_picture_shows(
        rows in rows(),
        (width, height) in (1..90_u32, 1..90_u32),
        mode in prop_oneof![Just(ResizeMode::Letterbox), Just(ResizeMode::Stretch), Just(ResizeMode::CenterCrop { fraction: 0.8 })],
        threshold in 0.0..0.6_f32,
        nms_iou in 0.0..1.0_f32,
    ) {
        let place = geometry(width, height, &preprocess(mode));
        let given = Given::new(&rows);
        let shown = given.detect(threshold, None, usize::MAX, &place);
        let found = given.detect(threshold, Some(nms_iou), usize::MAX, &place);
        let most = [width as f32, height as f32];
        for d in &shown {
            prop_assert!(d.score >= threshold && d.score > 0.0);
            prop_assert!(0.0 <= d.bbox[0] && d.bbox[0] < d.bbox[2] && d.bbox[2] <= most[0]);
            prop_assert!(0.0 <= d.bbox[1] && d.bbox[1] < d.bbox[3] && d.bbox[3] <= most[1]);
        }
        prop_assert!(shown.is_sorted_by(|a, b| a.score >= b.score));
        // Greedily, from what is shown alone.
        let mut expected: Vec<Detection> = Vec::new();
        for d in shown {
            let rival = |better: &Detection| better.label == d.label && overlap(better, &d) > f64::from(nms_iou);
            if !expected.iter().any(rival) {
                expected.push(d);
            }
        }
        prop_assert_eq!(&found, &expected);
        for most in [1, 2, 5, 11] {
            let fewer = given.detect(threshold, Some(nms_iou), most, &place);
            prop_assert_eq!(&fewer[..], &found[..most.min(found.len())]);
        }
    }
}

#[test]
fn what_breaks_the_contract_is_named() {
    let place = geometry(56, 40, &preprocess(ResizeMode::Stretch));
    let complaint = |change: fn(&mut Given)| {
        let mut given = Given::new(&[
            ((1.0, 1.0), (9.0, 9.0), 10, 2),
            ((0.0, 0.0), (1.0, 1.0), 0, 0),
        ]);
        change(&mut given);
        let outputs = DetectionOutputs {
            boxes: given.boxes.view(),
            scores: given.scores.view(),
            labels: given.labels.view(),
            masks: None,
        };
        let params = DetectionParams {
            score_threshold: 0.9,
            nms_iou: None,
            max_detections: 1,
            mask: None,
            mask_threshold: 0.5,
        };
        detect(&outputs, &params, &place, 3)
            .map_or_else(|error| error.to_string(), |_| String::new())
    };
    assert_eq!(complaint(|_| {}), "");
    assert_eq!(
        complaint(|given| given.scores[1] = 1.5),
        "scores: holds 1.5, but must be probabilities, from 0 to 1"
    );
    assert_eq!(
        complaint(|given| given.scores[1] = f32::NAN),
        "scores: holds NaN, but must be probabilities, from 0 to 1"
    );
    assert_eq!(
        complaint(|given| given.boxes[[0, 3]] = f32::INFINITY),
        "boxes: holds a value that is not finite"
    );
    assert_eq!(
        complaint(|given| given.labels[0] = 3),
        "labels: holds the label 3, but the manifest has 3 labels, numbered from 0"
    );
    // A row of score 0 fills up: whatever it says, it says nothing.
    assert_eq!(complaint(|given| given.labels[1] = -1), "");
    assert_eq!(complaint(|given| given.boxes[[1, 0]] = f32::NAN), "");
}
