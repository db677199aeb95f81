//! Heads come, change and go while serving.
//!
//! A request holds the head that it was admitted with, so a replaced one answers what it accepted and its memory goes
//! with the last such request.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Engine, Head, Shared, board, known::ByCaller, mean::Mean, postprocess};
use crate::{
    backend::{Backbone, BackendError, HeadModel, Runtime, SessionOptions},
    error::{Error, Kind, Result},
    media,
    repository::{HeadEntry, RepositoryError, Stamp},
    telemetry::AUDIT,
};

/// How the folder's heads looked.
struct Looks {
    /// Last time.
    last: BTreeMap<String, Stamp>,
    /// When what is loaded was brought in line.
    followed: BTreeMap<String, Stamp>,
    /// Why the folder could not be read last time; empty where it could.
    complaint: String,
}

/// Whether a head is loaded anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reload {
    Always,
    /// Unless it is the one that serves.
    IfOther,
}

impl Head {
    /// Builds the head's sessions, checks them with a dry run on each lane and measures one call.
    pub(super) fn load(
        runtime: &Runtime,
        entry: &HeadEntry,
        backbone: &Backbone,
        options: SessionOptions,
    ) -> Result<Self, BackendError> {
        let model = HeadModel::load(runtime, entry, backbone, options)?;
        let [height, width] = entry.manifest.input_size;
        // As of an image that has the input's size.
        let preprocess = board::preprocess(backbone.manifest(), [height, width]);
        let geometry = media::geometry(width, height, &preprocess);
        for row in model.sample_run(0, backbone, entry.manifest.input_size)? {
            postprocess::check(&entry.manifest, &row, &geometry).map_err(|(field, reason)| {
                BackendError::Contract {
                    graph: entry.graph.name.clone(),
                    field,
                    reason,
                }
            })?;
        }
        let (cost, each) = (Mean::default(), Mean::default());
        let begun = Instant::now();
        model.dry_run(0, backbone, entry.manifest.input_size, 1)?;
        cost.add(begun.elapsed());
        each.add(begun.elapsed());
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        Ok(Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            name: entry.manifest.name.as_str().into(),
            manifest: entry.manifest.clone(),
            model,
            cost,
            each,
            finish: ByCaller::default(),
        })
    }
}

impl Engine {
    /// Loads the head `name` from the repository, beside the one of this name if there is one, and swaps it in.
    /// Requests accepted before are answered by the old one. Blocks while it loads.
    ///
    /// # Errors
    /// `UnknownHead` if the repository has no such head, `LoadFailed` with the file and field at fault; the head that
    /// was there goes on serving.
    pub fn load_head(&self, name: &str) -> Result<Arc<Head>> {
        self.shared.load_head(name, Reload::Always)
    }

    /// Takes the head `name` out of service. Requests accepted before are still answered.
    ///
    /// # Errors
    /// `UnknownHead` if it is not loaded.
    pub fn unload_head(&self, name: &str) -> Result<Arc<Head>> {
        let gone = self.shared.heads.write().remove(name);
        let head = gone.ok_or_else(|| {
            Error::new(Kind::UnknownHead, "no head of this name is loaded").at("name")
        })?;
        self.shared.forget(name);
        tracing::info!(head = name, version = head.manifest.version, "unloaded");
        Ok(head)
    }

    /// Why the newest version of the head `name` does not serve; `None` if it does, or if there is no such head.
    #[must_use]
    pub fn fault(&self, name: &str) -> Option<Arc<str>> {
        self.shared.faults.read().get(name).cloned()
    }

    /// The heads whose newest version does not serve, by name, and why.
    #[must_use]
    pub fn faults(&self) -> BTreeMap<String, Arc<str>> {
        self.shared.faults.read().clone()
    }

    /// Why the engine is not fit to serve though it runs: a head that must serve does not, or none does of those that
    /// there are. `None` if it is.
    #[must_use]
    pub fn lacks(&self) -> Option<String> {
        let heads = self.shared.heads.read();
        let required = &self.shared.config.required_heads;
        let missing: Vec<_> = required
            .iter()
            .filter(|name| !heads.contains_key(*name))
            .map(String::as_str)
            .collect();
        if !missing.is_empty() {
            return Some(format!(
                "required heads do not serve: {}",
                missing.join(", ")
            ));
        }
        let none = heads.is_empty() && !self.shared.faults.read().is_empty();
        none.then(|| "none of the heads serves".to_owned())
    }

    /// Follows the repository's folder from now on: looks at it every `interval`, loads heads that are new or changed and
    /// unloads those that are gone, once they look the same twice in a row. A head that does not load is told once and tried
    /// again when its files change. What changed since the start began is a change.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub fn watch(&self, interval: Duration) -> Result<(), BackendError> {
        self.shared.config.metrics.files_read("repository");
        self.shared.config.metrics.files_current("repository", true);
        let mut looks = Looks {
            last: BTreeMap::new(),
            followed: self.shared.stamps.clone(),
            complaint: String::new(),
        };
        self.spawn("watch".to_owned(), move |shared| {
            while !shared.queue.closed_within(interval) {
                shared.follow(&mut looks);
            }
        })
    }
}

impl Shared {
    /// Tells of the heads as they are at the start.
    pub(super) fn tell_heads(&self) {
        for head in self.heads.read().keys() {
            self.config.metrics.head_current(head, true);
        }
        for (head, error) in self.faults.read().iter() {
            self.config.metrics.head_current(head, false);
            tracing::error!(head, %error, old_one_serves = false, "does not load");
        }
    }

    /// Nobody wants the head `name` to serve any more.
    fn forget(&self, name: &str) {
        self.faults.write().remove(name);
        self.config.metrics.head_gone(name);
        self.changes.send_replace(());
    }

    fn load_head(&self, name: &str, reload: Reload) -> Result<Arc<Head>> {
        // One at a time: loading takes memory and every core.
        let _loading = self.loading.lock();
        let loaded = self.swap_in(name, reload);
        // Names that the repository has not may come from anybody: they are no label.
        match &loaded {
            Ok((_, loaded)) => {
                self.faults.write().remove(name);
                match loaded {
                    true => self.config.metrics.head_load(name, true),
                    false => self.config.metrics.head_current(name, true),
                }
            }
            Err(error) if error.kind() == Kind::LoadFailed => {
                let reason = error.message().into();
                self.faults.write().insert(name.to_owned(), reason);
                self.config.metrics.head_load(name, false);
            }
            Err(_) => {}
        }
        self.changes.send_replace(());
        loaded.map(|(head, _)| head)
    }

    /// The head as it is in the repository now, and whether it was loaded for that.
    fn swap_in(&self, name: &str, reload: Reload) -> Result<(Arc<Head>, bool)> {
        let failed = |error: String| Error::new(Kind::LoadFailed, error).at("name");
        let entry = self.location.head(name, self.backbone.manifest());
        let entry = entry.map_err(|error| match error {
            // Of a head that serves it is a mistake, of a copy that was put aside it is none.
            RepositoryError::OtherName { .. } if self.heads.read().contains_key(name) => {
                failed(error.to_string())
            }
            RepositoryError::NoHead { .. } | RepositoryError::OtherName { .. } => {
                Error::new(Kind::UnknownHead, error.to_string()).at("name")
            }
            error => failed(error.whole()),
        })?;
        if reload == Reload::IfOther
            && let Some(head) = self.heads.read().get(name)
            && head.manifest == entry.manifest
        {
            // Its manifest has the hash of all that it is made of.
            tracing::debug!(head = name, "its files were replaced by equal ones");
            return Ok((Arc::clone(head), false));
        }
        let head = Head::load(&self.runtime, &entry, &self.backbone, self.options)
            .map_err(|error| failed(error.to_string()))?;
        let head = Arc::new(head);
        let name = head.manifest.name.clone();
        let old = {
            // Both at once: whoever sees the new one sees no fault of it.
            let mut heads = self.heads.write();
            self.faults.write().remove(&name);
            heads.insert(name, Arc::clone(&head))
        };
        let (name, version) = (&head.manifest.name, &head.manifest.version);
        match old {
            Some(old) => {
                let from = &old.manifest.version;
                tracing::info!(head = name, version, from, "replaced");
            }
            None => tracing::info!(head = name, version, "loaded"),
        }
        Ok((head, true))
    }

    /// Brings what is loaded in line with the folder. What looks the same as last time has been copied in full; what is
    /// gone only for a moment is being replaced.
    fn follow(&self, looks: &mut Looks) {
        let now = match self.location.stamps() {
            Ok(now) => now,
            Err(error) => {
                // No head was taken away: the folder is, or the link to it. What serves goes on.
                let text = error.whole();
                if looks.complaint != text {
                    self.config.metrics.reloaded("repository", false);
                    tracing::error!(
                        error = text,
                        "the repository cannot be read, its heads stay"
                    );
                    looks.complaint = text;
                }
                return;
            }
        };
        if !std::mem::take(&mut looks.complaint).is_empty() {
            self.config.metrics.files_current("repository", true);
            tracing::info!("the repository can be read again");
        }
        let faulty: Vec<_> = self.faults.read().keys().cloned().collect();
        let before = looks.followed.keys().chain(&faulty);
        let names: BTreeSet<_> = now.keys().chain(before).cloned().collect();
        for name in names {
            let stamp = now.get(&name);
            if stamp != looks.last.get(&name) {
                continue;
            }
            match stamp {
                Some(stamp) if Some(stamp) == looks.followed.get(&name) => {}
                Some(stamp) => {
                    self.take_over(&name);
                    looks.followed.insert(name, stamp.clone());
                }
                None => {
                    let gone = self.heads.write().remove(&name);
                    if let Some(old) = gone {
                        let (action, by, outcome) = ("unload", "repository", "done");
                        let (old_version, old) = (&old.manifest.version, &old.manifest.sha256);
                        tracing::info!(
                            target: AUDIT, action, by, head = name, old, old_version, outcome,
                            "unloaded: its folder is gone"
                        );
                    }
                    self.forget(&name);
                    looks.followed.remove(&name);
                }
            }
        }
        looks.last = now;
    }

    /// Loads the head `name`, whose files have changed.
    fn take_over(&self, name: &str) {
        let before = self.heads.read().get(name).cloned();
        let (action, by) = ("load", "repository");
        let old = before.as_ref().map(|head| head.manifest.sha256.as_str());
        match self.load_head(name, Reload::IfOther) {
            // They were replaced by equal files.
            Ok(head) if before.as_ref().is_some_and(|old| Arc::ptr_eq(old, &head)) => {}
            Ok(head) => {
                let (new, new_version) = (&head.manifest.sha256, &head.manifest.version);
                tracing::info!(
                    target: AUDIT, action, by, head = name, old, new, new_version, outcome = "done",
                    "taken over from the repository"
                );
            }
            Err(error) if error.kind() == Kind::LoadFailed => {
                let old_one_serves = before.is_some();
                tracing::error!(
                    target: AUDIT, action, by, head = name, old, outcome = "failed", %error, old_one_serves,
                    "does not load"
                );
            }
            // A folder of another name than its head's, such as a copy that was put aside.
            Err(error) => tracing::warn!("{}: ignored", error.message()),
        }
    }
}
