//! An image that was computed.

use std::time::Instant;

use super::request::Timing;
use crate::{backend::FeatureRow, media::Geometry, trace::Context};

/// A computed image.
#[derive(Debug, Clone)]
pub(super) struct Landed {
    pub(super) row: FeatureRow,
    pub(super) geometry: Geometry,
    pub(super) how: How,
}

/// How an image was computed.
#[derive(Debug, Clone)]
pub(super) struct How {
    pub(super) timing: Timing,
    pub(super) batch_size: usize,
    /// When its batch began.
    pub(super) begun: Option<Instant>,
    /// Its batch in the traces.
    pub(super) batch: Context,
}
