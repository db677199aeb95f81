//! Which detections of one frame are objects of the frames before: pure, without a clock, a lock or input and output.
//!
//! ```text
//! detections of a frame, its time -> Tracker -> an id for each, or none
//! ```
//!
//! What it takes from whom:
//! - two stages, sure detections first and doubtful ones for what is left: ByteTrack (Zhang et al., ECCV 2022);
//! - momentum, recovery by the last observation, and the update along a straight line after a gap: OC-SORT (Cao et al.,
//!   CVPR 2023);
//! - boxes widened while positions are unsure: after the buffered IoU of C-BIoU (Yang et al., WACV 2023), the buffer
//!   being what the motion's own uncertainty asks for.
//!
//! Whatever these count in frames is counted in seconds here, so that rates may change and frames may be missing. An id
//! is given when a second detection confirms the first, and never again in a tracker's life. The box of a detection
//! stays its own: what the filter makes of it only decides which detections belong together.

mod assign;
mod boxes;
mod motion;
mod options;
mod stages;
#[cfg(test)]
mod tests;
mod tracked;

use thiserror::Error;

pub use options::{Options, OptionsError};

use crate::task::Detection;
use tracked::Tracked;

/// A frame that is not later than the one before it: it was not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the frame is of {time} us, and must be later than the one before it, of {last} us")]
pub struct NotLater {
    /// The frame's time in microseconds.
    pub time: u64,
    /// That of the last frame that was looked at.
    pub last: u64,
}

/// Follows objects through the frames of one camera.
#[derive(Debug, Clone)]
pub struct Tracker {
    options: Options,
    tracks: Vec<Tracked>,
    last: Option<u64>,
    given: u32,
}

impl Tracker {
    /// A tracker that has seen nothing yet; its first id is 1.
    ///
    /// # Errors
    /// The option that is out of its range.
    pub fn new(options: Options) -> Result<Self, OptionsError> {
        options.check()?;
        Ok(Self {
            options,
            tracks: Vec::new(),
            last: None,
            given: 0,
        })
    }

    /// The ids of a frame's detections, in their order; `None` for what is no confirmed object (yet).
    ///
    /// `time` counts microseconds from any instant. It should be when the frame was taken, not when it came. What is not
    /// finite, has no area, or is beyond [`Options::most_detections`] by score gets no id and leaves no trace. The ids
    /// depend on the detections, not on their order.
    ///
    /// # Errors
    /// The frame is not later than the last: nothing of it was looked at.
    pub fn update(
        &mut self,
        time: u64,
        detections: &[Detection],
    ) -> Result<Vec<Option<u32>>, NotLater> {
        if let Some(last) = self.last.filter(|&last| time <= last) {
            return Err(NotLater { time, last });
        }
        self.last = Some(time);
        let lost = self.options.lost_micros();
        self.tracks.retain(|track| time - track.seen() <= lost);
        let options = &self.options;
        let looked = stages::looked(detections, options);
        let matches = stages::matches(time, &looked, &self.tracks, options);
        let mut ids = vec![None; detections.len()];
        for &(track, at) in &matches.pairs {
            let (track, one) = (&mut self.tracks[track], &looked[at]);
            track.observe(time, one.rect, one.detection, options);
            // Seen twice: that confirms it. Nothing gets an id once all are given.
            if track.id().is_none()
                && let Some(next) = self.given.checked_add(1)
            {
                self.given = next;
                track.give(next);
            }
            ids[one.index] = track.id();
        }
        // What one frame alone has seen was nothing.
        self.tracks.retain_mut(|track| {
            let missed = track.seen() < time;
            if missed {
                track.miss();
            }
            !missed || track.confirmed()
        });
        let room = options.most_tracks.saturating_sub(self.tracks.len());
        for one in matches.births.iter().take(room).map(|&at| &looked[at]) {
            self.tracks
                .push(Tracked::new(time, one.rect, one.detection));
        }
        Ok(ids)
    }

    /// Number of objects that are followed, unconfirmed and lost ones too.
    #[must_use]
    pub fn tracks(&self) -> usize {
        self.tracks.len()
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let tracks = self.tracks.iter().map(Tracked::bytes);
        size_of::<Self>() + tracks.sum::<usize>()
    }
}
