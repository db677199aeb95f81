//! A value made from files, made again when they change. What does not hold leaves the value that was there; of a list
//! whose entries stand for themselves those that hold are taken, so that one mistake keeps no revoked key alive.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use crate::{files, metrics::Metrics, telemetry::AUDIT};

/// Largest such file, bytes.
const MOST_BYTES: u64 = 4 << 20;

/// How often files are looked at. Their content is compared and not their times: mounted secrets are swapped by links.
const INTERVAL: Duration = Duration::from_secs(2);

/// Files that a value is made of.
pub(super) struct Source {
    /// What they are, as the metrics' label `files`.
    pub(super) what: &'static str,
    /// In the order in which their contents are given.
    pub(super) files: Vec<PathBuf>,
    /// Where it is told whether their newest content is in use.
    pub(super) metrics: Arc<Metrics>,
}

/// What files make.
#[derive(Debug)]
pub(super) struct Made<T> {
    pub(super) value: T,
    /// Entries that do not hold, each with its place and why.
    pub(super) left_out: Vec<String>,
}

impl<T> Made<T> {
    /// All of the files holds.
    pub(super) fn whole(value: T) -> Self {
        let left_out = Vec::new();
        Self { value, left_out }
    }
}

/// The current value.
#[derive(Debug)]
pub(super) struct Watched<T> {
    value: Arc<RwLock<Arc<T>>>,
    watcher: JoinHandle<()>,
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Makes the value of the contents of the files, in their order, and watches them from now on.
    ///
    /// # Errors
    /// A file that cannot be read, or what `make` says of them. Entries that are left out are told to the log alone.
    pub(super) fn new(
        source: Source,
        make: impl Fn(&[Vec<u8>]) -> anyhow::Result<Made<T>> + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let seen = read(&source.files)?;
        let Made { value, left_out } = make(&seen)?;
        source.tell(&left_out);
        source.metrics.files_read(source.what);
        source
            .metrics
            .files_current(source.what, left_out.is_empty());
        let value = Arc::new(RwLock::new(Arc::new(value)));
        let current = Arc::clone(&value);
        let mut state = State {
            holds: left_out.is_empty(),
            seen,
            complaint: String::new(),
        };
        let watcher = tokio::spawn(async move {
            loop {
                tokio::time::sleep(INTERVAL).await;
                if let Some(made) = source.look(&mut state, &make).await {
                    *current.write() = Arc::new(made);
                }
            }
        });
        Ok(Self { value, watcher })
    }

    /// The value as it is now.
    pub(super) fn get(&self) -> Arc<T> {
        Arc::clone(&self.value.read())
    }
}

impl<T> Drop for Watched<T> {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// How files were when they were last read.
struct State {
    seen: Vec<Vec<u8>>,
    /// Whether all of that is in use.
    holds: bool,
    /// What was last said of files that cannot be read.
    complaint: String,
}

impl Source {
    /// What the files make, if they have changed and hold.
    async fn look<T>(
        &self,
        state: &mut State,
        make: &impl Fn(&[Vec<u8>]) -> anyhow::Result<Made<T>>,
    ) -> Option<T> {
        let (names, what) = (self.files.clone(), self.what);
        let contents = tokio::task::spawn_blocking(move || read(&names)).await;
        let now = match contents {
            Ok(Ok(now)) => now,
            Ok(Err(error)) => {
                self.complain(state, &error);
                return None;
            }
            Err(error) => {
                self.complain(state, &error.into());
                return None;
            }
        };
        state.complaint.clear();
        if now == state.seen {
            self.metrics.files_current(what, state.holds);
            return None;
        }
        let (old, new) = (fingerprint(&state.seen), fingerprint(&now));
        let made = make(&now);
        state.seen = now;
        state.holds = made.as_ref().is_ok_and(|made| made.left_out.is_empty());
        self.metrics.reloaded(what, state.holds);
        let files = list(&self.files);
        match made {
            Ok(made) => {
                let outcome = match state.holds {
                    true => "done",
                    false => "done in part",
                };
                tracing::info!(target: AUDIT, action = "reload", what, files, old, new, outcome, "read again");
                self.tell(&made.left_out);
                Some(made.value)
            }
            Err(error) => {
                let (error, outcome) = (format!("{error:#}"), "failed");
                tracing::error!(
                    target: AUDIT, action = "reload", what, files, old, new, outcome, error,
                    "not taken over, what was read before stays"
                );
                None
            }
        }
    }

    /// Files may be away for long: it is said once.
    fn complain(&self, state: &mut State, error: &anyhow::Error) {
        let (what, error) = (self.what, format!("{error:#}"));
        if state.complaint != error {
            tracing::error!(what, error, "not taken over, what was read before stays");
            self.metrics.reloaded(what, false);
            state.complaint = error;
        }
    }

    fn tell(&self, left_out: &[String]) {
        let files = list(&self.files);
        for entry in left_out {
            tracing::error!(what = self.what, files, entry, "left out, the others hold");
        }
    }
}

/// By which an audit tells contents apart.
fn fingerprint(contents: &[Vec<u8>]) -> String {
    let mut hash = Sha256::new();
    contents.iter().for_each(|content| hash.update(content));
    hex::encode(hash.finalize())
}

fn list(files: &[PathBuf]) -> String {
    let names: Vec<_> = files.iter().map(|f| f.display().to_string()).collect();
    names.join(", ")
}

/// The contents of files that settings name.
///
/// # Errors
/// The one that cannot be read, and why.
pub(super) fn read(files: &[PathBuf]) -> anyhow::Result<Vec<Vec<u8>>> {
    let one =
        |file: &PathBuf| files::read(file, MOST_BYTES).with_context(|| file.display().to_string());
    files.iter().map(one).collect()
}
