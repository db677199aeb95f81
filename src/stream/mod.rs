//! Flows of frames: which frame is computed next, which is dropped and with what last word, which frames make a clip, and
//! how many streams there may be.
//!
//! Pure: no clock, no lock, no I/O. Times are given as the time since a stream's begin, frames' content is whatever the
//! caller wants it to be.
//!
//! ```text
//! offer -> [checked, thinned] -> waiting -> next -> begun -> finished
//!               |                   |                 |
//!               v                   v                 v
//!          last word           last word          last word      (exactly one for each frame)
//! ```

mod account;
mod due;
mod intake;
mod order;
mod promise;
mod ring;

pub use account::{Account, Outcome, Reason};
pub use due::Due;
pub use intake::{Detail, Frame, Intake, Policy, Rules, Word};
pub use order::Order;
pub use promise::{Load, PromiseLimits, Promises, Refused};
pub use ring::{Entered, Ring, Shape};
