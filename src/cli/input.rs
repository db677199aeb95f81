//! What a command is to look at: image files, folders of them, clips.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;

/// Names that are taken from a folder; a file named by itself is always taken.
const EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif"];

/// Most names of one kind that are told.
const MOST_NAMES: usize = 5;

/// What lies in folders and was not taken, by the reason, so that nobody takes silence for "all".
#[derive(Debug, Default)]
pub(super) struct Skipped(BTreeMap<&'static str, Vec<PathBuf>>);

impl Skipped {
    fn add(&mut self, why: &'static str, path: PathBuf) {
        self.0.entry(why).or_default().push(path);
    }

    /// A line for a person; `None` if nothing was skipped.
    pub(super) fn told(&self) -> Option<String> {
        let kind = |(why, paths): (&&str, &Vec<PathBuf>)| {
            let shown = paths.iter().take(MOST_NAMES);
            let mut names: Vec<_> = shown.map(|path| path.display().to_string()).collect();
            if paths.len() > MOST_NAMES {
                names.push(format!("{} more", paths.len() - MOST_NAMES));
            }
            format!("{} {why} ({})", paths.len(), names.join(", "))
        };
        let kinds: Vec<_> = self.0.iter().map(kind).collect();
        (!kinds.is_empty()).then(|| format!("skipped: {}", kinds.join("; ")))
    }
}

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
    pub(super) fn images(paths: &[PathBuf], skipped: &mut Skipped) -> anyhow::Result<Vec<Self>> {
        let mut inputs = Vec::new();
        for path in paths {
            if path.is_dir() {
                inputs.extend(images_in(path, skipped)?.into_iter().map(Self::Image));
            } else {
                inputs.push(Self::Image(path.clone()));
            }
        }
        ensure!(!inputs.is_empty(), "name image files, or folders of them");
        Ok(inputs)
    }

    /// Clips of `paths`: each folder is one; files named by themselves are one together.
    pub(super) fn clips(paths: &[PathBuf], skipped: &mut Skipped) -> anyhow::Result<Vec<Self>> {
        let mut inputs = Vec::new();
        let mut files = Vec::new();
        for path in paths {
            if path.is_dir() {
                inputs.push(Self::Clip(path.clone(), images_in(path, skipped)?));
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

/// The images of a folder, by name; the rest goes to `skipped`.
fn images_in(folder: &Path, skipped: &mut Skipped) -> anyhow::Result<Vec<PathBuf>> {
    let listing =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in listing {
        let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
        let path = entry.path();
        let extension = path
            .extension()
            .unwrap_or_default()
            .to_string_lossy()
            .to_lowercase();
        match fs::metadata(&path) {
            // macOS keeps what other file systems cannot hold in files beside those that it is of, named alike.
            _ if entry.file_name().to_string_lossy().starts_with('.') => {
                skipped.add("hidden", path);
            }
            Ok(meta) if meta.is_dir() => skipped.add("folders in a folder", path),
            Ok(meta) if !meta.is_file() => skipped.add("neither files nor folders", path),
            Ok(_) if EXTENSIONS.contains(&extension.as_str()) => files.push(path),
            Ok(_) => skipped.add("not named as a supported kind of image", path),
            Err(_) => skipped.add("unreadable", path),
        }
    }
    if files.is_empty() {
        let skipped = skipped.told().unwrap_or_else(|| "it is empty".to_owned());
        bail!(
            "{} has no images ({}); {skipped}",
            folder.display(),
            EXTENSIONS.join(", ")
        );
    }
    files.sort();
    Ok(files)
}
