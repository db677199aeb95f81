//! Where an object is and how fast, by what was seen of it: a Kalman filter in continuous time.
//!
//! ByteTrack's and BoT-SORT's filters have no correlation between the axes, so each axis is a filter of its own, of a
//! position and a velocity. Their noises, given for each frame of 1/30 s and in sizes of the object, are turned into
//! densities over time: predicting once over a second is the same as thirty times over a thirtieth.

use super::boxes::Rect;

/// How far a detection's side lies from the object's, in sizes (standard deviation; ByteTrack: 1/20).
const SEEN: f64 = 0.05;
/// How fast an object may be when it is first seen, in sizes a second (standard deviation).
const FIRST_SPEED: f64 = 2.0;
/// How its speed changes, in sizes a second over a second (ByteTrack's 1/160 for each frame is 1.0).
const SHOVE: f64 = 1.5;
/// How its extent changes, in sizes over a second.
const GROWTH: f64 = 0.4;
/// Most that a prediction is held to be unsure, in sizes: beyond it, anything would do.
const MOST_UNSURE: f64 = 1.0;

/// One coordinate.
#[derive(Debug, Clone, Copy)]
struct Axis {
    position: f64,
    velocity: f64,
    /// Variances of both, and what they have in common.
    of_position: f64,
    common: f64,
    of_velocity: f64,
}

impl Axis {
    fn at(position: f64, size: f64) -> Self {
        Self {
            position,
            velocity: 0.0,
            of_position: (SEEN * size).powi(2),
            common: 0.0,
            of_velocity: (FIRST_SPEED * size).powi(2),
        }
    }

    /// After `seconds` in which white noise pushes it.
    fn after(self, seconds: f64, size: f64) -> Self {
        let shove = (SHOVE * size).powi(2) * seconds;
        let Self {
            of_position,
            common,
            of_velocity,
            ..
        } = self;
        Self {
            position: self.position + self.velocity * seconds,
            velocity: self.velocity,
            of_position: of_position
                + seconds * (2.0 * common + seconds * (of_velocity + shove / 3.0)),
            common: common + seconds * (of_velocity + shove / 2.0),
            of_velocity: of_velocity + shove,
        }
    }

    /// Seen at `position`.
    fn seen(self, position: f64, size: f64) -> Self {
        let sum = self.of_position + (SEEN * size).powi(2);
        let (gain, push) = (self.of_position / sum, self.common / sum);
        let off = position - self.position;
        Self {
            position: self.position + gain * off,
            velocity: self.velocity + push * off,
            of_position: self.of_position * (1.0 - gain),
            common: self.common * (1.0 - gain),
            of_velocity: self.of_velocity - push * self.common,
        }
    }
}

/// The filter of one object, as it was when it was last seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Motion {
    center: [Axis; 2],
    extent: [f64; 2],
    /// Variance of the extents, in sizes.
    of_extent: f64,
}

/// Where an object should be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    pub(super) rect: Rect,
    /// How unsure its centre is: a standard deviation in pixels.
    pub(super) unsure: f64,
}

impl Motion {
    /// Of what is seen for the first time.
    pub(super) fn new(rect: &Rect) -> Self {
        let size = rect.size();
        Self {
            center: rect.center().map(|position| Axis::at(position, size)),
            extent: rect.extent(),
            of_extent: SEEN.powi(2),
        }
    }

    fn size(&self) -> f64 {
        (self.extent[0] * self.extent[1]).sqrt()
    }

    /// `seconds` later.
    fn after(self, seconds: f64) -> Self {
        let size = self.size();
        Self {
            center: self.center.map(|axis| axis.after(seconds, size)),
            of_extent: self.of_extent + GROWTH.powi(2) * seconds,
            ..self
        }
    }

    /// Seen `seconds` later.
    pub(super) fn seen(self, seconds: f64, rect: &Rect) -> Self {
        let then = self.after(seconds);
        let (size, center, extent) = (then.size(), rect.center(), rect.extent());
        let gain = then.of_extent / (then.of_extent + SEEN.powi(2));
        Self {
            center: [0, 1].map(|axis| then.center[axis].seen(center[axis], size)),
            extent: [0, 1]
                .map(|side| then.extent[side] + gain * (extent[side] - then.extent[side])),
            of_extent: then.of_extent * (1.0 - gain),
        }
    }

    /// Where it should be `seconds` later.
    pub(super) fn expected(&self, seconds: f64) -> Expected {
        let then = self.after(seconds);
        let [x, y] = then.center;
        let unsure = ((x.of_position + y.of_position) / 2.0).sqrt();
        Expected {
            rect: Rect::around([x.position, y.position], then.extent),
            unsure: unsure.min(MOST_UNSURE * then.size()),
        }
    }
}
