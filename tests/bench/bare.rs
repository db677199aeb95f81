//! Graphs without a server around them.

use std::{collections::BTreeMap, time::Duration};

use frostline::{
    backend::{Backbone, DeviceChoice, DeviceOptions, HeadModel, Runtime, SessionOptions},
    engine::{self, EngineConfig, TrialOptions},
    repository::Repository,
};

/// A backbone and heads, loaded for so many lanes of so many threads.
pub(crate) struct Bare {
    pub(crate) backbone: Backbone,
    heads: BTreeMap<String, HeadModel>,
}

impl Bare {
    pub(crate) fn load(
        runtime: &Runtime,
        repository: &Repository,
        lanes: usize,
        threads: usize,
        batches: &[usize],
    ) -> anyhow::Result<Self> {
        let options = SessionOptions { lanes, threads };
        let (manifest, graph) = (&repository.backbone, &repository.graph);
        let backbone = Backbone::load(runtime, manifest, graph, options)?;
        for &size in &manifest.input.sizes {
            for &rows in batches {
                backbone.prepare(size, rows)?;
            }
        }
        let mut heads = BTreeMap::new();
        for entry in &repository.heads {
            let model = HeadModel::load(runtime, entry, &backbone, options)?;
            heads.insert(entry.manifest.name.clone(), model);
        }
        Ok(Self { backbone, heads })
    }

    pub(crate) fn head(&self, name: &str) -> &HeadModel {
        &self.heads[name]
    }
}

/// The runtime of every way to run the backbone that can be used here and agrees with fp32, by its name, and the one that the
/// server takes.
pub(crate) fn ways(
    runtime: &Runtime,
    repository: &Repository,
) -> anyhow::Result<(Vec<(String, Runtime)>, Runtime)> {
    let auto = runtime.on(&DeviceOptions::default())?;
    let options = TrialOptions {
        budget: Duration::from_secs(60),
        file: None,
    };
    let (placed, trial) = engine::choose(&auto, repository, &EngineConfig::default(), &options)?;
    let mut ways = vec![("cpu".to_owned(), runtime.clone())];
    let tried = trial.map(|trial| trial.tried).unwrap_or_default();
    for one in tried.iter().skip(1) {
        println!("  {}: {}", one.name(), one.verdict);
        // Slower ones may still be the best of a loop; what answers otherwise does not count.
        if one.rate.is_some() && !one.verdict.starts_with("answers otherwise") {
            let device = DeviceOptions {
                device: DeviceChoice::OpenVino,
                precision: one.precision,
                ..DeviceOptions::default()
            };
            ways.push((one.name(), runtime.on(&device)?));
        }
    }
    Ok((ways, placed))
}
