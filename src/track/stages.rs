//! Which detection goes with which track, stage by stage; each stage sees what the ones before have left.

use super::{
    assign::{Candidate, best_pairs},
    boxes::Rect,
    options::Options,
    tracked::Tracked,
};
use crate::task::Detection;

/// One of a frame's detections that can be followed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Looked<'a> {
    /// Where it stands in the frame.
    pub(super) index: usize,
    pub(super) rect: Rect,
    pub(super) detection: &'a Detection,
}

/// The detections of a frame that are looked at, best first, whatever the order they came in.
pub(super) fn looked<'a>(detections: &'a [Detection], options: &Options) -> Vec<Looked<'a>> {
    let mut all: Vec<_> = (detections.iter().enumerate())
        .filter(|(_, detection)| (options.low_score..=f32::INFINITY).contains(&detection.score))
        .filter_map(|(index, detection)| {
            let rect = Rect::new(detection.bbox)?;
            Some(Looked {
                index,
                rect,
                detection,
            })
        })
        .collect();
    all.sort_by(|a, b| {
        let (one, other) = (a.detection, b.detection);
        let sides = || {
            let pairs = one.bbox.iter().zip(&other.bbox);
            pairs.fold(std::cmp::Ordering::Equal, |order, (a, b)| {
                order.then(a.total_cmp(b))
            })
        };
        let by_score = other.score.total_cmp(&one.score);
        by_score.then_with(sides).then(one.label.cmp(&other.label))
    });
    all.truncate(options.most_detections);
    all
}

/// What became of a frame's detections, by their place among those that are looked at.
#[derive(Debug, Default)]
pub(super) struct Matches {
    /// Tracks and their detections.
    pub(super) pairs: Vec<(usize, usize)>,
    /// What may be the first of an object.
    pub(super) births: Vec<usize>,
}

/// Goes through the stages.
pub(super) fn matches(
    time: u64,
    looked: &[Looked<'_>],
    tracks: &[Tracked],
    options: &Options,
) -> Matches {
    let mut stage = Stage {
        looked,
        tracks,
        options,
        free_tracks: (0..tracks.len()).collect(),
        free: (0..looked.len()).collect(),
        pairs: Vec::new(),
    };
    let expected: Vec<_> = tracks.iter().map(|track| track.expected(time)).collect();
    let sure = |one: &Looked<'_>| one.detection.score >= options.high_score;
    let least = f64::from(options.least_iou);
    let overlap = |track: usize, one: &Looked<'_>| {
        let expected = &expected[track];
        let overlap = expected.rect.iou_within(&one.rect, expected.unsure);
        (overlap >= least).then(|| overlap + stage_bonus(&tracks[track], one, options))
    };
    stage.pair(|track| track.confirmed(), sure, overlap);
    // Doubtful ones only go on with what is there: they begin nothing, and by where they are alone.
    let least_low = f64::from(options.least_iou_low);
    stage.pair(
        |track| track.confirmed(),
        |one| !sure(one),
        |track, one| {
            let expected = &expected[track];
            let overlap = expected.rect.iou_within(&one.rect, expected.unsure);
            (overlap >= least_low).then_some(overlap)
        },
    );
    stage.pair(|track| !track.confirmed(), sure, overlap);
    // Who stood still behind something is where it was (OC-SORT's observation-centred recovery).
    stage.pair(
        |track| track.confirmed(),
        sure,
        |track, one| {
            let overlap = tracks[track].rect().iou(&one.rect);
            (overlap >= least).then_some(overlap)
        },
    );
    let births = stage.free.iter().copied();
    Matches {
        births: births
            .filter(|&at| looked[at].detection.score >= options.new_score)
            .collect(),
        pairs: stage.pairs,
    }
}

/// What speaks for a pair beside its overlap.
fn stage_bonus(track: &Tracked, one: &Looked<'_>, options: &Options) -> f64 {
    let momentum = f64::from(options.momentum) * track.momentum(one.rect.center());
    let masks = match (track.mask(), &one.detection.mask) {
        (Some(before), Some(now)) if options.mask > 0.0 => {
            let (from, to) = (track.rect().center(), one.rect.center());
            let shift = [0, 1].map(|axis| (to[axis] - from[axis]).round() as i64);
            f64::from(options.mask) * before.iou_moved(now, shift)
        }
        _ => 0.0,
    };
    momentum + masks
}

/// What is left between the stages.
struct Stage<'a> {
    looked: &'a [Looked<'a>],
    tracks: &'a [Tracked],
    options: &'a Options,
    free_tracks: Vec<usize>,
    free: Vec<usize>,
    pairs: Vec<(usize, usize)>,
}

impl Stage<'_> {
    /// Pairs those of the free tracks and detections that are meant, by what `worth` says of each pair.
    fn pair(
        &mut self,
        of_tracks: impl Fn(&Tracked) -> bool,
        of_detections: impl Fn(&Looked<'_>) -> bool,
        worth: impl Fn(usize, &Looked<'_>) -> Option<f64>,
    ) {
        let rows: Vec<usize> = self
            .free_tracks
            .iter()
            .copied()
            .filter(|&track| of_tracks(&self.tracks[track]))
            .collect();
        let columns: Vec<usize> = self
            .free
            .iter()
            .copied()
            .filter(|&at| of_detections(&self.looked[at]))
            .collect();
        let mut candidates = Vec::new();
        for (row, &track) in rows.iter().enumerate() {
            for (column, &at) in columns.iter().enumerate() {
                let one = &self.looked[at];
                if self.options.per_class && one.detection.label != self.tracks[track].label() {
                    continue;
                }
                if let Some(weight) = worth(track, one) {
                    candidates.push(Candidate {
                        row,
                        column,
                        weight,
                    });
                }
            }
        }
        for (row, column) in best_pairs(&candidates, rows.len(), columns.len()) {
            let (track, at) = (rows[row], columns[column]);
            self.free_tracks.retain(|&other| other != track);
            self.free.retain(|&other| other != at);
            self.pairs.push((track, at));
        }
    }
}
