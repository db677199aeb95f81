//! The Open Inference Protocol gives what the server's own API gives, and refuses what is not well-formed.

use std::{collections::HashMap, fs, path::Path};

use bytes::Bytes;
use frostline::{
    client::encoded,
    engine::EngineConfig,
    proto::{
        self,
        inference::{
            InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse,
            ModelMetadataRequest, ModelReadyRequest, RepositoryIndexRequest,
            RepositoryModelLoadRequest, RepositoryModelUnloadRequest, ServerMetadataRequest,
            ServerReadyRequest,
            grpc_inference_service_client::GrpcInferenceServiceClient,
            infer_parameter::ParameterChoice,
            model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
        },
    },
    task::Rle,
};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt;

use crate::support::{Running, one_lane, png};

mod heads;
mod refusals;
mod told;

type Inference = GrpcInferenceServiceClient<Channel>;

async fn inference(server: &Running) -> Inference {
    Inference::connect(format!("http://{}", server.address))
        .await
        .unwrap()
        .max_decoding_message_size(64 << 20)
}

fn field(status: &Status) -> String {
    let details = status.get_error_details();
    let violation = details
        .bad_request()
        .and_then(|bad| bad.field_violations.first());
    violation
        .map(|violation| violation.field.clone())
        .unwrap_or_default()
}

fn input(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
        ..Default::default()
    }
}

/// Image files as a typed BYTES tensor.
fn typed(model: &str, name: &str, shape: &[i64], files: &[Bytes]) -> ModelInferRequest {
    let contents = InferTensorContents {
        bytes_contents: files.to_vec(),
        ..Default::default()
    };
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![InferInputTensor {
            contents: Some(contents),
            ..input(name, "BYTES", shape)
        }],
        ..Default::default()
    }
}

/// One tensor's bytes as they lie in memory.
fn raw(model: &str, tensor: InferInputTensor, bytes: impl Into<Bytes>) -> ModelInferRequest {
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![tensor],
        raw_input_contents: vec![bytes.into()],
        ..Default::default()
    }
}

/// Strings, each behind its length.
fn prefixed(strings: &[Bytes]) -> Bytes {
    let mut out = Vec::new();
    for string in strings {
        out.extend((string.len() as u32).to_le_bytes());
        out.extend(string);
    }
    out.into()
}

fn parameters(list: &[(&str, ParameterChoice)]) -> HashMap<String, InferParameter> {
    let entry = |(name, choice): &(&str, ParameterChoice)| {
        let parameter_choice = Some(choice.clone());
        ((*name).to_owned(), InferParameter { parameter_choice })
    };
    list.iter().map(entry).collect()
}

fn wanted(names: &[&str]) -> Vec<InferRequestedOutputTensor> {
    let output = |name: &&str| InferRequestedOutputTensor {
        name: (*name).to_owned(),
        ..Default::default()
    };
    names.iter().map(output).collect()
}

/// An output's shape and elements, whichever way they came.
struct Output {
    datatype: String,
    shape: Vec<i64>,
    raw: Option<Bytes>,
    contents: InferTensorContents,
}

fn output(answer: &ModelInferResponse, name: &str) -> Output {
    let index = answer.outputs.iter().position(|o| o.name == name);
    let index = index.unwrap_or_else(|| panic!("no output {name}"));
    let tensor = &answer.outputs[index];
    Output {
        datatype: tensor.datatype.clone(),
        shape: tensor.shape.clone(),
        raw: answer.raw_output_contents.get(index).cloned(),
        contents: tensor.contents.clone().unwrap_or_default(),
    }
}

impl Output {
    fn f32(&self) -> Vec<f32> {
        assert_eq!(self.datatype, "FP32");
        match &self.raw {
            Some(raw) => numbers(raw, f32::from_le_bytes),
            None => self.contents.fp32_contents.clone(),
        }
    }

    fn i64(&self) -> Vec<i64> {
        assert_eq!(self.datatype, "INT64");
        match &self.raw {
            Some(raw) => numbers(raw, i64::from_le_bytes),
            None => self.contents.int64_contents.clone(),
        }
    }

    fn i32(&self) -> Vec<i32> {
        assert_eq!(self.datatype, "INT32");
        match &self.raw {
            Some(raw) => numbers(raw, i32::from_le_bytes),
            None => self.contents.int_contents.clone(),
        }
    }

    fn u16(&self) -> Vec<u16> {
        assert_eq!(self.datatype, "UINT16");
        match &self.raw {
            Some(raw) => numbers(raw, u16::from_le_bytes),
            None => self
                .contents
                .uint_contents
                .iter()
                .map(|&v| v as u16)
                .collect(),
        }
    }

    fn strings(&self) -> Vec<Bytes> {
        assert_eq!(self.datatype, "BYTES");
        let Some(raw) = &self.raw else {
            return self.contents.bytes_contents.clone();
        };
        let (mut rest, mut out) = (raw.clone(), Vec::new());
        while !rest.is_empty() {
            let head = rest.split_to(4);
            let length = u32::from_le_bytes(head[..].try_into().unwrap());
            out.push(rest.split_to(length as usize));
        }
        out
    }
}

fn numbers<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    assert_eq!(bytes.len() % N, 0);
    bytes
        .chunks_exact(N)
        .map(|chunk| read(chunk.try_into().unwrap()))
        .collect()
}

fn sample(name: &str) -> Bytes {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo/samples"));
    fs::read(folder.join(name)).unwrap().into()
}

/// A sample as raw RGB, with its size.
fn pixels(file: &Bytes) -> (u32, u32, Vec<u8>) {
    let limits = frostline::media::Limits::default();
    let image = frostline::media::decode(file, &limits).unwrap();
    (image.width(), image.height(), image.data().to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn detections_equal_those_of_the_own_api() {
    let server = Running::start(one_lane()).await;
    let mut own = server.client().await;
    let mut client = inference(&server).await;
    let files = [sample("scene-1.jpg"), sample("scene-2.jpg"), png(40, 30, 1)];
    let mut expected = Vec::new();
    for file in &files {
        let answer = own.detect(file.clone()).await.unwrap();
        expected.push(answer.result.unwrap().detections);
    }
    assert!(!expected[0].is_empty());
    let most = expected.iter().map(Vec::len).max().unwrap();

    let by_type = typed("objects", "image", &[3], &files);
    let by_memory = raw(
        "objects",
        input("image", "BYTES", &[3, 1]),
        prefixed(&files),
    );
    for (request, is_raw) in [(by_type, false), (by_memory, true)] {
        let request = ModelInferRequest {
            id: "call 7".to_owned(),
            model_version: "1".to_owned(),
            ..request
        };
        let answer = client.model_infer(request).await.unwrap().into_inner();
        assert_eq!(!answer.raw_output_contents.is_empty(), is_raw);
        assert_eq!(
            (
                answer.id.as_str(),
                answer.model_name.as_str(),
                answer.model_version.as_str()
            ),
            ("call 7", "objects", "1")
        );
        let counts = output(&answer, "num_detections");
        let boxes = output(&answer, "boxes");
        assert_eq!(boxes.shape, [3, most as i64, 4]);
        let (boxes, scores) = (boxes.f32(), output(&answer, "scores").f32());
        let labels = output(&answer, "labels").i64();
        let names = output(&answer, "label_names").strings();
        let masks = output(&answer, "masks").strings();
        for (row, found) in expected.iter().enumerate() {
            assert_eq!(counts.i32()[row] as usize, found.len());
            for slot in 0..most {
                let at = row * most + slot;
                let Some(want) = found.get(slot) else {
                    assert_eq!((scores[at], labels[at]), (0.0, -1));
                    assert!(names[at].is_empty() && masks[at].is_empty());
                    continue;
                };
                let b = want.bbox.unwrap();
                assert_eq!(
                    boxes[at * 4..at * 4 + 4],
                    [b.x_min, b.y_min, b.x_max, b.y_max]
                );
                assert_eq!(
                    (scores[at], labels[at]),
                    (want.score, i64::from(want.class_index))
                );
                assert_eq!(names[at], want.label);
                let mask = want.mask.as_ref().unwrap();
                let json: serde_json::Value = serde_json::from_slice(&masks[at]).unwrap();
                assert_eq!(json["size"], serde_json::json!([mask.height, mask.width]));
                assert_eq!(json["counts"].as_str().unwrap(), mask.counts);
            }
        }
    }

    // One image as pixels, its masks as pixels.
    let (width, height, rgb) = pixels(&files[0]);
    let shape = [1, i64::from(height), i64::from(width), 3];
    let request = ModelInferRequest {
        outputs: wanted(&["masks_dense", "scores"]),
        ..raw("objects", input("image", "UINT8", &shape), rgb)
    };
    let answer = client.model_infer(request).await.unwrap().into_inner();
    assert_eq!(answer.outputs.len(), 2);
    let scores = output(&answer, "scores").f32();
    let want: Vec<_> = expected[0].iter().map(|d| d.score).collect();
    assert_eq!(scores, want);
    let dense = output(&answer, "masks_dense");
    assert_eq!(
        dense.shape,
        [1, want.len() as i64, i64::from(height), i64::from(width)]
    );
    let dense = dense.raw.unwrap();
    let area = (width * height) as usize;
    for (mask, found) in dense.chunks_exact(area).zip(&expected[0]) {
        let coded = found.mask.as_ref().unwrap();
        let rle =
            Rle::from_coco_string(coded.height, coded.width, coded.counts.as_bytes()).unwrap();
        let rows: Vec<_> = rle.to_rows().into_iter().map(u8::from).collect();
        assert_eq!(mask, rows);
    }

    // Fewer, by parameters.
    let request = ModelInferRequest {
        parameters: parameters(&[
            ("score_threshold", ParameterChoice::DoubleParam(0.0)),
            ("max_detections", ParameterChoice::Int64Param(2)),
            ("priority", ParameterChoice::Uint64Param(1)),
            ("timeout", ParameterChoice::Int64Param(60_000_000)),
            (
                "triton_enable_empty_final_response",
                ParameterChoice::BoolParam(false),
            ),
        ]),
        ..typed("objects", "image", &[1], &files[..1])
    };
    let answer = client.model_infer(request).await.unwrap().into_inner();
    assert_eq!(output(&answer, "num_detections").i32(), [2]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn label_maps_actions_and_features_equal_those_of_the_own_api() {
    let config = EngineConfig {
        cache_bytes: 64 << 20,
        ..one_lane()
    };
    let server = Running::start(config).await;
    let mut own = server.client().await;
    let mut client = inference(&server).await;
    let file = sample("scene-3.jpg");

    let map = own.segment(file.clone()).await.unwrap().result.unwrap();
    let request = ModelInferRequest {
        outputs: wanted(&["label_map_png", "label_map"]),
        ..typed("scene", "image", &[1], std::slice::from_ref(&file))
    };
    let answer = client.model_infer(request).await.unwrap().into_inner();
    // One frozen backbone for both protocols.
    let cached = Some(ParameterChoice::StringParam("cached".to_owned()));
    assert_eq!(answer.parameters["feature_source"].parameter_choice, cached);
    let none = Some(ParameterChoice::Int64Param(0));
    assert_eq!(answer.parameters["backbone_rows"].parameter_choice, none);
    assert_eq!(output(&answer, "label_map_png").strings()[0], map.png);
    let dense = output(&answer, "label_map");
    assert_eq!(
        dense.shape,
        [1, i64::from(map.height), i64::from(map.width)]
    );
    let png = image::load_from_memory(&map.png).unwrap().into_luma16();
    let png: Vec<u16> = png.into_raw().iter().map(|v| v / 257).collect();
    assert_eq!(dense.u16(), png);

    let frames: Vec<_> = (0..8)
        .map(|i| sample(&format!("clip-2/frame-{i}.jpg")))
        .collect();
    let mut request = proto::RecognizeActionRequest {
        input: Some(proto::recognize_action_request::Input::Clip(
            frostline::client::clip(frames.clone()),
        )),
        ..Default::default()
    };
    request.options = Some(proto::ClassificationOptions { top_k: Some(10) });
    let top = own.vision.recognize_action(request).await.unwrap();
    let top = top.into_inner().result.unwrap().top;
    let files = [frames.clone(), frames].concat();
    let request = ModelInferRequest {
        parameters: parameters(&[("top_k", ParameterChoice::Int64Param(3))]),
        ..raw("motion", input("clip", "BYTES", &[2, 8]), prefixed(&files))
    };
    let answer = client.model_infer(request).await.unwrap().into_inner();
    let chances = output(&answer, "probabilities");
    assert_eq!(chances.shape, [2, 10]);
    for row in chances.f32().chunks_exact(10) {
        for scored in &top {
            assert_eq!(row[scored.class_index as usize], scored.probability);
        }
    }
    let first: Vec<_> = top[..3].iter().map(|s| i64::from(s.class_index)).collect();
    assert_eq!(
        output(&answer, "labels").i64(),
        [first.clone(), first].concat()
    );
    assert_eq!(output(&answer, "label_names").strings()[0], top[0].label);

    let mut request = raw("motion", input("clip", "BYTES", &[1, 16]), prefixed(&files));
    request.outputs = vec![InferRequestedOutputTensor {
        name: "probabilities".to_owned(),
        parameters: parameters(&[("classification", ParameterChoice::Int64Param(2))]),
    }];
    let answer = client.model_infer(request).await.unwrap().into_inner();
    let text = output(&answer, "probabilities");
    assert_eq!(
        (text.datatype.as_str(), &text.shape[..]),
        ("BYTES", &[1, 2][..])
    );
    let strings = text.strings();
    let parts: Vec<_> = std::str::from_utf8(&strings[0])
        .unwrap()
        .splitn(3, ':')
        .collect();
    let label = server.engine.head("motion").unwrap();
    let label = &label.manifest.labels[parts[1].parse::<usize>().unwrap()];
    assert_eq!(parts[2], label);

    let features = own
        .vision
        .extract_features(proto::ExtractFeaturesRequest {
            image: Some(encoded(file.clone())),
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner()
        .maps;
    let backbone = server.engine.backbone().name.clone();
    let request = raw(&backbone, input("image", "BYTES", &[1]), prefixed(&[file]));
    let answer = client.model_infer(request).await.unwrap().into_inner();
    assert_eq!(answer.outputs.len(), features.len());
    for want in features {
        let got = output(&answer, &want.name);
        let shape: Vec<i64> = want.shape.iter().map(|&side| side.into()).collect();
        assert_eq!(got.shape[1..], shape);
        assert_eq!(got.raw.unwrap(), want.data);
    }
    server.stop().await;
}
