//! A repository that is not what it says is refused, naming file and field.

use std::{fs, os::unix::fs::symlink, path::Path};

use frostline::{proto, repository::Repository};
use prost::encoding::encode_varint;
use sha2::{Digest, Sha256};
use tonic::Code;

use crate::support::{Running, one_lane, png};

fn demo() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo"))
}

/// A copy of the demo repository that `change` has spoilt; what opening it says.
fn spoilt(change: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    copy(root);
    change(root);
    match Repository::open(root) {
        Ok(_) => "opened".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Copies the demo repository without its samples.
fn copy(root: &Path) {
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

// === weights outside a graph ===

/// A protobuf field that has a length.
fn field(tag: u64, body: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    encode_varint(tag << 3 | 2, &mut out);
    encode_varint(body.as_ref().len() as u64, &mut out);
    out.extend(body.as_ref());
    out
}

fn number(tag: u64, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    encode_varint(tag << 3, &mut out);
    encode_varint(value, &mut out);
    out
}

fn entry(key: &str, value: &str) -> Vec<u8> {
    [field(1, key), field(2, value)].concat()
}

/// A tensor `name` of four floats in the file `location`.
fn outside(name: &str, location: &str) -> Vec<u8> {
    let (shape, kind, external) = (number(1, 4), number(2, 1), number(14, 1));
    let data = [entry("location", location), entry("length", "16")].map(|e| field(13, e));
    [shape, kind, field(8, name), data.concat(), external].concat()
}

/// Gives the head `scene` these tensors more, and `seal` as the hash of what is in them.
fn append(root: &Path, tensors: &[Vec<u8>], seal: Option<&str>) {
    let folder = root.join("heads/scene");
    let graph = folder.join("head.onnx");
    let mut bytes = fs::read(&graph).unwrap();
    let before = hex::encode(Sha256::digest(&bytes));
    for tensor in tensors {
        bytes.extend(field(7, field(5, tensor)));
    }
    if let Some(seal) = seal {
        bytes.extend(field(14, entry("data_sha256", seal)));
    }
    fs::write(&graph, &bytes).unwrap();
    let after = hex::encode(Sha256::digest(&bytes));
    edit(&folder.join("head.toml"), &before, &after);
}

const WEIGHTS: [u8; 16] = [7; 16];

#[test]
fn weights_outside_a_graph_lie_beside_it_and_are_sealed() {
    let sealed = hex::encode(Sha256::digest(WEIGHTS));
    // Every one of them is sealed with the right hash of the wrong file, where there is one.
    let passwd = hex::encode(Sha256::digest(fs::read("/etc/passwd").unwrap()));
    let leaves = "which is no file below the graph's folder";
    let cases = [
        ("/etc/passwd", Some(&passwd), leaves),
        ("../../../../../../../../etc/passwd", Some(&passwd), leaves),
        ("../weights", Some(&sealed), leaves),
        ("a/../../weights", Some(&sealed), leaves),
        ("", Some(&sealed), leaves),
        ("..", Some(&sealed), leaves),
        ("a\0b", Some(&sealed), leaves),
        ("..\\weights", Some(&sealed), leaves),
        ("link", Some(&passwd), "heads/scene/link: cannot be read"),
        ("none", Some(&sealed), "heads/scene/none: cannot be read"),
        // ONNX Runtime's own word for an address in memory.
        ("*/_ORT_MEM_ADDR_/*", Some(&sealed), "cannot be read"),
        ("weights", None, "data_sha256: is not in the graph"),
        (
            "weights",
            Some(&passwd),
            "but heads/scene/weights hashes to",
        ),
    ];
    for (location, seal, words) in cases {
        let said = spoilt(|root| {
            fs::write(root.join("heads/weights"), WEIGHTS).unwrap();
            fs::write(root.join("heads/scene/weights"), WEIGHTS).unwrap();
            symlink("/etc/passwd", root.join("heads/scene/link")).unwrap();
            append(root, &[outside("w", location)], seal.map(String::as_str));
        });
        assert!(said.contains(words), "{location:?}: {said:?}");
        assert!(said.contains("heads/scene/"), "{location:?}: {said:?}");
    }
    let two = spoilt(|root| {
        let tensors = [outside("v", "a"), outside("w", "b")];
        append(root, &tensors, Some(&sealed));
    });
    assert!(two.contains("one file can be sealed"), "{two:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_with_weights_outside_serves_until_they_are_others() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    copy(root);
    let plain = Running::start(one_lane()).await;
    let image = || png(64, 64, 3);
    let wanted = plain.client().await.segment(image()).await.unwrap();
    plain.stop().await;
    fs::write(root.join("heads/scene/weights"), WEIGHTS).unwrap();
    let sealed = hex::encode(Sha256::digest(WEIGHTS));
    append(root, &[outside("w", "weights")], Some(&sealed));
    let server = Running::start_of(&Repository::open(root).unwrap(), one_lane()).await;
    let mut client = server.client().await;
    let got = client.segment(image()).await.unwrap();
    assert_eq!(got.result, wanted.result);

    fs::write(root.join("heads/scene/weights"), [8; 16]).unwrap();
    let name = "scene".to_owned();
    let load = client.model.load_head(proto::LoadHeadRequest { name });
    let status = load.await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("data_sha256"), "{status:?}");
    let got = client.segment(image()).await.unwrap();
    assert_eq!(got.result, wanted.result, "the one before goes on serving");
    drop(client);
    server.stop().await;
}
