//! The section `[stream]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::server::StreamLimits;

/// `[stream]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Stream {
    /// Most streams of frames at once (`AnalyzeStream`); each is also a call of `limits.calls_in_flight`.
    pub streams: usize,
    /// Most streams at once of one caller.
    pub streams_per_caller: usize,
    /// The part of the threads' time that the rates which streams promise may take together; 0 to 1. A promise beyond it is
    /// refused.
    pub promised_share: f64,
}

impl Default for Stream {
    fn default() -> Self {
        let limits = StreamLimits::default();
        Self {
            streams: limits.streams,
            streams_per_caller: limits.per_caller,
            promised_share: limits.promised_share,
        }
    }
}

impl Stream {
    pub(super) fn limits(&self) -> StreamLimits {
        StreamLimits {
            streams: self.streams,
            per_caller: self.streams_per_caller,
            promised_share: self.promised_share,
        }
    }

    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        match (0.0..=1.0).contains(&self.promised_share) {
            true => Ok(()),
            false => {
                let detail = format!("is {}, but must be from 0 to 1", self.promised_share);
                Err(("stream.promised_share", detail))
            }
        }
    }
}
