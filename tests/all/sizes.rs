//! A repository's files: how large they may be, that what was hashed is what serves, and that errors show none of them.

use std::{fs, path::Path};

use frostline::{proto, repository::Repository};
use sha2::{Digest, Sha256};

use crate::{
    common::{
        graphs::{HeadGraph, TOUCHY, pixels, write_head},
        onnx::{FLOAT, Onnx},
    },
    repository::{copy, entry, field, number, spoilt},
    support::{Running, one_lane},
};

/// A file of `bytes` zeros that take no room.
fn hollow(path: &Path, bytes: u64) {
    fs::File::create(path).unwrap().set_len(bytes).unwrap();
}

#[test]
fn files_that_are_too_large_are_not_read() {
    let manifest = spoilt(|root| hollow(&root.join("heads/scene/head.toml"), 200 << 20));
    assert!(
        manifest.contains("heads/scene/head.toml") && manifest.contains("limit is 1048576"),
        "{manifest:?}"
    );
    let backbone = spoilt(|root| hollow(&root.join("backbone.toml"), 3 << 30));
    assert!(backbone.contains("limit is 1048576"), "{backbone:?}");
    let graph = spoilt(|root| hollow(&root.join("heads/scene/head.onnx"), 1 << 42));
    assert!(
        graph.contains("heads/scene/head.onnx") && graph.contains("the limit is 2147483647"),
        "{graph:?}"
    );
}

#[test]
fn complaints_name_the_line_and_do_not_show_it() {
    let secret = format!("hunter2 = \"{}\"", "x".repeat(100_000));
    for wrong in [
        secret.clone(),
        format!("name = [{secret}"),
        "hunter2".repeat(50_000),
    ] {
        let said = spoilt(|root| {
            let file = root.join("heads/scene/head.toml");
            let text = fs::read_to_string(&file).unwrap();
            fs::write(&file, format!("# first\n{wrong}\n{text}")).unwrap();
        });
        assert!(said.contains("line 2") && said.len() < 1000, "{said:?}");
        assert!(!said.contains("xxxxx"), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_weights_that_were_hashed_are_those_that_serve() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let backbone = TOUCHY.write(root);
    let size = TOUCHY.sizes[0];
    for name in ["echo", "scaled"] {
        write_head(root, name, "1", &backbone, size, &HeadGraph::Echo);
    }
    let factor = 3.0_f32.to_le_bytes();
    let weights = root.join("heads/scaled/weights");
    fs::write(&weights, factor).unwrap();
    let outside = [
        number(1, 1),
        number(2, 1),
        field(8, "factor"),
        field(13, entry("location", "weights")),
        field(13, entry("length", "4")),
        number(14, 1),
    ];
    let mut graph = Onnx::default()
        .input("f", FLOAT, &["N", "h", "w", "c"])
        .output("out", FLOAT, &["N", "h", "w", "c"])
        .node("Mul", &["f", "factor"], "out", &[])
        .bytes();
    graph.extend(field(7, field(5, outside.concat())));
    graph.extend(field(
        14,
        entry("data_sha256", &hex::encode(Sha256::digest(factor))),
    ));
    let manifest = root.join("heads/scaled/head.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    let before = fs::read(root.join("heads/echo/head.onnx")).unwrap();
    let [before, after] = [before, graph.clone()].map(|graph| hex::encode(Sha256::digest(graph)));
    fs::write(&manifest, text.replace(&before, &after)).unwrap();
    fs::write(root.join("heads/scaled/head.onnx"), graph).unwrap();

    let repository = Repository::open(root).unwrap();
    // What lies there now is nobody's business any more.
    fs::write(&weights, 9.0_f32.to_le_bytes()).unwrap();
    let server = Running::start_of(&repository, one_lane()).await;
    let mut client = server.client().await;
    let request = proto::AnalyzeRequest {
        input: Some(proto::analyze_request::Input::Image(
            frostline::client::raw(size[1], size[0], pixels(size, [9, 8, 7], 5)),
        )),
        heads: vec!["echo".to_owned(), "scaled".to_owned()],
        ..Default::default()
    };
    let answer = client.vision.analyze(request).await.unwrap().into_inner();
    let values = |index: usize| -> Vec<f32> {
        let Some(proto::head_result::Outcome::Tensor(tensors)) = &answer.results[index].outcome
        else {
            panic!("{:?}", answer.results[index]);
        };
        let bytes = tensors.outputs[0].data.chunks_exact(4);
        bytes
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    };
    let expected: Vec<f32> = values(0).iter().map(|value| 3.0 * value).collect();
    assert!(expected.iter().any(|value| *value != 0.0));
    assert_eq!(values(1), expected);
    drop(client);
    server.stop().await;
}

#[test]
fn a_pipe_in_a_repository_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    copy(folder.path());
    let file = folder.path().join("heads/scene/head.onnx");
    fs::remove_file(&file).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &file, rustix::fs::Mode::RUSR).unwrap();
    let refused = Repository::open(folder.path()).unwrap_err();
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert!(
        refused.to_string().contains("heads/scene/head.onnx"),
        "{refused}"
    );
    assert!(source.contains("not a regular file"), "{source}");
}
