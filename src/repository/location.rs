//! Where a repository is read from, and how its files look from outside.

use std::{fs, io, path::Path, time::SystemTime};

use super::{
    BTreeMap, BackboneManifest, Files, Folder, HeadEntry, PathBuf, RepositoryError, embedded,
    load_head,
};

/// Longest name of a folder, bytes.
const MOST_NAME: usize = 255;

/// Where a repository is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// The demo models that are part of the binary.
    Embedded,
    /// A folder, as an absolute path.
    Folder(PathBuf),
}

/// How a head's files look from outside: it changes when one of them is written, added or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp(Vec<(String, u64, Option<SystemTime>)>);

impl Location {
    /// Reads and checks the head `name` as it is now.
    ///
    /// # Errors
    /// No such head, or the first file or field that is wrong.
    pub fn head(
        &self,
        name: &str,
        backbone: &BackboneManifest,
    ) -> Result<HeadEntry, RepositoryError> {
        // A name is one folder's: nothing that leads elsewhere.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let missing = || RepositoryError::NoHead {
            name: name.chars().take(64).collect(),
        };
        if !(1..=MOST_NAME).contains(&name.len())
            || name.starts_with('.')
            || !name.chars().all(plain)
        {
            return Err(missing());
        }
        match load_head(&*self.files(), name, backbone) {
            Err(RepositoryError::Read { file, source })
                if source.kind() == io::ErrorKind::NotFound && file.ends_with("head.toml") =>
            {
                Err(missing())
            }
            other => other,
        }
    }

    /// Names of the heads that are there.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn heads(&self) -> Result<Vec<String>, RepositoryError> {
        match self {
            Self::Embedded => Ok(embedded::HEADS
                .iter()
                .map(|&name| name.to_owned())
                .collect()),
            Self::Folder(root) => names(root),
        }
    }

    /// The heads that are there, each with how its files look. Nothing for what cannot change, or cannot be read.
    #[must_use]
    pub fn stamps(&self) -> BTreeMap<String, Stamp> {
        let Self::Folder(root) = self else {
            return BTreeMap::new();
        };
        let names = names(root).unwrap_or_default();
        let stamps = names.into_iter().map(|name| {
            let stamp = stamp(&root.join("heads").join(&name));
            (name, stamp)
        });
        stamps.collect()
    }

    pub(super) fn files(&self) -> Box<dyn Files> {
        match self {
            Self::Embedded => Box::new(embedded::Embedded),
            Self::Folder(root) => Box::new(Folder { root: root.clone() }),
        }
    }
}

fn stamp(folder: &Path) -> Stamp {
    let mut files: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            // What a link leads to: volumes swap whole folders by a link.
            let meta = fs::metadata(entry.path()).ok()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let known = [".DS_Store", "Thumbs.db", "desktop.ini"].contains(&&*name);
            // What a file browser leaves is no change of a head.
            (!known && !name.starts_with("._")).then(|| (name, meta.len(), meta.modified().ok()))
        })
        .collect();
    files.sort();
    Stamp(files)
}

/// Whether a folder is none of a head's: hidden, where a copy in progress hides until it is renamed into place, or left
/// by an operating system, a file server or an archive.
fn is_left_behind(name: &str) -> bool {
    const KNOWN: [&str; 8] = [
        "__MACOSX",
        "lost+found",
        "@eaDir",
        "#recycle",
        "#snapshot",
        "$RECYCLE.BIN",
        "System Volume Information",
        "__pycache__",
    ];
    name.starts_with('.') || KNOWN.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Names of the folders under `heads`.
pub(super) fn names(root: &Path) -> Result<Vec<String>, RepositoryError> {
    let heads = root.join("heads");
    let mut names = Vec::new();
    if heads.is_dir() {
        let unreadable = |source| RepositoryError::Read {
            file: "heads".to_owned(),
            source,
        };
        for entry in fs::read_dir(&heads).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !is_left_behind(&name) && entry.path().is_dir() {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
}
