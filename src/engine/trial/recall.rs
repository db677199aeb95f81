//! A trial's outcome, kept for the next start: by processor, library and plugin, models, and how they are run.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Tried;
use crate::{
    backend::{LIBRARY_VERSION, Runtime, SessionOptions},
    repository::Repository,
};

/// What a trial is and how it decides: outcomes of others are not taken.
const VERSION: &str = "1";
/// Most bytes of the file.
const MOST_BYTES: u64 = 1 << 20;
/// Outcomes that are kept, the latest.
const MOST: usize = 32;

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Outcomes {
    outcomes: Vec<Kept>,
}

/// One outcome.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    key: String,
    tried: Vec<Tried>,
}

/// What an outcome holds for: on anything else it is found anew.
pub(super) fn key(
    runtime: &Runtime,
    repository: &Repository,
    sessions: SessionOptions,
    batches: &[usize],
) -> String {
    let asked = runtime.device().options();
    let heads = repository
        .heads
        .iter()
        .map(|head| head.manifest.sha256.as_str());
    let parts = [
        VERSION.to_owned(),
        processor(),
        LIBRARY_VERSION.to_owned(),
        runtime.plugin_stamp(),
        repository.backbone.sha256.clone(),
        heads.collect::<Vec<_>>().join(" "),
        format!("{} {}", asked.device, asked.precision),
        format!("{} x {} {batches:?}", sessions.lanes, sessions.threads),
    ];
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

/// The processor's model and what it can do.
fn processor() -> String {
    let about = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of = |key: &str| {
        let line = about.lines().find(|line| line.starts_with(key));
        line.unwrap_or_default().to_owned()
    };
    [of("model name"), of("flags"), of("Features")].join("\n")
}

/// The outcome that `file` keeps for `key`.
pub(super) fn read(file: &Path, key: &str) -> Option<Vec<Tried>> {
    let kept = load(file).outcomes;
    kept.into_iter()
        .find(|kept| kept.key == key)
        .map(|kept| kept.tried)
}

/// What the file holds; nothing where it holds something else, which is then written over.
fn load(file: &Path) -> Outcomes {
    let read = || -> io::Result<Outcomes> {
        let mut text = Vec::new();
        File::open(file)?.take(MOST_BYTES).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    };
    read().unwrap_or_default()
}

/// Keeps an outcome. Where that is not possible the next start makes its own trial.
pub(super) fn write(file: &Path, key: &str, tried: &[Tried]) {
    let mut all = load(file);
    all.outcomes.retain(|kept| kept.key != key);
    all.outcomes.push(Kept {
        key: key.to_owned(),
        tried: tried.to_vec(),
    });
    let over = all.outcomes.len().saturating_sub(MOST);
    all.outcomes.drain(..over);
    let written = || -> io::Result<()> {
        let folder = file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        // Whole or not at all, whoever else writes.
        let beside = folder.join(format!(".trial-{}", std::process::id()));
        let mut out = File::create(&beside)?;
        out.write_all(&serde_json::to_vec_pretty(&all)?)?;
        let moved = fs::rename(&beside, file);
        if moved.is_err() {
            let _ = fs::remove_file(&beside);
        }
        moved
    };
    match written() {
        Ok(()) => tracing::debug!(file = %file.display(), "the trial's outcome is remembered"),
        Err(error) => {
            tracing::info!(file = %file.display(), %error, "the trial's outcome is not remembered: the next start makes one");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::backend::{DeviceChoice, Precision};

    #[test]
    fn outcomes_are_kept_by_key_and_the_oldest_go() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/trial.json");
        let tried = |ratio| {
            vec![Tried {
                device: DeviceChoice::OpenVino,
                precision: Precision::Bf16,
                rate: Some((10.0, 4)),
                ratio,
                verdict: "chosen".to_owned(),
            }]
        };
        assert_eq!(read(&file, "a"), None);
        write(&file, "a", &tried(1.0));
        write(&file, "a", &tried(2.0));
        write(&file, "b", &tried(3.0));
        assert_eq!(read(&file, "a"), Some(tried(2.0)));
        for more in 0..MOST - 1 {
            write(&file, &more.to_string(), &tried(1.0));
        }
        assert_eq!(
            (read(&file, "a"), read(&file, "b")),
            (None, Some(tried(3.0)))
        );
        for damaged in [&b"{"[..], b"[]", b"{\"outcomes\": [{\"key\": 1}]}", b"\xff"] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(read(&file, "b"), None);
        }
        write(&file, "b", &tried(3.0));
        assert_eq!(read(&file, "b"), Some(tried(3.0)));
        // Only the file is left behind.
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }
}
