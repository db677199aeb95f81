//! Imports go downward only.

use std::{fs, path::Path};

/// For each module, the crate's modules that it may name.
const ALLOWED: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("files", &[]),
    ("cores", &[]),
    ("corked", &[]),
    ("descriptors", &[]),
    ("memory", &[]),
    ("shares", &[]),
    ("slice", &[]),
    ("stream", &[]),
    ("proto", &[]),
    ("repository", &["files"]),
    ("media", &[]),
    ("task", &["media"]),
    ("track", &["task"]),
    ("metrics", &[]),
    ("telemetry", &[]),
    ("trace", &["files"]),
    ("backend", &["repository"]),
    (
        "engine",
        &[
            "backend",
            "task",
            "media",
            "repository",
            "error",
            "cores",
            "memory",
            "shares",
            "metrics",
            "telemetry",
            "trace",
        ],
    ),
    ("client", &["corked", "proto"]),
    (
        "server",
        &[
            "engine",
            "task",
            "media",
            "repository",
            "backend",
            "error",
            "files",
            "corked",
            "proto",
            "stream",
            "shares",
            "metrics",
            "telemetry",
            "trace",
        ],
    ),
    (
        "config",
        &[
            "cores",
            "backend",
            "engine",
            "repository",
            "server",
            "media",
            "metrics",
            "telemetry",
            "trace",
            "files",
        ],
    ),
    (
        "cli",
        &[
            "config",
            "server",
            "client",
            "engine",
            "backend",
            "repository",
            "media",
            "task",
            "track",
            "proto",
            "metrics",
            "telemetry",
            "trace",
            "error",
            "files",
            "memory",
            "descriptors",
            "slice",
        ],
    ),
];

/// Crates that only these modules may name.
const OWNED: &[(&str, &[&str])] = &[
    ("ort", &["backend"]),
    ("libc", &["files", "slice"]),
    ("libmimalloc_sys", &["memory"]),
    ("rustix", &["cores", "descriptors", "files"]),
    ("tonic", &["server", "client", "proto"]),
    (
        "tokio",
        &[
            "engine", "memory", "corked", "proto", "server", "client", "cli",
        ],
    ),
    ("axum", &["server"]),
    ("hyper", &["server"]),
    ("opentelemetry", &["trace"]),
    ("prometheus_client", &["metrics"]),
];

fn sources(path: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
            let name = path.strip_prefix(root).unwrap().with_extension("");
            let module = name.iter().next().unwrap().to_string_lossy().into_owned();
            found.push((module, fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn modules_name_only_what_lies_below_them() {
    let mut found = Vec::new();
    sources(
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")),
        &mut found,
    );
    let mut checked = 0;
    for (module, text) in &found {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| name == module) else {
            assert!(
                ["lib", "main"].contains(&module.as_str()),
                "{module} has no entry"
            );
            continue;
        };
        let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for (other, _) in ALLOWED.iter().filter(|(other, _)| other != module) {
            // `use crate::{a::b, c}` and `crate::a::b` alike.
            let grouped = joined.split("use crate::{").skip(1).any(|rest| {
                let block = rest.split("};").next().unwrap_or_default();
                block
                    .split([' ', ',', '{'])
                    .any(|word| word.split("::").next() == Some(other))
                    && (block.contains(&format!(" {other}::"))
                        || block.starts_with(&format!("{other}::")))
            });
            let plain = joined.contains(&format!("crate::{other}::"));
            if grouped || plain {
                assert!(
                    allowed.contains(other),
                    "{module} names {other}, which does not lie below it"
                );
                checked += 1;
            }
        }
        for (owned, owners) in OWNED {
            // A name of its own, not the end of another (`ort` in `transport`).
            let named = text.match_indices(&format!("{owned}::")).any(|(at, _)| {
                let before = text[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
            });
            assert!(
                !named || owners.contains(&module.as_str()),
                "{module} names {owned}"
            );
        }
    }
    assert!(
        checked > 10,
        "the check found almost no imports: it looks at the wrong thing"
    );
}
