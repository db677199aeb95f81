//! Who is next, how many of them together, and what a thread does: decisions alone.
//!
//! Pure: no lock, no clock, nothing of a device. Moments are passed in, what is known is passed in, and a decision is a
//! value; [`Queue`](super::queue) holds the state under its one lock, asks, and does what was decided. Every rule is a
//! test of its own with an invented clock.
//!
//! - [`rank`]: classes, flows, deadlines
//! - [`fair`]: fair shares between callers and between their heads
//! - [`batch`]: how large a batch is
//! - [`turns`]: long steps beside short ones
//! - [`decide`]: what a thread does next
//! - [`estimate`]: the time to an answer, of which [`load`] is the part that waits
//! - [`tuning`]: every number that was measured, and what was measured

pub(super) mod batch;
pub(super) mod decide;
pub(super) mod estimate;
pub(super) mod fair;
pub(super) mod load;
pub(super) mod rank;
pub(super) mod tuning;
pub(super) mod turns;
