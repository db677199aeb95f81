//! A value made from files, made again when they change. What does not hold leaves the value that was there.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use parking_lot::RwLock;
use tokio::task::JoinHandle;

use crate::files;

/// Largest such file, bytes.
const MOST_BYTES: u64 = 4 << 20;

/// How often files are looked at. Their content is compared and not their times: mounted secrets are swapped by links.
const INTERVAL: Duration = Duration::from_secs(2);

/// The current value.
#[derive(Debug)]
pub(super) struct Watched<T> {
    value: Arc<RwLock<Arc<T>>>,
    watcher: JoinHandle<()>,
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Makes the value of the contents of `files`, in their order, and watches them from now on.
    ///
    /// # Errors
    /// A file that cannot be read, or what `make` says of them.
    pub(super) fn new(
        files: Vec<PathBuf>,
        make: impl Fn(&[Vec<u8>]) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let mut seen = read(&files)?;
        let value = Arc::new(RwLock::new(Arc::new(make(&seen)?)));
        let current = Arc::clone(&value);
        let mut complaint = String::new();
        let watcher = tokio::spawn(async move {
            loop {
                tokio::time::sleep(INTERVAL).await;
                let names = files.clone();
                let contents = tokio::task::spawn_blocking(move || read(&names)).await;
                let made = match contents {
                    Ok(Ok(now)) if now == seen => continue,
                    Ok(Ok(now)) => {
                        let made = make(&now);
                        seen = now;
                        made
                    }
                    Ok(Err(error)) => Err(error),
                    Err(error) => Err(error.into()),
                };
                match made {
                    Ok(made) => {
                        *current.write() = Arc::new(made);
                        complaint.clear();
                        tracing::info!(files = %list(&files), "read again");
                    }
                    Err(error) => {
                        // A file may be gone for long: say so once.
                        let text = format!("{error:#}");
                        if complaint != text {
                            tracing::error!(
                                error = text,
                                "not taken over, what was read before stays"
                            );
                            complaint = text;
                        }
                    }
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

fn list(files: &[PathBuf]) -> String {
    let names: Vec<_> = files.iter().map(|f| f.display().to_string()).collect();
    names.join(", ")
}

fn read(files: &[PathBuf]) -> anyhow::Result<Vec<Vec<u8>>> {
    let one =
        |file: &PathBuf| files::read(file, MOST_BYTES).with_context(|| file.display().to_string());
    files.iter().map(one).collect()
}
