//! Where a repository is read from, and how its files look from outside.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path, time::SystemTime};

use super::{
    BTreeMap, BackboneManifest, Files, Folder, HeadEntry, PathBuf, RepositoryError, embedded,
    load_head, read_text,
};

/// Longest name of a folder, bytes.
const MOST_NAME: usize = 255;

/// Where a repository is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// The demo models that are part of the binary.
    Embedded,
    /// A folder, or a link to one, as an absolute path.
    Folder(PathBuf),
}

/// How a head's files look from outside: it changes when one of them is written, added, removed or replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp(Vec<File>);

/// A file's name, which one it is, its size and when it was written.
type File = (String, [u64; 2], u64, Option<SystemTime>);

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
        match load_head(&*self.files()?, name, backbone) {
            Err(RepositoryError::Read { file, source })
                if source.kind() == io::ErrorKind::NotFound && file.ends_with("head.toml") =>
            {
                Err(missing())
            }
            other => other,
        }
    }

    /// Names of the heads that are there, good or not.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn heads(&self) -> Result<Vec<String>, RepositoryError> {
        let Self::Folder(root) = self else {
            let names = embedded::HEADS.iter().map(|&name| name.to_owned());
            return Ok(names.collect());
        };
        let files = self.files()?;
        let mut names = names(root)?;
        names.retain(|name| !is_another(&*files, name));
        Ok(names)
    }

    /// The heads that are there, each with how its files look. Nothing for what cannot change.
    ///
    /// # Errors
    /// A folder that is no repository, or cannot be read: none of its heads was taken away.
    pub fn stamps(&self) -> Result<BTreeMap<String, Stamp>, RepositoryError> {
        let Self::Folder(root) = self else {
            return Ok(BTreeMap::new());
        };
        let names = names(root)?;
        let backbone = root.join("backbone.toml");
        fs::metadata(&backbone).map_err(|source| RepositoryError::Read {
            file: backbone.display().to_string(),
            source,
        })?;
        let stamps = names.into_iter().map(|name| {
            let stamp = stamp(&root.join("heads").join(&name));
            (name, stamp)
        });
        Ok(stamps.collect())
    }

    /// The files as they are now: those of one tree, even if the root's link leads to another meanwhile.
    pub(super) fn files(&self) -> Result<Box<dyn Files>, RepositoryError> {
        Ok(match self {
            Self::Embedded => Box::new(embedded::Embedded),
            Self::Folder(link) => {
                let root = link.canonicalize();
                let root = root.map_err(|source| RepositoryError::Read {
                    file: link.display().to_string(),
                    source,
                })?;
                Box::new(Folder { root })
            }
        })
    }
}

/// Whether the folder's manifest names another head: then it is none, whatever else is in it.
fn is_another(files: &dyn Files, folder: &str) -> bool {
    let text = read_text(files, &format!("heads/{folder}/head.toml"));
    let table = text.ok().and_then(|text| text.parse::<toml::Table>().ok());
    let name = table.as_ref().and_then(|table| table.get("name")?.as_str());
    name.is_some_and(|name| name != folder)
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
            let which = [meta.dev(), meta.ino()];
            (!known && !name.starts_with("._"))
                .then(|| (name, which, meta.len(), meta.modified().ok()))
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
