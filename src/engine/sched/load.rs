//! What waits takes.

use std::ops::{Add, AddAssign, SubAssign};

/// What something that waits takes of the engine's threads, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Load {
    /// Decoding and resizing.
    pub(crate) decode: f64,
    /// Everything after that.
    pub(crate) rest: f64,
}

impl Load {
    /// That of something that needs no decoding.
    pub(crate) fn rest(seconds: f64) -> Self {
        Self {
            decode: 0.0,
            rest: seconds,
        }
    }

    pub(crate) fn total(self) -> f64 {
        self.decode + self.rest
    }

    /// A part of it.
    pub(crate) fn part(self, part: f64) -> Self {
        Self {
            decode: self.decode * part,
            rest: self.rest * part,
        }
    }
}

impl Add for Load {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl AddAssign for Load {
    fn add_assign(&mut self, other: Self) {
        self.decode += other.decode;
        self.rest += other.rest;
    }
}

impl SubAssign for Load {
    fn sub_assign(&mut self, other: Self) {
        self.decode -= other.decode;
        self.rest -= other.rest;
    }
}
