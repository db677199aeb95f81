//! What there is to know of a task, for whoever loads, checks, documents, prices or runs its heads.

use std::{fmt, ops::RangeInclusive};

use ndarray::{ArrayView, ArrayViewD, Dimension};

use super::{Found, Options, Postprocess, Problem, Task, TaskError};
use crate::media::Geometry;

/// What there is to know of a task.
pub struct Spec {
    /// Its name in manifests.
    pub name: &'static str,
    /// Whether its heads name their labels.
    pub labelled: bool,
    /// Whether its heads read clips.
    pub clip: bool,
    /// The sets of outputs that a head may give, of which one must be whole. Outputs beyond it are not looked at. Nothing for
    /// tasks whose outputs are given to the caller as they are.
    pub outputs: &'static [&'static [Output]],
    /// Where there are none: what outputs of any name may hold, and what of.
    pub any: (&'static str, &'static str),
    /// Where there are none: whether they must be floats.
    pub floats: bool,
    /// The output that gives numbers of labels, where a graph does.
    pub indices: Option<&'static str>,
    /// The manifest's keys under `postprocess`.
    pub keys: &'static [Key],
    /// What a caller may ask for.
    pub asks: &'static [Ask],
    /// Whether making a result takes as long as the image is large, before it is measured.
    pub by_pixel: bool,
    /// Which of the sets of outputs a head gives whose graph has outputs of these names.
    pub(super) set: fn(&Postprocess, &[&str]) -> usize,
    /// What is wrong with keys beside their ranges, for a head of so many labels.
    pub(super) sound: fn(&Postprocess, usize) -> Result<(), KeyError>,
    /// Turns outputs into a result; nothing once the call's `keep` has said no.
    pub(super) run: fn(&Call<'_>) -> Result<Option<Found>, TaskError>,
    /// Checks all of the outputs that a call may come to read.
    pub(super) check: fn(&Call<'_>) -> Result<(), TaskError>,
    /// How much there is to do for a result on an image of so many pixels.
    pub(super) size: fn(&Postprocess, &Options, u64) -> u64,
    /// Most bytes of a result of so many labels on an image of so many pixels, masks of detections not counted; as many as
    /// the outputs have where there is no saying.
    pub(super) bytes: fn(&Postprocess, &Options, usize, u64) -> Option<u64>,
}

impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Spec").field(&self.name).finish()
    }
}

impl Spec {
    /// What most tasks have; each says what it has otherwise.
    pub(super) const PLAIN: Self = Self {
        name: "",
        labelled: false,
        clip: false,
        outputs: &[],
        any: ("any of the types above, `[N, ...]`", "any"),
        floats: false,
        indices: None,
        keys: &[],
        asks: &[],
        by_pixel: false,
        set: |_, _| 0,
        sound: |_, _| Ok(()),
        run: |_| Ok(Some(Found::Raw)),
        check: |_| Ok(()),
        size: |_, _, _| 1,
        bytes: |_, _, _, _| None,
    };

    /// How much there is to do for a result on an image of so many `pixels`: what the task makes as large as the image, and
    /// how many results may be asked for.
    #[must_use]
    pub fn size(&self, post: &Postprocess, options: &Options, pixels: u64) -> u64 {
        (self.size)(post, options, pixels)
    }

    /// Most bytes of a result on an image of so many `pixels`, masks of detections not counted; `None` where it is the
    /// outputs as they are.
    #[must_use]
    pub fn bytes(
        &self,
        post: &Postprocess,
        options: &Options,
        labels: usize,
        pixels: u64,
    ) -> Option<u64> {
        (self.bytes)(post, options, labels, pixels)
    }

    /// Turns a head's outputs into a result; nothing once the call's `keep` has said no.
    ///
    /// # Errors
    /// The output that cannot be used, and why.
    pub fn run(&self, call: &Call<'_>) -> Result<Option<Found>, TaskError> {
        (self.run)(call)
    }

    /// Checks all of the outputs that a call may come to read.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn check(&self, call: &Call<'_>) -> Result<(), TaskError> {
        (self.check)(call)
    }

    /// The outputs that a head with these keys must give if its graph's outputs are called `names`.
    #[must_use]
    pub fn outputs_of(&self, post: &Postprocess, names: &[&str]) -> &'static [Output] {
        let set = (self.set)(post, names);
        self.outputs.get(set).copied().unwrap_or_default()
    }
}

/// An output of a head's graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// Its name in the graph.
    pub name: &'static str,
    /// Element type, by ONNX's name.
    pub element: &'static str,
    /// Shape of one call, without the batch: a number, [`LABELS`], or the name of a size that is equal wherever it stands.
    pub shape: &'static [&'static str],
    /// What the values are.
    pub values: &'static str,
    /// When it is needed, behind its name; empty for always.
    pub when: &'static str,
}

/// The size that is the number of the manifest's labels.
pub const LABELS: &str = "labels";

/// What a caller may ask of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// [`Options::score_threshold`]
    ScoreThreshold,
    /// [`Options::max_detections`], up to the manifest's.
    MaxDetections,
    /// [`Options::top_k`], up to the number of labels.
    TopK,
}

/// What may be said of a key under `postprocess`.
#[derive(Debug, Clone)]
pub struct Key {
    /// The key.
    pub name: &'static str,
    /// Least and greatest value of a number.
    pub range: Option<RangeInclusive<f64>>,
    /// What holds where it is not set, if that is a value.
    pub default: Option<f64>,
    /// Whether its tasks cannot do without it.
    pub required: bool,
    pub(super) get: fn(&Postprocess) -> Option<Set>,
}

impl Key {
    /// Tasks for which it means something.
    #[must_use]
    pub fn tasks(&self) -> Vec<Task> {
        let has = |task: &Task| task.spec().keys.iter().any(|key| key.name == self.name);
        Task::ALL.into_iter().filter(has).collect()
    }
}

/// A key's value that is set.
pub(super) enum Set {
    Fraction(f32),
    Count(usize),
    Other,
}

/// What is wrong with a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyError {
    /// The key under `postprocess`.
    pub key: String,
    /// What it is and what it must be.
    pub reason: String,
}

/// The outputs of one call, by name.
pub trait Tensors {
    /// One of float32.
    fn f32(&self, name: &str) -> Option<ArrayViewD<'_, f32>>;
    /// One of int64.
    fn i64(&self, name: &str) -> Option<ArrayViewD<'_, i64>>;
    /// Whether there is one of this name.
    fn has(&self, name: &str) -> bool;
    /// One that holds what is not finite.
    fn not_finite(&self) -> Option<&str>;
}

/// One head's outputs for one image or clip, and what its result depends on.
pub struct Call<'a> {
    /// The outputs.
    pub tensors: &'a dyn Tensors,
    /// The manifest's keys.
    pub post: &'a Postprocess,
    /// Number of the manifest's labels.
    pub labels: usize,
    /// What is asked for beyond the manifest; checked before it gets here.
    pub options: &'a Options,
    /// How the image lies in the input.
    pub geometry: &'a Geometry,
    /// Whether somebody still waits: asked between a call's masks.
    pub keep: &'a dyn Fn() -> bool,
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").finish_non_exhaustive()
    }
}

impl<'a> Call<'a> {
    /// The float32 output `name`. The contract check saw to it; a failure is a defect.
    pub(super) fn f32<D: Dimension>(&self, name: &str) -> Result<ArrayView<'a, f32, D>, TaskError> {
        shaped(name, self.tensors.f32(name))
    }

    /// The int64 output `name`.
    pub(super) fn i64<D: Dimension>(&self, name: &str) -> Result<ArrayView<'a, i64, D>, TaskError> {
        shaped(name, self.tensors.i64(name))
    }
}

fn shaped<'a, T, D: Dimension>(
    name: &str,
    view: Option<ArrayViewD<'a, T>>,
) -> Result<ArrayView<'a, T, D>, TaskError> {
    let view = view.ok_or_else(|| Problem::Missing.of(name))?;
    let shape = view.shape().to_vec();
    let other = |_| Problem::shape("another number of dimensions", &shape).of(name);
    view.into_dimensionality().map_err(other)
}
