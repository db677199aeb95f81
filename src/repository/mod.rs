//! The model repository: a folder with one backbone and any number of heads.
//!
//! ```text
//! backbone.toml  backbone.onnx
//! heads/<name>/head.toml  heads/<name>/head.onnx
//! ```
//!
//! Everything read from disk is checked before it is used: unknown keys, values out of range, file names that leave
//! the folder, and the hash of every file, those with weights that a graph keeps outside included. What the graphs
//! themselves take and give is checked by the backend.
//!
//! The root, and any folder below it, may be a link that is swapped as a whole: it is followed anew for each head that is
//! read, which then comes from one tree.

mod embedded;
mod external;
mod labels;
mod location;
mod manifest;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::files;
pub use crate::task::{Key, LABELS, Output, Postprocess, Task};

#[cfg(fuzzing)]
pub use external::fuzz as fuzz_graph;
pub use location::{Location, Stamp};
pub use manifest::{BackboneManifest, Feature, Filter, HeadManifest, Layout, Resize};

/// Why a repository is refused. Names the file, and the field where one is at fault.
#[derive(Debug, Error)]
pub enum RepositoryError {
    /// A file cannot be read.
    #[error("{file}: cannot be read")]
    Read {
        /// Path inside the repository.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// A manifest is not TOML of the expected form.
    #[error("{file}: {detail}")]
    Syntax {
        /// Path inside the repository.
        file: String,
        /// What the parser said.
        detail: String,
    },
    /// A file's content was not fetched.
    #[error("{file}: is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")]
    Pointer {
        /// Path inside the repository.
        file: String,
    },
    /// There is no head of this name.
    #[error("heads/{name}: the repository has no such head")]
    NoHead {
        /// The name asked for, shortened.
        name: String,
    },
    /// A head's folder is called otherwise than the head, as a copy that was put aside is.
    #[error("heads/{folder}: is no head: its manifest names {name:?}")]
    OtherName {
        /// The folder's name.
        folder: String,
        /// The manifest's.
        name: String,
    },
    /// A field has a value that cannot work.
    #[error("{file}: {field}: {reason}")]
    Field {
        /// Path inside the repository.
        file: String,
        /// Name of the field.
        field: String,
        /// What is wrong and what would do.
        reason: String,
    },
}

impl RepositoryError {
    /// A field that cannot work.
    pub fn field(
        file: impl Into<String>,
        field: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self::Field {
            file: file.into(),
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// What it says and what led to it, in one line.
    #[must_use]
    pub fn whole(&self) -> String {
        match self {
            Self::Read { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        }
    }
}

/// What becomes of a start if one of the heads does not load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadHead {
    /// It ends.
    #[default]
    Refuse,
    /// The other heads are served, and it is told which is not and why.
    ServeOthers,
}

/// A graph whose hash has been checked.
#[derive(Debug, Clone)]
pub struct Graph {
    /// Path inside the repository, for messages.
    pub name: String,
    /// The serialized model.
    pub bytes: Cow<'static, [u8]>,
    /// The weights that it keeps outside, if it does.
    pub weights: Option<Weights>,
}

/// Weights outside a graph.
#[derive(Debug, Clone)]
pub struct Weights {
    /// The name by which the graph calls them.
    pub name: String,
    /// The bytes that were hashed.
    pub bytes: Arc<[u8]>,
}

/// A head with its graph.
#[derive(Debug, Clone)]
pub struct HeadEntry {
    /// What `head.toml` says.
    pub manifest: HeadManifest,
    /// What `head.onnx` holds.
    pub graph: Graph,
}

/// A backbone and its heads, read and checked.
#[derive(Debug, Clone)]
pub struct Repository {
    /// What `backbone.toml` says.
    pub backbone: BackboneManifest,
    /// What `backbone.onnx` holds.
    pub graph: Graph,
    /// The heads by name.
    pub heads: Vec<HeadEntry>,
    /// Heads that are wrong, by name, and why; none where they are refused.
    pub refused: BTreeMap<String, String>,
    /// Where it is read from.
    pub location: Location,
    /// How the heads' files looked before they were read.
    pub stamps: BTreeMap<String, Stamp>,
}

impl Repository {
    /// Reads the folder `root`, or what it links to.
    ///
    /// # Errors
    /// The first file or field that is wrong.
    pub fn open(root: &Path) -> Result<Self, RepositoryError> {
        Self::open_on(root, OnBadHead::Refuse)
    }

    /// As [`Repository::open`]; what becomes of heads that are wrong says `on_bad_head`.
    ///
    /// # Errors
    /// The first file or field that is wrong, those of heads that are left out set aside.
    pub fn open_on(root: &Path, on_bad_head: OnBadHead) -> Result<Self, RepositoryError> {
        let unreadable = |source| RepositoryError::Read {
            file: root.display().to_string(),
            source,
        };
        // Not where it leads: a link may lead elsewhere later.
        let root = std::path::absolute(root).map_err(unreadable)?;
        root.canonicalize().map_err(unreadable)?;
        let names = location::names(&root)?;
        Self::load(Location::Folder(root), &names, on_bad_head)
    }

    /// The demo models that are part of the binary.
    ///
    /// # Errors
    /// As [`Repository::open`]; a test holds that there are none.
    pub fn embedded() -> Result<Self, RepositoryError> {
        let names: Vec<String> = embedded::HEADS
            .iter()
            .map(|name| (*name).to_owned())
            .collect();
        Self::load(Location::Embedded, &names, OnBadHead::Refuse)
    }

    fn load(
        location: Location,
        names: &[String],
        on_bad_head: OnBadHead,
    ) -> Result<Self, RepositoryError> {
        let files = &*location.files()?;
        let file = "backbone.toml";
        let backbone = BackboneManifest::parse(file, &read_text(files, file)?)?;
        let graph = read_graph(files, "", file, &backbone.file, &backbone.sha256)?;
        let stamps = location.stamps()?;
        let (mut heads, mut refused) = (Vec::new(), BTreeMap::new());
        for name in names {
            match (load_head(files, name, &backbone), on_bad_head) {
                (Ok(head), _) => heads.push(head),
                (Err(error @ RepositoryError::OtherName { .. }), _) => {
                    tracing::warn!("{error}: ignored");
                }
                (Err(error), OnBadHead::Refuse) => return Err(error),
                (Err(error), OnBadHead::ServeOthers) => {
                    refused.insert(name.clone(), error.whole());
                }
            }
        }
        Ok(Self {
            backbone,
            graph,
            heads,
            refused,
            location,
            stamps,
        })
    }
}

fn load_head(
    files: &dyn Files,
    name: &str,
    backbone: &BackboneManifest,
) -> Result<HeadEntry, RepositoryError> {
    let folder = format!("heads/{name}/");
    let file = format!("{folder}head.toml");
    let manifest = HeadManifest::parse(&file, &read_text(files, &file)?)?;
    if manifest.name != name {
        return Err(RepositoryError::OtherName {
            folder: name.to_owned(),
            name: manifest.name,
        });
    }
    manifest.check_against(&file, backbone)?;
    let graph = read_graph(files, &folder, &file, &manifest.file, &manifest.sha256)?;
    labels::check(&file, &manifest, &graph.bytes)?;
    Ok(HeadEntry { manifest, graph })
}

/// Where a repository's files come from.
trait Files {
    /// The bytes at `path` inside the repository, at most `most`.
    fn read(&self, path: &str, most: u64) -> io::Result<Cow<'static, [u8]>>;
    /// As `read`, to be shared.
    fn share(&self, path: &str, most: u64) -> io::Result<Arc<[u8]>>;
}

/// Largest manifest, bytes.
const MOST_MANIFEST: u64 = 1 << 20;

/// Largest graph, bytes: what a protobuf message can have.
const MOST_GRAPH: u64 = (2 << 30) - 1;

/// Largest file of weights outside a graph, bytes.
const MOST_WEIGHTS: u64 = 64 << 30;

/// A folder, as an absolute path without links.
struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Where `path` leads, if that is inside the repository.
    fn resolve(&self, path: &str) -> io::Result<PathBuf> {
        let full = self.root.join(path).canonicalize()?;
        if !full.starts_with(&self.root) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "links to a file outside the repository",
            ));
        }
        Ok(full)
    }
}

impl Files for Folder {
    fn read(&self, path: &str, most: u64) -> io::Result<Cow<'static, [u8]>> {
        files::read(&self.resolve(path)?, most).map(Cow::Owned)
    }

    fn share(&self, path: &str, most: u64) -> io::Result<Arc<[u8]>> {
        files::read_shared(&self.resolve(path)?, most)
    }
}

impl Files for embedded::Embedded {
    fn read(&self, path: &str, _most: u64) -> io::Result<Cow<'static, [u8]>> {
        embedded::get(path)
            .map(Cow::Borrowed)
            .ok_or_else(|| match cfg!(feature = "demo-models") {
                true => io::ErrorKind::NotFound.into(),
                false => io::Error::new(io::ErrorKind::NotFound, "this build has no demo models"),
            })
    }

    fn share(&self, path: &str, most: u64) -> io::Result<Arc<[u8]>> {
        Ok(Arc::from(&*self.read(path, most)?))
    }
}

fn read_text(files: &dyn Files, file: &str) -> Result<String, RepositoryError> {
    let bytes = files
        .read(file, MOST_MANIFEST)
        .map_err(|source| RepositoryError::Read {
            file: file.to_owned(),
            source,
        })?;
    if is_pointer(&bytes) {
        let file = file.to_owned();
        return Err(RepositoryError::Pointer { file });
    }
    String::from_utf8(bytes.into_owned()).map_err(|error| RepositoryError::Syntax {
        file: file.to_owned(),
        detail: format!("is not UTF-8: {error}"),
    })
}

/// Whether a file is what Git leaves in place of one that Git LFS keeps.
fn is_pointer(bytes: &[u8]) -> bool {
    // By its specification a pointer begins with the version's line and is shorter than 1024 bytes.
    bytes.len() < 1024 && bytes.starts_with(b"version https://git-lfs.github.com/spec/")
}

fn read_graph(
    files: &dyn Files,
    folder: &str,
    manifest: &str,
    file: &str,
    expected: &str,
) -> Result<Graph, RepositoryError> {
    let name = format!("{folder}{file}");
    let bytes = files
        .read(&name, MOST_GRAPH)
        .map_err(|source| RepositoryError::Read {
            file: name.clone(),
            source,
        })?;
    if is_pointer(&bytes) {
        return Err(RepositoryError::Pointer { file: name });
    }
    let actual = hex::encode(Sha256::digest(&bytes));
    if actual != expected {
        let reason = format!("is {expected}, but {name} hashes to {actual}");
        return Err(RepositoryError::field(manifest, "sha256", reason));
    }
    let weights = external::check(files, folder, &name, &bytes)?;
    Ok(Graph {
        name,
        bytes,
        weights,
    })
}
