//! A repository that is not what it says is refused, naming file and field.

use std::{fs, path::Path};

use frostline::repository::Repository;

fn demo() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo"))
}

/// A copy of the demo repository that `change` has spoilt; what opening it says.
fn spoilt(change: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for file in ["backbone.toml", "backbone.onnx"] {
        fs::copy(demo().join(file), root.join(file)).unwrap();
    }
    for head in ["objects", "scene", "motion"] {
        fs::create_dir_all(root.join("heads").join(head)).unwrap();
        for file in ["head.toml", "head.onnx"] {
            let path = Path::new("heads").join(head).join(file);
            fs::copy(demo().join(&path), root.join(&path)).unwrap();
        }
    }
    change(root);
    match Repository::open(root) {
        Ok(_) => "opened".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{} has no {from:?}", path.display());
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn a_sound_repository_opens() {
    assert_eq!(spoilt(|_| {}), "opened");
}

/// The exporter of `models/` writes how far the graph is from PyTorch.
#[test]
fn a_backbone_may_say_how_it_was_measured() {
    let measured = spoilt(|root| {
        let path = root.join("backbone.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text + "\n[metrics]\nstride4_cosine = 0.9999\n").unwrap();
    });
    assert_eq!(measured, "opened");
}

/// What is done to a good repository, and what the message must then name.
type Case<'a> = (&'a str, Box<dyn FnOnce(&Path) + 'a>, &'a [&'a str]);

#[test]
fn what_is_wrong_is_named() {
    let objects = "heads/objects/head.toml";
    let scene = "heads/scene/head.toml";
    let cases: [Case; 8] = [
        (
            "missing graph",
            Box::new(|root| fs::remove_file(root.join("backbone.onnx")).unwrap()),
            &["backbone.onnx"],
        ),
        (
            "missing manifest",
            Box::new(move |root| fs::remove_file(root.join(objects)).unwrap()),
            &[objects],
        ),
        (
            "wrong hash",
            Box::new(|root| fs::write(root.join("heads/scene/head.onnx"), b"other").unwrap()),
            &[scene, "sha256"],
        ),
        (
            "foreign backbone",
            Box::new(move |root| {
                let path = root.join(scene);
                let text = fs::read_to_string(&path).unwrap();
                let line = text
                    .lines()
                    .find(|line| line.starts_with("backbone"))
                    .unwrap()
                    .to_owned();
                let other = format!("backbone = \"{}\"", "0".repeat(64));
                fs::write(&path, text.replace(&line, &other)).unwrap();
            }),
            &[scene, "backbone"],
        ),
        (
            "unknown key",
            Box::new(move |root| edit(&root.join(scene), "version", "colour = 1\nversion")),
            &[scene, "colour"],
        ),
        (
            "threshold out of range",
            Box::new(move |root| {
                edit(
                    &root.join(objects),
                    "score_threshold = 0",
                    "score_threshold = 7",
                )
            }),
            &[objects, "score_threshold"],
        ),
        (
            "unknown feature",
            Box::new(move |root| edit(&root.join(objects), "\"stride8\"", "\"stride7\"")),
            &[objects, "features"],
        ),
        (
            "a file outside",
            Box::new(|root| {
                edit(
                    &root.join("backbone.toml"),
                    "\"backbone.onnx\"",
                    "\"../x.onnx\"",
                )
            }),
            &["backbone.toml", "file"],
        ),
    ];
    for (name, change, words) in cases {
        let said = spoilt(change);
        for word in words {
            assert!(
                said.contains(word),
                "{name}: {said:?} does not name {word:?}"
            );
        }
    }
}
