//! What a caller may choose.

use std::time::Duration;

use thiserror::Error;

/// An option that is out of its range.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{option} {problem}")]
pub struct OptionsError {
    /// The field of [`Options`].
    pub option: &'static str,
    /// What it is and what it must be.
    pub problem: String,
}

/// How objects are followed. The defaults are those of the papers where they have one, at their 30 frames a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Detections of at least this score are looked at first (ByteTrack: 0.6).
    pub high_score: f32,
    /// Detections of at least this score may go on with a confirmed track that the first have not (ByteTrack: 0.1).
    pub low_score: f32,
    /// Least score of a detection that begins a track (ByteTrack: `high_score` + 0.1).
    pub new_score: f32,
    /// How long a track that is not seen is kept (ByteTrack and OC-SORT: 30 frames, which is 1 s); up to a minute.
    pub lost: Duration,
    /// Least overlap, over the union, of a sure detection with where a track should be (OC-SORT: 0.3).
    pub least_iou: f32,
    /// The same for doubtful detections (ByteTrack: 0.5).
    pub least_iou_low: f32,
    /// How much going on in one direction counts beside an overlap of 1 (OC-SORT: 0.2).
    pub momentum: f32,
    /// Over how long a direction is measured (OC-SORT: 3 frames, which is 0.1 s).
    pub momentum_span: Duration,
    /// How much an overlap of masks counts beside one of boxes, where both have masks: enough to tell two apart whose
    /// boxes fit alike.
    pub mask: f32,
    /// Whether a track keeps to one label.
    pub per_class: bool,
    /// Most tracks that are kept; what would begin another gets no id.
    pub most_tracks: usize,
    /// Most detections of a frame that are looked at, best first.
    pub most_detections: usize,
}

/// Most that counts may be: the time of an assignment grows with their cube.
const MOST: usize = 1000;

/// Longest that [`Options::lost`] may be.
const LONGEST: Duration = Duration::from_secs(60);

impl Default for Options {
    fn default() -> Self {
        Self {
            high_score: 0.6,
            low_score: 0.1,
            new_score: 0.7,
            lost: Duration::from_secs(1),
            least_iou: 0.3,
            least_iou_low: 0.5,
            momentum: 0.2,
            momentum_span: Duration::from_millis(100),
            mask: 0.2,
            per_class: true,
            most_tracks: 500,
            most_detections: 300,
        }
    }
}

impl Options {
    /// Whether every option is in its range.
    pub(super) fn check(&self) -> Result<(), OptionsError> {
        let shares = [
            ("high_score", self.high_score),
            ("low_score", self.low_score),
            ("new_score", self.new_score),
            ("least_iou", self.least_iou),
            ("least_iou_low", self.least_iou_low),
            ("momentum", self.momentum),
            ("mask", self.mask),
        ];
        for (option, value) in shares {
            if !(0.0..=1.0).contains(&value) {
                let problem = format!("is {value}, but must be from 0 to 1");
                return Err(OptionsError { option, problem });
            }
        }
        for (option, value) in [("lost", self.lost), ("momentum_span", self.momentum_span)] {
            if value > LONGEST {
                let problem = format!("is {value:?}, but must be at most {LONGEST:?}");
                return Err(OptionsError { option, problem });
            }
        }
        let counts = [
            ("most_tracks", self.most_tracks),
            ("most_detections", self.most_detections),
        ];
        for (option, value) in counts {
            if !(1..=MOST).contains(&value) {
                let problem = format!("is {value}, but must be from 1 to {MOST}");
                return Err(OptionsError { option, problem });
            }
        }
        Ok(())
    }

    pub(super) fn lost_micros(&self) -> u64 {
        micros(self.lost)
    }

    pub(super) fn momentum_micros(&self) -> u64 {
        micros(self.momentum_span)
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
