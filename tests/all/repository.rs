//! A repository that is not what it says is refused, naming file and field.

use std::{fs, os::unix::fs::symlink, path::Path};

use frostline::{proto, repository::Repository};
use prost::encoding::encode_varint;
use sha2::{Digest, Sha256};
use tonic::Code;

use crate::{
    common::onnx::{FLOAT, INT64, Onnx},
    support::{Running, one_lane, png},
};

fn demo() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo"))
}

/// A copy of the demo repository that `change` has spoilt; what opening it says.
pub(crate) fn spoilt(change: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    copy(root);
    change(root);
    match Repository::open(root) {
        Ok(_) => "opened".to_owned(),
        Err(error) => format!("{:#}", anyhow::Error::from(error)),
    }
}

/// Copies the demo repository without its samples.
pub(crate) fn copy(root: &Path) {
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

pub(crate) fn edit(path: &Path, from: &str, to: &str) {
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

#[test]
fn a_pointer_in_place_of_a_file_is_called_one() {
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 489489\n",
        "0".repeat(64)
    );
    for file in [
        "backbone.onnx",
        "heads/objects/head.onnx",
        "heads/scene/head.toml",
    ] {
        let said = spoilt(|root| fs::write(root.join(file), &pointer).unwrap());
        assert!(
            said.starts_with(&format!("{file}: is a Git LFS pointer")),
            "{said}"
        );
        assert!(said.contains("git lfs pull"), "{said}");
    }
    // Weights beside a graph.
    let said = spoilt(|root| {
        fs::write(root.join("heads/scene/weights"), &pointer).unwrap();
        let sealed = hex::encode(Sha256::digest(WEIGHTS));
        append(root, &[outside("w", "weights")], Some(&sealed));
    });
    assert!(
        said.starts_with("heads/scene/weights: is a Git LFS pointer"),
        "{said}"
    );
}

#[test]
fn folders_that_others_leave_are_no_heads() {
    let said = spoilt(|root| {
        for name in [
            "__MACOSX",
            ".DS_Store",
            ".ipynb_checkpoints",
            "lost+found",
            "@eaDir",
            "#recycle",
            "$RECYCLE.BIN",
            "System Volume Information",
            "__pycache__",
            ".snapshot",
        ] {
            fs::create_dir_all(root.join("heads").join(name)).unwrap();
        }
        fs::write(root.join("heads/Thumbs.db"), b"x").unwrap();
        fs::create_dir_all(root.join("lost+found")).unwrap();
    });
    assert_eq!(said, "opened");
    let said = spoilt(|root| fs::create_dir_all(root.join("heads/objects-2")).unwrap());
    assert!(said.contains("heads/objects-2/head.toml"), "{said}");
}

/// One label of the manifest's is taken away; the graph says that it can give it, a dry run on a picture or two does not.
#[test]
fn a_label_that_the_manifest_does_not_name_is_found_in_the_graph() {
    let said = spoilt(|root| {
        edit(&root.join("heads/objects/head.toml"), ", \"balloon\"", "");
    });
    assert_eq!(
        said,
        "heads/objects/head.toml: labels: names 21, but the graph's output \"labels\" gives numbers from 0 to 21: 22 are needed"
    );
}

/// Ways in which graphs make labels, and how many of them there are.
#[test]
fn the_number_of_labels_is_read_off_a_graph() {
    let start = || {
        Onnx::default()
            .input("stride32", FLOAT, &["N", "256", "4", "4"])
            .ints("classes", &[7])
            .floats("classes-f", &[7.0])
            .ints("table", &[3, 1, 6, 2])
            .ints("one", &[1])
            .node("Cast", &["stride32"], "whole", &[("to", INT64.into())])
    };
    let cases: [(&str, Onnx); 6] = [
        (
            "the rest of a division",
            start()
                .node("Div", &["whole", "classes"], "ratio", &[])
                .node("Mul", &["ratio", "classes"], "product", &[])
                .node("Sub", &["whole", "product"], "labels", &[]),
        ),
        (
            "the same in floats",
            start()
                .node("Div", &["stride32", "classes-f"], "ratio", &[])
                .node("Floor", &["ratio"], "floor", &[])
                .node("Cast", &["floor"], "cast", &[("to", INT64.into())])
                .node("Mul", &["classes", "cast"], "product", &[])
                .node("Sub", &["whole", "product"], "labels", &[]),
        ),
        (
            "a modulus",
            start()
                .node("Mod", &["whole", "classes"], "rest", &[])
                .node("Identity", &["rest"], "labels", &[]),
        ),
        (
            "a place in a table",
            start().node("Gather", &["table", "whole"], "labels", &[]),
        ),
        (
            "a maximum's place and one more",
            start()
                .ints("from", &[0])
                .ints("to", &[6])
                .ints("shape", &[-1, 6, 16])
                .node("Slice", &["stride32", "from", "to", "one"], "part", &[])
                .node("Reshape", &["part", "shape"], "chances", &[])
                .node("Sigmoid", &["chances"], "softened", &[])
                .node(
                    "ArgMax",
                    &["softened"],
                    "place",
                    &[("axis", -2), ("keepdims", 0)],
                )
                .node("Add", &["one", "place"], "labels", &[]),
        ),
        (
            "parts of one another",
            start()
                .node("Mod", &["whole", "classes"], "rest", &[])
                .node("Mod", &["whole", "one"], "nothing", &[])
                .node("Concat", &["rest", "nothing"], "labels", &[("axis", 1)]),
        ),
    ];
    for (way, graph) in cases {
        let graph = graph.output("labels", INT64, &["N", "K"]).bytes();
        for (labels, enough) in [(6, false), (7, true)] {
            let said = spoilt(|root| replace(root, &graph, labels));
            let wanted = "from 0 to 6: 7 are needed";
            assert_eq!(said == "opened", enough, "{way}, {labels}: {said}");
            assert!(enough || said.contains(wanted), "{way}: {said}");
        }
    }
}

/// Gives the head `objects` this graph and this many labels.
fn replace(root: &Path, graph: &[u8], labels: usize) {
    let folder = root.join("heads/objects");
    let text = fs::read_to_string(folder.join("head.toml")).unwrap();
    let names: Vec<String> = (0..labels).map(|label| label.to_string()).collect();
    let changed = text.lines().map(|line| match line.split(' ').next() {
        Some("sha256") => format!("sha256 = \"{}\"", hex::encode(Sha256::digest(graph))),
        Some("labels") => format!("labels = {names:?}"),
        _ => line.to_owned(),
    });
    fs::write(
        folder.join("head.toml"),
        changed.collect::<Vec<_>>().join("\n"),
    )
    .unwrap();
    fs::write(folder.join("head.onnx"), graph).unwrap();
}

/// Ways back that never end, or are more than can be walked, say nothing of the labels, and soon.
#[test]
fn graphs_that_lead_in_circles_are_given_up() {
    let start = || Onnx::default().output("labels", INT64, &["N", "K"]);
    let double = |graph: Onnx, step: usize| {
        let (from, to) = (format!("t{step}"), format!("t{}", step + 1));
        graph.node("Concat", &[&from, &from], &to, &[("axis", 1)])
    };
    let long = |graph: Onnx, step: usize| {
        let (from, to) = (format!("t{step}"), format!("t{}", step + 1));
        graph.node("Identity", &[&from], &to, &[])
    };
    let end = |graph: Onnx, last: &str| graph.node("Identity", &[last], "labels", &[]);
    let graphs = [
        start().node("Identity", &["labels"], "labels", &[]),
        start().node("Concat", &["labels", "labels"], "labels", &[("axis", 0)]),
        (start().node("Concat", &["chances", "chances"], "chances", &[("axis", 0)]))
            .node("Add", &["chances", "chances"], "chances", &[])
            .node("ArgMax", &["chances"], "labels", &[("axis", i64::MIN)]),
        end((0..40).fold(start().ints("t0", &[7]), double), "t40"),
        end((0..100_000).fold(start().ints("t0", &[7]), long), "t100000"),
        (start().ints("least", &[i64::MIN])).node("Mod", &["x", "least"], "labels", &[]),
        (start().input("x", FLOAT, &["N", "-9223372036854775808"])).node(
            "ArgMax",
            &["x"],
            "labels",
            &[("axis", 1)],
        ),
    ];
    for graph in graphs {
        let graph = graph.bytes();
        assert_eq!(spoilt(|root| replace(root, &graph, 1)), "opened");
    }
}

// === weights outside a graph ===

/// A protobuf field that has a length.
pub(crate) fn field(tag: u64, body: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    encode_varint(tag << 3 | 2, &mut out);
    encode_varint(body.as_ref().len() as u64, &mut out);
    out.extend(body.as_ref());
    out
}

pub(crate) fn number(tag: u64, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    encode_varint(tag << 3, &mut out);
    encode_varint(value, &mut out);
    out
}

pub(crate) fn entry(key: &str, value: &str) -> Vec<u8> {
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
