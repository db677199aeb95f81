//! Heads come, change and go while serving.
//!
//! A request holds the head that it was admitted with, so a replaced one answers what it accepted and its memory goes
//! with the last such request.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Engine, Head, Shared, board, known::ByCaller, mean::Mean, postprocess};
use crate::{
    backend::{Backbone, BackendError, HeadModel, Runtime, SessionOptions},
    error::{Error, Kind, Result},
    media,
    repository::{HeadEntry, RepositoryError, Stamp},
};

/// How the folder's heads looked.
struct Looks {
    /// Last time.
    last: BTreeMap<String, Stamp>,
    /// When what is loaded was brought in line.
    followed: BTreeMap<String, Stamp>,
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
        Ok(Self {
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
        self.shared.load_head(name)
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
        self.shared.changes.send_replace(());
        self.shared.config.metrics.head_gone(name);
        tracing::info!(head = name, version = head.manifest.version, "unloaded");
        Ok(head)
    }

    /// Follows the repository's folder from now on: looks at it every `interval`, loads heads that are new or changed and
    /// unloads those that are gone, once they look the same twice in a row. A head that does not load is told once and tried again when its files change.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub fn watch(&self, interval: Duration) -> Result<(), BackendError> {
        let last = self.shared.location.stamps();
        let mut looks = Looks {
            followed: last.clone(),
            last,
        };
        self.spawn("watch".to_owned(), move |shared| {
            while !shared.queue.closed_within(interval) {
                shared.follow(&mut looks);
            }
        })
    }
}

impl Shared {
    fn load_head(&self, name: &str) -> Result<Arc<Head>> {
        let loaded = self.swap_in(name);
        // Names that the repository has not may come from anybody: they are no label.
        match &loaded {
            Ok(_) => self.config.metrics.head_load(name, true),
            Err(error) if error.kind() == Kind::LoadFailed => {
                self.config.metrics.head_load(name, false);
            }
            Err(_) => {}
        }
        loaded
    }

    fn swap_in(&self, name: &str) -> Result<Arc<Head>> {
        // One at a time: loading takes memory and every core.
        let _loading = self.loading.lock();
        let failed = |error: String| Error::new(Kind::LoadFailed, error).at("name");
        let entry =
            self.location
                .head(name, self.backbone.manifest())
                .map_err(|error| match error {
                    RepositoryError::NoHead { .. } => {
                        Error::new(Kind::UnknownHead, error.to_string()).at("name")
                    }
                    error => failed(error.to_string()),
                })?;
        let head = Head::load(&self.runtime, &entry, &self.backbone, self.options)
            .map_err(|error| failed(error.to_string()))?;
        let head = Arc::new(head);
        let name = head.manifest.name.clone();
        let old = self.heads.write().insert(name, Arc::clone(&head));
        self.changes.send_replace(());
        let (name, version) = (&head.manifest.name, &head.manifest.version);
        match old {
            Some(old) => {
                let from = &old.manifest.version;
                tracing::info!(head = name, version, from, "replaced");
            }
            None => tracing::info!(head = name, version, "loaded"),
        }
        Ok(head)
    }

    /// Brings what is loaded in line with the folder. What looks the same as last time has been copied in full; what is
    /// gone only for a moment is being replaced.
    fn follow(&self, looks: &mut Looks) {
        let now = self.location.stamps();
        let names: BTreeSet<_> = now.keys().chain(looks.followed.keys()).cloned().collect();
        for name in names {
            let stamp = now.get(&name);
            if stamp != looks.last.get(&name) || stamp == looks.followed.get(&name) {
                continue;
            }
            match stamp {
                Some(stamp) => {
                    if let Err(error) = self.load_head(&name) {
                        let serving = self.heads.read().contains_key(&name);
                        tracing::error!(head = name, %error, old_one_serves = serving, "does not load");
                    }
                    looks.followed.insert(name, stamp.clone());
                }
                None => {
                    if self.heads.write().remove(&name).is_some() {
                        self.changes.send_replace(());
                        tracing::info!(head = name, "unloaded: its folder is gone");
                    }
                    self.config.metrics.head_gone(&name);
                    looks.followed.remove(&name);
                }
            }
        }
        looks.last = now;
    }
}
