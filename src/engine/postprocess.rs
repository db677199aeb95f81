//! From a head's raw outputs to results: each task's own work, on the engine's rows.

use ndarray::ArrayViewD;

use crate::{
    backend::HeadRow,
    error::{Error, Kind, Result},
    media::Geometry,
    repository::HeadManifest,
    task::{self, Call, Options, TaskError, Tensors},
};

/// What a head found.
pub type Outcome = task::Outcome<HeadRow>;

impl Tensors for HeadRow {
    fn f32(&self, name: &str) -> Option<ArrayViewD<'_, f32>> {
        self.tensor(name)?.f32()
    }

    fn i64(&self, name: &str) -> Option<ArrayViewD<'_, i64>> {
        self.tensor(name)?.i64()
    }

    fn has(&self, name: &str) -> bool {
        self.tensor(name).is_some()
    }

    fn not_finite(&self) -> Option<&str> {
        let mut tensors = self.tensors();
        let bad = tensors.find(|tensor| !tensor.is_finite());
        bad.map(|tensor| tensor.name)
    }
}

fn call<'a>(
    manifest: &'a HeadManifest,
    row: &'a HeadRow,
    geometry: &'a Geometry,
    options: &'a Options,
    keep: &'a dyn Fn() -> bool,
) -> Call<'a> {
    Call {
        tensors: row,
        post: &manifest.postprocess,
        labels: manifest.labels.len(),
        options,
        geometry,
        keep,
    }
}

/// Turns a head's output into its result, as long as `keep` says so: it is asked between a call's masks, and between a
/// label map and what is made of it.
pub(super) fn run(
    manifest: &HeadManifest,
    row: HeadRow,
    geometry: &Geometry,
    options: &Options,
    keep: &dyn Fn() -> bool,
) -> Result<Outcome> {
    let failed = |error: TaskError| {
        let message = format!(
            "the head {:?} gave an unusable output: {error}",
            manifest.name
        );
        Error::new(Kind::HeadFailed, message)
    };
    // Nobody waits for the result any more: its caller knows.
    let unwanted = || Error::new(Kind::Cancelled, "nobody waits for this result");
    let call = call(manifest, &row, geometry, options, keep);
    let found = manifest.task.spec().run(&call).map_err(failed)?;
    let found = found.ok_or_else(unwanted)?;
    found.outcome(row, options, keep)?.ok_or_else(unwanted)
}

/// Checks a dry run's values, all of those that a call may come to read; names and types have been checked.
///
/// # Errors
/// The output and what is wrong with it.
pub(super) fn check(
    manifest: &HeadManifest,
    row: &HeadRow,
    geometry: &Geometry,
) -> std::result::Result<(), (String, String)> {
    let options = Options::default();
    let call = call(manifest, row, geometry, &options, &|| true);
    manifest.task.spec().check(&call).map_err(|error| {
        let reason = format!("{}, in a run on sample images", error.problem);
        (format!("output {:?}", error.tensor), reason)
    })
}
