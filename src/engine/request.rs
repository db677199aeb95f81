//! What callers ask for and what they get.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    known::ByCaller, live::Live, mean::Mean, postprocess::Outcome, room::Room,
    sched::rank::Priority,
};
use crate::{
    backend::{FeatureRow, HeadModel, TensorSpec},
    error::{Error, Kind, Result},
    media,
    repository::HeadManifest,
    task::Options,
    trace::Context,
};

/// One image of a request.
#[derive(Debug, Clone)]
pub enum Source {
    /// An image file.
    Encoded(Bytes),
    /// Interleaved RGB pixels.
    Raw {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
        /// `height x width x 3` bytes.
        rgb: Bytes,
    },
}

impl Source {
    /// Bytes held.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Encoded(bytes) => bytes.len(),
            Self::Raw { rgb, .. } => rgb.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Charges a caller for the images that it sends.
pub trait Meter: std::fmt::Debug + Send + Sync {
    /// Charges for images that cost as much as so many `pixels` of a plain JPEG.
    ///
    /// # Errors
    /// `RateLimited`, with the time after which the same call may be made.
    fn charge(&self, pixels: u64) -> Result<()>;
}

/// An image, as its header tells.
#[derive(Debug, Clone, Copy)]
pub(super) struct Looks {
    pub(super) width: u32,
    pub(super) height: u32,
    /// What decoding and resizing it is.
    pub(super) work: media::Work,
    /// Bytes that decoding it holds.
    pub(super) held: u64,
}

impl Looks {
    pub(super) fn pixels(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

/// What was seen of a request when it was let in.
#[derive(Debug, Clone)]
pub struct Looked {
    pub(super) images: Vec<Looks>,
    /// Shared by all requests of a call.
    pub(super) room: Arc<Room>,
}

/// What to run on what.
#[derive(Debug, Default)]
pub struct Request {
    /// One image, or a clip's frames, each with the name of its field for messages.
    pub images: Vec<(Source, String)>,
    /// Heads to run. Heads that read one image read the last.
    pub heads: Vec<Arc<Head>>,
    /// How their outputs become results.
    pub options: Options,
    /// Whether the last image's features are wanted as well, at this `[height, width]`.
    pub features: Option<[u32; 2]>,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    /// How urgent it is.
    pub priority: Priority,
    /// Who asks, for fair shares and for who may share results with whom; empty for anybody.
    pub caller: Arc<str>,
    /// The call's place in a trace.
    pub trace: Context,
    /// Charges the caller for its images; nobody if unset.
    pub meter: Option<Arc<dyn Meter>>,
    /// What was seen of it, once it was looked at.
    pub looked: Option<Looked>,
    /// What a stream asks beyond that.
    pub live: Live,
}

/// Nanoseconds for each pixel of a label map, before anything was measured.
const PER_PIXEL: u64 = 10;

/// A loaded head.
#[derive(Debug)]
pub struct Head {
    /// What its manifest says.
    pub manifest: HeadManifest,
    /// Counts up from 1: one that replaces another is not the same.
    pub(super) number: u64,
    pub(super) name: Arc<str>,
    pub(super) model: HeadModel,
    /// What a batch of it takes.
    pub(super) cost: Mean,
    /// What each call's part of a batch takes.
    pub(super) each: Mean,
    /// What it takes to make a result of an output, by [`Head::output_size`].
    pub(super) finish: ByCaller,
}

impl Head {
    /// What its graph's outputs look like for one call.
    #[must_use]
    pub fn outputs(&self) -> &[TensorSpec] {
        self.model.outputs()
    }

    /// How much there is to do for a result on an image of `pixels`: what the task makes as large as the image, and how
    /// many results may be asked for.
    pub(super) fn output_size(&self, pixels: u64, options: &Options) -> u64 {
        let spec = self.manifest.task.spec();
        spec.size(&self.manifest.postprocess, options, pixels)
    }

    /// How long most of its batches take, and to make a result of `size` of an output for this caller.
    pub(super) fn most(&self, caller: &str, size: u64) -> Duration {
        self.cost.most() + self.finish.most(caller, size)
    }

    /// What it takes of a thread for one call, in seconds.
    pub(super) fn takes(&self, caller: &str, size: u64) -> f64 {
        (self.each.get() + self.finishing(caller, size)).as_secs_f64()
    }

    /// About how long it takes to make a result of `size` of an output for this caller.
    pub(super) fn finishing(&self, caller: &str, size: u64) -> Duration {
        if let Some(known) = self.finish.known(caller, size) {
            return known;
        }
        let about = match self.manifest.task.spec().by_pixel {
            true => Duration::from_nanos(size.saturating_mul(PER_PIXEL)),
            false => Duration::ZERO,
        };
        self.finish.get(caller, size).max(about)
    }
}

/// The answer to a [`Request`].
#[derive(Debug)]
pub struct Analysis {
    /// One for each head asked for, in that order.
    pub heads: Vec<(Arc<Head>, Result<Outcome>)>,
    /// The last image's features, if asked for.
    pub features: Option<FeatureRow>,
    /// How it was made.
    pub provenance: Provenance,
    /// Height and width of the last image in pixels, as boxes mean them: after EXIF orientation.
    pub image_size: [u32; 2],
    /// Room for what it holds, shared by all requests of its call and given back with the last of them.
    pub room: Option<Arc<Room>>,
}

/// Where an image's features came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FeatureSource {
    /// An equal image had been computed before.
    Cached,
    /// The backbone was already running on an equal image.
    Shared,
    /// The backbone ran for this request.
    Computed,
}

/// How an answer was made.
#[derive(Debug, Clone)]
pub struct Provenance {
    /// Where the features came from; the costliest of a clip's frames.
    pub source: FeatureSource,
    /// Images that the backbone ran for on behalf of this request.
    pub backbone_rows: usize,
    /// Images in the last image's batch.
    pub batch_size: usize,
    /// Where the time went.
    pub timing: Timing,
}

/// Where the time of a request went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// Waiting for a decoder and for a lane.
    pub queue: Duration,
    /// Decoding and resizing.
    pub decode: Duration,
    /// The backbone's batch.
    pub backbone: Duration,
    /// The slowest head's batch.
    pub head: Duration,
    /// Turning outputs into results.
    pub postprocess: Duration,
    /// All of it.
    pub total: Duration,
}

impl From<media::MediaError> for Error {
    fn from(error: media::MediaError) -> Self {
        let kind = match error.kind() {
            media::MediaErrorKind::LimitExceeded => Kind::LimitExceeded,
            media::MediaErrorKind::Internal => Kind::Internal,
            media::MediaErrorKind::InvalidArgument => Kind::InvalidImage,
        };
        let (message, values) = error.told();
        let values = values.into_iter();
        values.fold(Self::new(kind, message), |error, (name, value)| {
            error.with(name, value)
        })
    }
}

impl Request {
    /// How the output of its head of this index becomes a result.
    pub(super) fn options_of(&self, index: usize) -> Options {
        let own = self.live.options.get(index);
        own.copied().unwrap_or(self.options)
    }
}

/// The frames of a clip of `count` that a head reads; of an image, or a head that reads one, the last.
pub(super) fn frames_of(manifest: &HeadManifest, count: usize) -> Vec<usize> {
    match manifest.task.spec().clip {
        true => {
            let stride = manifest.postprocess.action.frame_stride;
            media::sample_frames(count, manifest.frames(), stride)
        }
        false => vec![count.saturating_sub(1)],
    }
}

/// The images of the request that are read at this input size, each once.
pub(super) fn frames_read(request: &Request, size: [u32; 2]) -> Vec<usize> {
    let count = request.images.len();
    let heads = request.heads.iter().map(|head| &head.manifest);
    let heads = heads.filter(|manifest| manifest.input_size == size);
    let mut frames: Vec<_> = heads
        .flat_map(|manifest| frames_of(manifest, count))
        .collect();
    let keeps = request.live.keep.iter().any(|keep| keep.size == size);
    if request.features == Some(size) || keeps {
        frames.push(count.saturating_sub(1));
    }
    frames.sort_unstable();
    frames.dedup();
    frames
}

/// The distinct input sizes that the request needs.
pub(super) fn sizes(request: &Request) -> Vec<[u32; 2]> {
    let mut sizes: Vec<_> = request.features.into_iter().collect();
    let heads = request.heads.iter().map(|head| head.manifest.input_size);
    for size in heads.chain(request.live.keep.iter().map(|keep| keep.size)) {
        if !sizes.contains(&size) {
            sizes.push(size);
        }
    }
    sizes
}
