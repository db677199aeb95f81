//! Heads that give their outputs as tensors, and heads that come and go.

use std::{fs, path::Path};

use frostline::{backend::Runtime, proto, repository::Repository};
use tonic::Code;

use super::{
    Inference, ModelInferRequest, ParameterChoice, RepositoryIndexRequest,
    RepositoryModelLoadRequest, RepositoryModelUnloadRequest, field, inference, input, numbers,
    output, parameters, prefixed, raw, typed,
};
use crate::support::{Running, one_lane, png};

/// The demo's backbone and nothing else.
fn backbone(root: &Path) {
    for file in ["backbone.toml", "backbone.onnx"] {
        fs::copy(demo().join(file), root.join(file)).unwrap();
    }
}

/// The demo's segmentation as a head of raw logits.
fn logits(root: &Path, name: &str) {
    let to = root.join("heads").join(name);
    fs::create_dir_all(&to).unwrap();
    fs::copy(demo().join("heads/scene/head.onnx"), to.join("head.onnx")).unwrap();
    let text = fs::read_to_string(demo().join("heads/scene/head.toml")).unwrap();
    let text = text
        .replace("name = \"scene\"", &format!("name = \"{name}\""))
        .replace("task = \"segmentation\"", "task = \"tensor\"");
    fs::write(to.join("head.toml"), text).unwrap();
}

fn demo() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tensor_head_gives_its_outputs_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    backbone(root);
    logits(root, "logits");
    let repository = Repository::open(root).unwrap();
    let server = Running::serve(Runtime::load(None).unwrap(), &repository, one_lane()).await;
    let mut client = inference(&server).await;
    let files = [png(50, 40, 1), png(30, 60, 2)];
    let answer = client
        .model_infer(raw(
            "logits",
            input("image", "BYTES", &[2]),
            prefixed(&files),
        ))
        .await
        .unwrap()
        .into_inner();
    let logits = output(&answer, "logits");
    assert_eq!(logits.shape[..2], [2, 27]);
    let all = logits.f32();
    let mut own = server.client().await;
    for (file, row) in files.iter().zip(all.chunks_exact(all.len() / 2)) {
        let answer = own.analyze_image(file.clone(), &["logits"]).await.unwrap();
        let Some(proto::head_result::Outcome::Tensor(tensors)) = answer.results[0].outcome.clone()
        else {
            panic!("{answer:?}");
        };
        assert_eq!(numbers(&tensors.outputs[0].data, f32::from_le_bytes), row);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_come_and_go_and_are_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    backbone(root);
    logits(root, "logits");
    let repository = Repository::open(root).unwrap();
    let server = Running::serve(Runtime::load(None).unwrap(), &repository, one_lane()).await;
    let mut client = inference(&server).await;
    let files = [png(50, 40, 1)];
    logits(root, "later");
    let listed = async |client: &mut Inference| {
        let index = client
            .repository_index(RepositoryIndexRequest::default())
            .await;
        let models = index.unwrap().into_inner().models;
        let states = models
            .into_iter()
            .map(|m| format!("{} {}", m.name, m.state));
        states.skip(1).collect::<Vec<_>>()
    };
    assert_eq!(
        listed(&mut client).await,
        ["later UNAVAILABLE", "logits READY"]
    );
    let load = |name: &str| RepositoryModelLoadRequest {
        model_name: name.to_owned(),
        ..Default::default()
    };
    client.repository_model_load(load("later")).await.unwrap();
    assert_eq!(listed(&mut client).await, ["later READY", "logits READY"]);
    client
        .model_infer(typed("later", "image", &[1], &files))
        .await
        .unwrap();
    let unload = RepositoryModelUnloadRequest {
        model_name: "later".to_owned(),
        ..Default::default()
    };
    client
        .repository_model_unload(unload.clone())
        .await
        .unwrap();
    assert_eq!(
        listed(&mut client).await,
        ["later UNAVAILABLE", "logits READY"]
    );

    let gone = client.repository_model_unload(unload).await.unwrap_err();
    assert_eq!(
        (gone.code(), field(&gone).as_str()),
        (Code::NotFound, "model_name")
    );
    let never = client
        .repository_model_load(load("../heads"))
        .await
        .unwrap_err();
    assert_eq!(
        (never.code(), field(&never).as_str()),
        (Code::NotFound, "model_name")
    );
    fs::write(root.join("heads/later/head.onnx"), b"damaged").unwrap();
    let broken = client
        .repository_model_load(load("later"))
        .await
        .unwrap_err();
    assert_eq!(broken.code(), Code::FailedPrecondition);
    let elsewhere = RepositoryModelLoadRequest {
        repository_name: "other".to_owned(),
        ..load("logits")
    };
    let elsewhere = client.repository_model_load(elsewhere).await.unwrap_err();
    assert_eq!(field(&elsewhere), "repository_name");
    let mut with_config = load("logits");
    with_config
        .parameters
        .insert("config".to_owned(), Default::default());
    let refused = client.repository_model_load(with_config).await.unwrap_err();
    assert_eq!(field(&refused), "parameters[config]");
    server.stop().await;
}

/// Triton's clients send numbers with a fraction as strings, at some versions: as many detections as with the number.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_in_strings_are_numbers() {
    let server = Running::start(one_lane()).await;
    let mut client = inference(&server).await;
    let files = [png(96, 64, 3)];
    let counted = async |client: &mut Inference, threshold: ParameterChoice| {
        let request = ModelInferRequest {
            parameters: parameters(&[("score_threshold", threshold)]),
            ..typed("objects", "image", &[1], &files[..1])
        };
        let answer = client.model_infer(request).await.unwrap().into_inner();
        output(&answer, "num_detections").i32()[0]
    };
    for threshold in [0.0, 0.25, 1.0] {
        let number = ParameterChoice::DoubleParam(threshold);
        let text = ParameterChoice::StringParam(format!("{threshold:?}"));
        let expected = counted(&mut client, number).await;
        assert_eq!(counted(&mut client, text).await, expected, "{threshold}");
    }
    server.stop().await;
}
