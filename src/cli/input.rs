//! What a command is to look at: image files, folders of them, clips.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;

/// Names that are taken from a folder; a file named by itself is always taken.
const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "gif"];

/// One request's input.
#[derive(Debug, Clone)]
pub(super) enum Input {
    /// An image file.
    Image(PathBuf),
    /// A clip: its folder (or first file) and its frames in order.
    Clip(PathBuf, Vec<PathBuf>),
}

impl Input {
    /// Images of `paths`: the files themselves, and the images in those that are folders.
    pub(super) fn images(paths: &[PathBuf]) -> anyhow::Result<Vec<Self>> {
        let mut inputs = Vec::new();
        for path in paths {
            if path.is_dir() {
                inputs.extend(images_in(path)?.into_iter().map(Self::Image));
            } else {
                inputs.push(Self::Image(path.clone()));
            }
        }
        ensure!(!inputs.is_empty(), "name image files, or folders of them");
        Ok(inputs)
    }

    /// Clips of `paths`: each folder is one; files named by themselves are one together.
    pub(super) fn clips(paths: &[PathBuf]) -> anyhow::Result<Vec<Self>> {
        let mut inputs = Vec::new();
        let mut files = Vec::new();
        for path in paths {
            if path.is_dir() {
                inputs.push(Self::Clip(path.clone(), images_in(path)?));
            } else {
                files.push(path.clone());
            }
        }
        if let Some(first) = files.first() {
            inputs.push(Self::Clip(first.clone(), files));
        }
        Ok(inputs)
    }

    /// Name to show, and to name pictures after.
    pub(super) fn name(&self) -> &Path {
        match self {
            Self::Image(path) | Self::Clip(path, _) => path,
        }
    }

    /// The bytes of its files, in order.
    pub(super) fn read(&self) -> anyhow::Result<Vec<Bytes>> {
        let files = match self {
            Self::Image(path) => std::slice::from_ref(path),
            Self::Clip(_, frames) => frames,
        };
        let read = |file: &PathBuf| -> anyhow::Result<Bytes> {
            let bytes =
                fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            Ok(bytes.into())
        };
        files.iter().map(read).collect()
    }
}

/// The images of a folder, by name.
fn images_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let listing =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in listing {
        let path = entry?.path();
        let extension = path
            .extension()
            .unwrap_or_default()
            .to_string_lossy()
            .to_lowercase();
        if path.is_file() && EXTENSIONS.contains(&extension.as_str()) {
            files.push(path);
        }
    }
    if files.is_empty() {
        bail!(
            "{} has no images ({})",
            folder.display(),
            EXTENSIONS.join(", ")
        );
    }
    files.sort();
    Ok(files)
}
