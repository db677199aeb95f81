//! How the engine uses the machine.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::AdmissionLimits;
use crate::{media, metrics::Metrics, repository::OnBadHead, trace::Tracer};

/// How the engine uses the machine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Threads that run graphs; 0 for one per core.
    pub lanes: usize,
    /// Cores that the process may count on where it shares them, such as a pod's CPU request; 0 for all that it is given.
    pub cores: usize,
    /// Threads that one lane's operators use.
    pub threads_per_lane: usize,
    /// Threads that decode and postprocess beside the lanes; 0: the lanes do it themselves, which suits a CPU.
    pub workers: usize,
    /// Largest number of images in one backbone batch.
    pub max_batch: usize,
    /// Batch sizes to run; `None` for the powers of two up to `max_batch` that warm-up shows to be worthwhile.
    pub buckets: Option<Vec<usize>>,
    /// How long a batch may wait to become larger.
    pub max_queue_delay: Duration,
    /// How long a lane's step, one batch or a few heads, may take before the device is taken for hung and the engine is
    /// given up; 0 for no limit.
    pub step_limit: Duration,
    /// Bytes of finished features to keep; 0 for none.
    pub cache_bytes: usize,
    /// Whether callers with different identities share rows in flight and in the cache.
    pub share_across_callers: bool,
    /// Shares of the machine under load, by head; 1 where not named.
    pub head_weights: BTreeMap<String, f64>,
    /// Shares of the machine under load, by caller; 1 where not named.
    pub caller_weights: BTreeMap<String, f64>,
    /// Bounds on what is accepted.
    pub admission: AdmissionLimits,
    /// Bounds on one image.
    pub media: media::Limits,
    /// Most frames of a clip.
    pub max_frames: usize,
    /// What becomes of a start if one of the heads does not load.
    pub on_bad_head: OnBadHead,
    /// Heads that must serve for the engine to be fit to serve.
    pub required_heads: Vec<String>,
    /// Where the engine counts.
    pub metrics: Arc<Metrics>,
    /// Where it records what batches served whom.
    pub tracer: Tracer,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            lanes: 0,
            cores: 0,
            threads_per_lane: 1,
            workers: 0,
            max_batch: 8,
            buckets: None,
            max_queue_delay: Duration::ZERO,
            step_limit: Duration::from_secs(60),
            cache_bytes: 0,
            share_across_callers: false,
            head_weights: BTreeMap::new(),
            caller_weights: BTreeMap::new(),
            admission: AdmissionLimits::default(),
            media: media::Limits::default(),
            max_frames: 64,
            on_bad_head: OnBadHead::Refuse,
            required_heads: Vec::new(),
            metrics: Arc::default(),
            tracer: Tracer::default(),
        }
    }
}

impl EngineConfig {
    /// The batch sizes that warm-up tries.
    pub(super) fn candidates(&self) -> Vec<usize> {
        let mut sizes = match &self.buckets {
            Some(buckets) => buckets.clone(),
            None => std::iter::successors(Some(1), |size| Some(size * 2))
                .take_while(|size| *size <= self.max_batch)
                .collect(),
        };
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// The most bytes of the host's memory that calls make the engine hold, where `threads` threads run graphs and images
    /// become input of `[height, width]`: every part of it is a bound that is kept.
    #[must_use]
    pub fn worst_case(&self, threads: usize, [height, width]: [u32; 2]) -> WorstCase {
        let limits = &self.admission;
        let input = 3 * u64::from(height) * u64::from(width);
        let waiting = self.max_batch.max(1) * (threads + 1);
        WorstCase {
            images: limits.bytes as u64,
            decoding: limits.decode_bytes,
            ready: waiting as u64 * input,
            results: limits.result_bytes,
            cache: self.cache_bytes as u64,
        }
    }

    /// Weights of a caller and of a head.
    pub(super) fn weights(&self, caller: &str, head: &str) -> (f64, f64) {
        let of = |weights: &BTreeMap<String, f64>, name| weights.get(name).copied().unwrap_or(1.0);
        (
            of(&self.caller_weights, caller),
            of(&self.head_weights, head),
        )
    }
}

/// Bytes that calls make the engine hold at most. Beside them are the models, what a run of a graph takes, and what the
/// transport holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorstCase {
    /// Images as they came: `limits.bytes_in_flight`.
    pub images: u64,
    /// What is being decoded: `limits.decode_bytes`.
    pub decoding: u64,
    /// Images that are ready for the backbone.
    pub ready: u64,
    /// Features and results: `limits.result_bytes`.
    pub results: u64,
    /// Kept features: `engine.cache_bytes`.
    pub cache: u64,
}

impl WorstCase {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        let parts = [
            self.images,
            self.decoding,
            self.ready,
            self.results,
            self.cache,
        ];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Images that the backbone ran on.
    pub backbone_rows: u64,
    /// Rows of its batches that held no image.
    pub backbone_padding: u64,
    /// Batches that it ran.
    pub backbone_batches: u64,
    /// Backbone runs saved because a request's further heads read the same image.
    pub multi_head: u64,
    /// Images that joined a flight of an equal image.
    pub shared: u64,
    /// Images found in the cache.
    pub cached: u64,
    /// Requests refused at the door.
    pub refused: u64,
    /// Images dropped before the backbone because nobody waited for them or their deadline could not be met.
    pub abandoned: u64,
}
