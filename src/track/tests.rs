use std::{collections::HashSet, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::task::Rle;

fn found(bbox: [f32; 4], score: f32) -> Detection {
    Detection {
        bbox,
        score,
        label: 0,
        mask: None,
    }
}

/// A box of 40 x 80 around a point.
fn at(x: f32, y: f32) -> Detection {
    found([x - 20.0, y - 40.0, x + 20.0, y + 40.0], 0.9)
}

fn tracker() -> Tracker {
    Tracker::new(Options::default()).unwrap()
}

/// The ids of frames at these seconds.
fn follow(tracker: &mut Tracker, frames: &[(f64, Vec<Detection>)]) -> Vec<Vec<Option<u32>>> {
    let ids = frames
        .iter()
        .map(|(time, found)| tracker.update((time * 1e6) as u64, found).unwrap());
    ids.collect()
}

#[test]
fn an_object_gets_its_id_when_it_is_seen_again_and_keeps_it_through_a_gap() {
    let mut frames: Vec<_> = (0..10)
        .map(|n| (f64::from(n) / 30.0, vec![at(100.0 + 4.0 * n as f32, 100.0)]))
        .collect();
    // Hidden for 0.4 s, it has gone on at 120 pixels a second.
    frames.push((0.7, vec![at(184.0, 100.0)]));
    let ids = follow(&mut tracker(), &frames);
    assert_eq!(ids[0], [None]);
    assert!(ids[1..].iter().all(|ids| *ids == [Some(1)]), "{ids:?}");
}

#[test]
fn gaps_count_in_seconds_not_in_frames() {
    let options = Options {
        lost: Duration::from_millis(500),
        ..Options::default()
    };
    for (fps, gap, same) in [
        (30.0, 0.45, true),
        (30.0, 0.55, false),
        (2.5, 0.45, true),
        (120.0, 0.45, true),
    ] {
        let mut tracker = Tracker::new(options).unwrap();
        let mut frames: Vec<_> = (0..3)
            .map(|n| (f64::from(n) / fps, vec![at(300.0, 200.0)]))
            .collect();
        let last = 2.0 / fps;
        // Frames in which nobody is there.
        let empty = (1..).map(|n| last + f64::from(n) / fps);
        frames.extend(
            empty
                .take_while(|time| *time < last + gap)
                .map(|time| (time, vec![])),
        );
        frames.push((last + gap, vec![at(300.0, 200.0)]));
        frames.push((last + gap + 1.0 / fps, vec![at(300.0, 200.0)]));
        let ids = follow(&mut tracker, &frames);
        let expected = if same { 1 } else { 2 };
        assert_eq!(ids.last().unwrap(), &[Some(expected)], "{fps} fps, {gap} s");
    }
}

#[test]
fn doubtful_detections_go_on_with_an_object_and_begin_none() {
    let mut tracker = tracker();
    let (mut sure, mut doubtful) = (at(100.0, 100.0), at(101.0, 100.0));
    let mut other = at(500.0, 100.0);
    (sure.score, doubtful.score, other.score) = (0.9, 0.2, 0.5);
    let frames = [
        (0.0, vec![sure.clone(), other.clone()]),
        (0.1, vec![sure.clone(), other.clone()]),
        (0.2, vec![doubtful, other.clone()]),
        (0.3, vec![other, sure]),
    ];
    let ids = follow(&mut tracker, &frames);
    assert_eq!(ids[1], [Some(1), None]);
    assert_eq!(ids[2], [Some(1), None]);
    assert_eq!(ids[3], [None, Some(1)]);
}

#[test]
fn what_one_frame_alone_has_seen_takes_no_id() {
    let frames = [
        (0.0, vec![at(100.0, 100.0)]),
        (0.1, vec![at(800.0, 100.0)]),
        (0.2, vec![at(100.0, 100.0)]),
        (0.3, vec![at(100.0, 100.0)]),
    ];
    let ids = follow(&mut tracker(), &frames);
    assert_eq!(ids, [[None], [None], [None], [Some(1)]]);
}

#[test]
fn labels_keep_objects_apart_unless_asked_not_to() {
    let mut other = at(102.0, 100.0);
    other.label = 7;
    let frames = [
        (0.0, vec![at(100.0, 100.0)]),
        (0.1, vec![at(101.0, 100.0)]),
        (0.2, vec![other]),
    ];
    let ids = |per_class| {
        let options = Options {
            per_class,
            ..Options::default()
        };
        follow(&mut Tracker::new(options).unwrap(), &frames)[2][0]
    };
    assert_eq!(ids(true), None);
    assert_eq!(ids(false), Some(1));
}

/// A detection whose mask is the left or right half of its box, in a picture of 200 x 100.
fn half(left: bool, bbox: [f32; 4]) -> Detection {
    let [x0, y0, x1, y1] = bbox.map(|side| side as u32);
    let middle = (x0 + x1) / 2;
    let columns = if left { x0..middle } else { middle..x1 };
    let pixels = (0..200).flat_map(|column| (0..100).map(move |row| (column, row)));
    let inside = pixels.map(|(column, row)| columns.contains(&column) && (y0..y1).contains(&row));
    Detection {
        mask: Some(Rle::from_columns(100, 200, inside)),
        ..found(bbox, 0.9)
    }
}

#[test]
fn masks_tell_apart_what_boxes_do_not() {
    // Two that stand still in one place, but for a pixel, by which boxes would take each for the other.
    let (a, b) = ([50.0, 20.0, 90.0, 80.0], [52.0, 20.0, 92.0, 80.0]);
    let frames = [
        (0.0, vec![half(true, a), half(false, b)]),
        (0.1, vec![half(true, a), half(false, b)]),
        (0.2, vec![half(false, a), half(true, b)]),
    ];
    let ids = follow(&mut tracker(), &frames);
    assert_eq!(ids[2], [ids[1][1], ids[1][0]]);
    let blind = Options {
        mask: 0.0,
        ..Options::default()
    };
    let ids = follow(&mut Tracker::new(blind).unwrap(), &frames);
    assert_eq!(ids[2], ids[1]);
}

#[test]
fn a_frame_that_is_not_later_is_refused_and_changes_nothing() {
    let mut tracker = tracker();
    let there = [at(100.0, 100.0)];
    assert_eq!(tracker.update(5, &there).unwrap(), [None]);
    assert_eq!(tracker.update(9, &there).unwrap(), [Some(1)]);
    for time in [9, 4, 0] {
        let refused = NotLater { time, last: 9 };
        assert_eq!(tracker.update(time, &[]).unwrap_err(), refused);
    }
    assert_eq!(tracker.update(10, &there).unwrap(), [Some(1)]);
    assert_eq!(tracker.update(u64::MAX, &there).unwrap(), [None]);
}

#[test]
fn what_is_kept_is_bounded_whatever_comes() {
    let options = Options {
        most_tracks: 20,
        most_detections: 10,
        ..Options::default()
    };
    let mut tracker = Tracker::new(options).unwrap();
    let mut most = 0;
    for frame in 0..200_u16 {
        // A new place in every second frame: each is confirmed, then lost.
        let x = f32::from(frame / 2) * 700.0;
        let all: Vec<_> = (0..30_u8)
            .map(|n| at(x + 60.0 * f32::from(n), 100.0))
            .collect();
        let ids = tracker.update(u64::from(frame) * 1000 + 1, &all).unwrap();
        assert_eq!(ids.len(), 30);
        assert!(tracker.tracks() <= 20);
        most = most.max(tracker.bytes());
    }
    assert_eq!(tracker.tracks(), 20);
    assert!(most < 20 * 1024, "{most} bytes");
}

#[test]
fn the_largest_frames_that_touch_all_over_end_soon() {
    // Every box meets every other: one group of 300 x 300.
    let mut tracker = tracker();
    let crowd = |shift: f32| -> Vec<_> {
        let place = |n: u16| 100.0 + shift + f32::from(n) * 0.01;
        (0..300).map(|n| at(place(n), 100.0)).collect()
    };
    for frame in 0..4_u8 {
        let ids = tracker
            .update(u64::from(frame) + 1, &crowd(f32::from(frame)))
            .unwrap();
        let distinct: HashSet<_> = ids.iter().flatten().collect();
        assert_eq!(distinct.len(), if frame == 0 { 0 } else { 300 });
    }
}

#[test]
fn once_all_ids_are_given_nothing_gets_another_s() {
    let mut tracker = tracker();
    tracker.given = u32::MAX - 1;
    let frame = [at(100.0, 100.0), at(500.0, 100.0)];
    tracker.update(1, &frame).unwrap();
    for time in 2..5 {
        let ids = tracker.update(time, &frame).unwrap();
        assert_eq!(ids, [Some(u32::MAX), None]);
    }
}

#[test]
fn options_out_of_range_are_named() {
    let complaint = |change: fn(&mut Options)| {
        let mut options = Options::default();
        change(&mut options);
        Tracker::new(options).map_or_else(|error| error.to_string(), |_| String::new())
    };
    assert_eq!(complaint(|_| {}), "");
    assert_eq!(
        complaint(|options| options.high_score = f32::NAN),
        "high_score is NaN, but must be from 0 to 1"
    );
    assert_eq!(
        complaint(|options| options.lost = Duration::from_secs(61)),
        "lost is 61s, but must be at most 60s"
    );
    assert_eq!(
        complaint(|options| options.most_tracks = 0),
        "most_tracks is 0, but must be from 1 to 1000"
    );
}

/// Any number at all, the strange ones often.
fn number() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => -50.0..300.0_f32,
        1 => any::<f32>(),
        1 => prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 0.0]),
    ]
}

fn anything() -> impl Strategy<Value = Detection> {
    let mask = prop::option::weighted(
        0.2,
        (1..4_u32, 1..4_u32).prop_flat_map(|(height, width)| {
            let pixels = prop::collection::vec(any::<bool>(), (height * width) as usize);
            pixels.prop_map(move |pixels| Rle::from_columns(height, width, pixels))
        }),
    );
    let score = prop_oneof![4 => 0.0..1.0_f32, 1 => number()];
    (prop::array::uniform4(number()), score, 0..3_u32, mask).prop_map(
        |(bbox, score, label, mask)| Detection {
            bbox,
            score,
            label,
            mask,
        },
    )
}

/// What a head may give: boxes with an area, so that most of them are followed.
fn plausible() -> impl Strategy<Value = Detection> {
    (
        (0.0..300.0_f32, 0.0..200.0_f32),
        (5.0..80.0_f32, 5.0..80.0_f32),
        0.0..1.0_f32,
        0..2_u32,
    )
        .prop_map(|((x, y), (width, height), score, label)| Detection {
            label,
            ..found([x, y, x + width, y + height], score)
        })
}

fn frames(
    one: impl Strategy<Value = Detection>,
    step: impl Strategy<Value = u64>,
) -> impl Strategy<Value = Vec<(u64, Vec<Detection>)>> {
    prop::collection::vec((step, prop::collection::vec(one, 0..12)), 1..20)
}

proptest! {
    /// Whatever comes: an id or none for each detection, no id twice in a frame, none to what has no box or score, and
    /// none that was another's.
    #[test]
    fn anything_is_answered_and_ids_are_unique(
        frames in frames(anything(), any::<u64>()),
        per_class: bool,
    ) {
        let mut tracker = Tracker::new(Options { per_class, new_score: 0.3, ..Options::default() }).unwrap();
        let (mut last, mut highest) = (None, 0);
        for (time, found) in frames {
            let answer = tracker.update(time, &found);
            let Ok(ids) = answer else {
                prop_assert!(last.is_some_and(|last| time <= last));
                continue;
            };
            prop_assert!(last.is_none_or(|last| time > last));
            last = Some(time);
            prop_assert_eq!(ids.len(), found.len());
            let given: Vec<u32> = ids.iter().copied().flatten().collect();
            let distinct: HashSet<_> = given.iter().collect();
            prop_assert_eq!(distinct.len(), given.len());
            for (id, one) in ids.iter().zip(&found).filter(|(id, _)| id.is_some()) {
                prop_assert!(one.bbox.iter().all(|side| side.is_finite()) && one.score >= 0.1, "{:?} for {:?}", id, one);
            }
            // New ids count on from the last one that was given.
            let mut new: Vec<u32> = given.into_iter().filter(|id| *id > highest).collect();
            new.sort_unstable();
            prop_assert!(new.iter().enumerate().all(|(n, id)| *id == highest + 1 + n as u32));
            highest += new.len() as u32;
        }
    }

    /// The order of a frame's detections says nothing.
    #[test]
    fn order_does_not_matter(frames in frames(plausible(), 10_000..200_000_u64), turn in 0..12_usize) {
        let (mut one, mut other) = (tracker(), tracker());
        let mut time = 0;
        for (step, found) in frames {
            time += step;
            let ids = one.update(time, &found).unwrap();
            let order: Vec<usize> = (0..found.len()).map(|n| (n * 7 + turn) % found.len()).collect();
            prop_assume!(order.iter().collect::<HashSet<_>>().len() == found.len());
            let turned: Vec<_> = order.iter().map(|&n| found[n].clone()).collect();
            let turned_ids = other.update(time, &turned).unwrap();
            for (place, &n) in order.iter().enumerate() {
                prop_assert_eq!(turned_ids[place], ids[n]);
            }
        }
    }

    /// When the first frame was says nothing, only what lies between frames.
    #[test]
    fn only_elapsed_time_counts(frames in frames(plausible(), 10_000..200_000_u64), start in 0..u64::from(u32::MAX)) {
        let (mut one, mut other) = (tracker(), tracker());
        let mut time = 0;
        for (step, found) in frames {
            time += step;
            prop_assert_eq!(one.update(time, &found).unwrap(), other.update(start + time, &found).unwrap());
        }
    }
}
