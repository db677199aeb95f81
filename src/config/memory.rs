//! The most memory that a server with these settings takes, from bounds that it keeps.

use super::Config;
use crate::{
    cores,
    server::{CALL_BYTES, CONNECTION_BYTES, STREAM_BYTES},
};

/// The program, ONNX Runtime, its threads and what the allocator keeps of freed memory: an allowance, measured on the demo
/// models.
const BASE: u64 = 160 << 20;

/// What a lane takes beside the models: an allowance too.
const LANE: u64 = 16 << 20;

/// Largest input of a backbone that is counted with, pixels a side.
const INPUT: u32 = 1024;

/// Bytes by what they are for, and the setting that bounds them.
#[derive(Debug, Clone)]
pub struct WorstCase {
    /// What for, the settings, bytes.
    pub parts: Vec<(&'static str, &'static str, u64)>,
}

impl WorstCase {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        let bytes = self.parts.iter().map(|(_, _, bytes)| *bytes);
        bytes.fold(0, u64::saturating_add)
    }
}

impl Config {
    /// The most memory in bytes that the server takes of its host, with models of `model_bytes` in the repository. Weights
    /// count twice: a new version is loaded before the old one goes.
    #[must_use]
    pub fn worst_case(&self, model_bytes: u64) -> WorstCase {
        let lanes = match self.engine.lanes {
            0 => cores::count(self.engine.cores),
            lanes => lanes,
        };
        let threads = lanes + self.engine.workers;
        let engine = self.engine().worst_case(threads, [INPUT, INPUT]);
        let server = self.server();
        let transport = &server.transport;
        let headers = u64::from(transport.header_bytes);
        let parts = vec![
            ("program and library", "", BASE),
            ("models", "repository.path", model_bytes.saturating_mul(2)),
            ("lanes", "engine.lanes", lanes as u64 * LANE),
            (
                "images as they came",
                "limits.bytes_in_flight",
                engine.images,
            ),
            ("decoding", "limits.decode_bytes", engine.decoding),
            ("images for the backbone", "engine.max_batch", engine.ready),
            (
                "features and results",
                "limits.result_bytes",
                engine.results,
            ),
            ("kept features", "engine.cache_bytes", engine.cache),
            (
                "requests in arrival, unread answers",
                "limits.transport_bytes",
                transport.bytes as u64,
            ),
            (
                "calls",
                "limits.calls_in_flight",
                transport.calls as u64 * (CALL_BYTES + headers),
            ),
            (
                "connections",
                "server.max_connections",
                transport.connections as u64 * CONNECTION_BYTES,
            ),
            (
                "streams of frames",
                "stream.streams",
                self.stream.streams as u64 * STREAM_BYTES,
            ),
        ];
        WorstCase { parts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_fit_the_memory_that_the_deployments_give() {
        let worst = Config::default().worst_case(64 << 20);
        assert!(worst.total() < 2 << 30, "{worst:#?}");
    }

    #[test]
    fn lanes_are_counted_as_a_pod_asks_for_them() {
        let mut config = Config::default();
        config.engine.cores = 1;
        let parts = config.worst_case(0).parts;
        let lanes = parts
            .iter()
            .find(|(_, setting, _)| *setting == "engine.lanes");
        assert_eq!(lanes.map(|(.., bytes)| *bytes), Some(LANE));
    }
}
