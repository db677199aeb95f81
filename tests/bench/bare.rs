//! Graphs without a server around them.

use std::collections::BTreeMap;

use frostline::{
    backend::{Backbone, HeadModel, Runtime, SessionOptions},
    repository::Repository,
};

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
    ) -> anyhow::Result<Self> {
        let options = SessionOptions { lanes, threads };
        let (manifest, graph) = (&repository.backbone, &repository.graph);
        let backbone = Backbone::load(runtime, manifest, graph, options)?;
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
