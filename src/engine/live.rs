//! What a stream of frames asks beyond what a call does: to be a flow of its own, to be told when work on a frame has
//! begun, to have each head's result as it is there, and to keep rows for heads that read several frames.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{postprocess::Outcome, room::Room};
use crate::{backend::FeatureRow, error::Result, media::Geometry, task::Options};

/// What the name of a stream's flow begins with: no head's name has a space.
const FLOW: &str = "stream ";

/// What a stream's flows are called among the heads.
const LABEL: &str = "stream";

/// What a stream asks beyond a call; by default nothing.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// The flow, within its caller's share, that pays for the image in place of a head's: made by [`flow`].
    pub flow: Option<Arc<str>>,
    /// Told when work on the image begins.
    pub begun: Option<Begun>,
    /// Given each result as it is there; the answer then has [`Outcome::Sent`] in its place. Failures are the answer's.
    pub parts: Option<Parts>,
    /// How the outputs of each head become results, in place of the request's; by default as that says.
    pub options: Vec<Options>,
    /// Input sizes of which the last image's row is to be kept, each with the feature maps that are read of it.
    pub keep: Vec<Keep>,
}

/// A row that is to be kept.
#[derive(Debug, Clone)]
pub struct Keep {
    /// `[height, width]` in pixels.
    pub size: [u32; 2],
    /// Names of the maps.
    pub maps: Arc<[String]>,
}

/// The name of the flow of a stream of this name.
#[must_use]
pub fn flow(stream: &str) -> Arc<str> {
    format!("{FLOW}{stream}").into()
}

/// A flow as a label of metrics: streams are one.
pub(super) fn label(flow: &Arc<str>) -> Arc<str> {
    match flow.starts_with(FLOW) {
        true => LABEL.into(),
        false => Arc::clone(flow),
    }
}

/// Told once, from any thread, when work on an image begins. Until then it can be taken back at no cost.
#[derive(Clone)]
pub struct Begun(Arc<Once>);

struct Once {
    done: AtomicBool,
    tell: Box<dyn Fn() + Send + Sync>,
}

impl Begun {
    /// `tell` must be quick and take no lock that is held while the engine is called.
    pub fn new(tell: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(Once {
            done: AtomicBool::new(false),
            tell: Box::new(tell),
        }))
    }

    pub(super) fn tell(&self) {
        if !self.0.done.swap(true, Ordering::AcqRel) {
            (self.0.tell)();
        }
    }
}

impl fmt::Debug for Begun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Begun").field(&self.0.done).finish()
    }
}

/// A result that is there before the others.
#[derive(Debug)]
pub enum Part {
    /// That of the request's head of this index, with the room that all results of the request take together.
    Head(usize, Outcome, Arc<Room>),
    /// A kept row, or why it could not be kept.
    Row([u32; 2], Result<Kept>),
}

/// Where results go that are there before the others.
#[derive(Clone)]
pub struct Parts(Arc<dyn Fn(Part) + Send + Sync>);

impl Parts {
    /// `take` gets each part, on the thread that waits for the answer.
    pub fn new(take: impl Fn(Part) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    pub(super) fn give(&self, part: Part) {
        (self.0)(part);
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Parts")
    }
}

/// An image's row that is kept after its call, with the room that it takes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Kept {
    // Goes before the room that it takes: what is counted is never less than what is held.
    pub(super) row: FeatureRow,
    pub(super) geometry: Geometry,
    pub(super) _room: Arc<Room>,
}

impl Kept {
    /// Bytes that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.row.bytes()
    }

    /// Width and height of its image in pixels.
    #[must_use]
    pub fn image_size(&self) -> (u32, u32) {
        let geometry = &self.geometry;
        (geometry.original_width(), geometry.original_height())
    }
}
