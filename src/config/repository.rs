//! The section `[repository]`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::repository::OnBadHead;

/// `[repository]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Repository {
    /// Folder of the models, or a link to one; the embedded demo models if unset.
    pub path: Option<PathBuf>,
    /// Seconds between looks at the folder for heads that came, changed or went; 0 to look only when told to.
    pub watch_seconds: u64,
    /// What becomes of a start if a head does not load: `refuse` ends it, `serve-others` serves the heads that do. If
    /// unset `frostline check` refuses and `frostline serve` serves the others.
    pub on_bad_head: Option<OnBadHead>,
    /// Heads that must serve for the server to be ready.
    pub required_heads: Vec<String>,
}

impl Default for Repository {
    fn default() -> Self {
        Self {
            path: None,
            watch_seconds: 2,
            on_bad_head: None,
            required_heads: Vec::new(),
        }
    }
}
