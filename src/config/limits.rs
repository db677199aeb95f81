//! The section `[limits]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    engine::EngineConfig,
    server::{LONE_SHARE, ServerConfig},
};

/// `[limits]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest request in bytes.
    pub request_bytes: usize,
    /// Largest response in bytes.
    pub response_bytes: usize,
    /// Largest encoded image in bytes.
    pub image_bytes: usize,
    /// Most pixels of an image.
    pub image_pixels: u64,
    /// Longest side of an image in pixels.
    pub image_side: u32,
    /// Most frames of a clip.
    pub frames: usize,
    /// Most calls under way at once.
    pub calls_in_flight: usize,
    /// Most bytes of requests in arrival and of answers that wait for their readers, over all calls. A lone caller may hold
    /// two thirds of them.
    pub transport_bytes: usize,
    /// Lets a server start whose settings allow it more memory than its control group or machine has.
    pub overcommit: bool,
    /// Seconds for a request to arrive whole.
    pub read_seconds: u64,
    /// Seconds that a caller may go without reading any of its answer.
    pub write_seconds: u64,
    /// Most images and frames inside at once.
    pub images_in_flight: usize,
    /// Most bytes of images inside at once.
    pub bytes_in_flight: usize,
    /// Most bytes that decoding holds at once. An image that needs more by itself is refused.
    pub decode_bytes: u64,
    /// Most bytes of features and results at once, from a call's beginning to its answer. A call that needs more by itself
    /// is refused. A lone caller may hold two thirds of them.
    pub result_bytes: u64,
    /// What a call's images may cost to decode however few bytes they have, in pixels of a plain JPEG.
    pub free_pixels: u64,
    /// What they may cost for each of their bytes beyond that. Photographs have less than 20 pixels a byte.
    pub pixels_per_byte: u64,
    /// Deadline in milliseconds of calls that bring none; 0 for none.
    pub default_deadline_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        let (server, engine) = (ServerConfig::default(), EngineConfig::default());
        Self {
            request_bytes: server.max_request_bytes,
            response_bytes: server.max_response_bytes,
            image_bytes: engine.media.max_bytes,
            image_pixels: engine.media.max_pixels,
            image_side: engine.media.max_side,
            frames: engine.max_frames,
            calls_in_flight: server.transport.calls,
            transport_bytes: server.transport.bytes,
            overcommit: false,
            read_seconds: server.transport.read.as_secs(),
            write_seconds: server.transport.write.as_secs(),
            images_in_flight: engine.admission.images,
            bytes_in_flight: engine.admission.bytes,
            decode_bytes: engine.admission.decode_bytes,
            result_bytes: engine.admission.result_bytes,
            free_pixels: engine.admission.free_pixels,
            pixels_per_byte: engine.admission.pixels_per_byte,
            default_deadline_ms: 0,
        }
    }
}

impl Limits {
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let at_least_one = [
            ("limits.request_bytes", self.request_bytes),
            ("limits.response_bytes", self.response_bytes),
            ("limits.image_bytes", self.image_bytes),
            ("limits.frames", self.frames),
            ("limits.images_in_flight", self.images_in_flight),
            ("limits.bytes_in_flight", self.bytes_in_flight),
            ("limits.decode_bytes", self.decode_bytes as usize),
            ("limits.result_bytes", self.result_bytes as usize),
            ("limits.calls_in_flight", self.calls_in_flight),
            ("limits.read_seconds", self.read_seconds as usize),
            ("limits.write_seconds", self.write_seconds as usize),
        ];
        if let Some((path, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return Err((path, "is 0, but must be at least 1".to_owned()));
        }
        // Beyond an hour or so times are mistakes, and beyond some thousand years they overflow.
        for (path, seconds) in [
            ("limits.read_seconds", self.read_seconds),
            ("limits.write_seconds", self.write_seconds),
        ] {
            if seconds > 86_400 {
                return Err((path, format!("is {seconds}, but must be at most 86400")));
            }
        }
        for (path, bytes) in [
            ("limits.request_bytes", self.request_bytes),
            ("limits.response_bytes", self.response_bytes),
        ] {
            let most = (self.transport_bytes as f64 * LONE_SHARE) as usize;
            if bytes > most {
                let detail = format!(
                    "is {bytes}, but one caller may have at most {most} under way, two thirds of \
                     limits.transport_bytes"
                );
                return Err((path, detail));
            }
        }
        Ok(())
    }
}
