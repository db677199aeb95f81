//! What is not well-formed gets the right code and names its field; the server goes on.

use super::*;

/// What is wrong, the request, and the code and field of the answer.
type Case = (&'static str, ModelInferRequest, Code, &'static str);

fn objects(shape: &[i64], files: &[Bytes]) -> ModelInferRequest {
    typed("objects", "image", shape, files)
}

fn with_parameter(name: &str, choice: ParameterChoice) -> ModelInferRequest {
    ModelInferRequest {
        parameters: parameters(&[(name, choice)]),
        ..objects(&[1], &[png(8, 8, 0)])
    }
}

fn pixels_of(shape: &[i64], bytes: usize) -> ModelInferRequest {
    raw("objects", input("image", "UINT8", shape), vec![0; bytes])
}

fn named(model: &str, version: &str) -> ModelInferRequest {
    ModelInferRequest {
        model_name: model.to_owned(),
        model_version: version.to_owned(),
        ..objects(&[1], &[png(8, 8, 0)])
    }
}

fn names_and_inputs() -> Vec<Case> {
    let one = || png(8, 8, 0);
    let second = |name: &str| {
        let mut request = objects(&[1], &[one()]);
        request.inputs.push(input(name, "BYTES", &[1]));
        request
    };
    let with_input_parameter = |name: &str| {
        let mut request = objects(&[1], &[one()]);
        request.inputs[0].parameters = parameters(&[(name, ParameterChoice::Int64Param(1))]);
        request
    };
    let wants = |names: &[&str]| ModelInferRequest {
        outputs: wanted(names),
        ..objects(&[1], &[one()])
    };
    let classes = |name: &str| {
        let mut request = wants(&["scores"]);
        request.outputs[0].parameters = parameters(&[(name, ParameterChoice::Int64Param(1))]);
        request
    };
    let bad = Code::InvalidArgument;
    vec![
        ("no model", named("", ""), Code::NotFound, "model_name"),
        (
            "an unknown model",
            named("nobody", ""),
            Code::NotFound,
            "model_name",
        ),
        (
            "another version",
            named("objects", "2"),
            Code::NotFound,
            "model_version",
        ),
        (
            "no input",
            ModelInferRequest {
                inputs: Vec::new(),
                ..objects(&[1], &[one()])
            },
            bad,
            "inputs",
        ),
        (
            "an unknown input",
            typed("objects", "clip", &[1], &[one()]),
            bad,
            "inputs[0].name",
        ),
        (
            "an unknown second input",
            second("other"),
            bad,
            "inputs[1].name",
        ),
        ("an input twice", second("image"), bad, "inputs[1].name"),
        (
            "shared memory",
            with_input_parameter("shared_memory_region"),
            bad,
            "inputs[0].parameters[shared_memory_region]",
        ),
        (
            "an unknown output",
            wants(&["colours"]),
            bad,
            "outputs[0].name",
        ),
        (
            "an output twice",
            wants(&["scores", "scores"]),
            bad,
            "outputs[1].name",
        ),
        (
            "classes of scores",
            classes("classification"),
            bad,
            "outputs[0].parameters[classification]",
        ),
        (
            "an unknown output parameter",
            classes("x"),
            bad,
            "outputs[0].parameters[x]",
        ),
    ]
}

fn shapes_and_elements() -> Vec<Case> {
    let one = || png(8, 8, 0);
    let bytes =
        |shape: &[i64], body: &[u8]| raw("objects", input("image", "BYTES", shape), body.to_vec());
    let (both, none, more, two_types, wide) = {
        let mut both = objects(&[1], &[one()]);
        both.raw_input_contents = vec![prefixed(&[one()])];
        let mut none = objects(&[1], &[one()]);
        none.inputs[0].contents = None;
        let mut more = bytes(&[1], &prefixed(&[one()]));
        more.raw_input_contents.push(Bytes::new());
        let mut two_types = objects(&[1], &[one()]);
        two_types.inputs[0].contents.as_mut().unwrap().fp32_contents = vec![1.0];
        let mut wide = ModelInferRequest {
            model_name: "objects".to_owned(),
            inputs: vec![input("image", "UINT8", &[1, 1, 1, 3])],
            ..Default::default()
        };
        wide.inputs[0].contents = Some(InferTensorContents {
            uint_contents: vec![0, 256, 0],
            ..Default::default()
        });
        (both, none, more, two_types, wide)
    };
    let datatype = |datatype: &str| {
        raw(
            "objects",
            input("image", datatype, &[1, 1, 1, 3]),
            vec![0; 12],
        )
    };
    let strings = "inputs[0].contents.bytes_contents";
    let memory = "raw_input_contents[0]";
    let shape = "inputs[0].shape";
    let bad = Code::InvalidArgument;
    let over = i64::from(u32::MAX) + 1;
    vec![
        ("both forms", both, bad, "inputs[0].contents"),
        ("neither form", none, bad, "inputs[0].contents"),
        ("raw contents of no input", more, bad, "raw_input_contents"),
        (
            "elements of two types",
            two_types,
            bad,
            "inputs[0].contents",
        ),
        (
            "a wide element",
            wide,
            bad,
            "inputs[0].contents.uint_contents[1]",
        ),
        ("FP32", datatype("FP32"), bad, "inputs[0].datatype"),
        ("FP16", datatype("FP16"), bad, "inputs[0].datatype"),
        ("no datatype", datatype(""), bad, "inputs[0].datatype"),
        ("no dimension", objects(&[], &[one()]), bad, shape),
        (
            "three dimensions of files",
            objects(&[1, 1, 1], &[one()]),
            bad,
            shape,
        ),
        (
            "two files in a row",
            objects(&[1, 2], &[one(), one()]),
            bad,
            shape,
        ),
        (
            "a clip without frames",
            typed("motion", "clip", &[1], &[one()]),
            bad,
            shape,
        ),
        (
            "a batch of none",
            objects(&[0], &[]),
            bad,
            "inputs[0].shape[0]",
        ),
        (
            "a negative batch",
            objects(&[-1], &[one()]),
            bad,
            "inputs[0].shape[0]",
        ),
        (
            "more elements",
            objects(&[1], &[one(), one()]),
            bad,
            strings,
        ),
        ("fewer elements", objects(&[2], &[one()]), bad, strings),
        (
            "an empty file",
            objects(&[2], &[one(), Bytes::new()]),
            bad,
            "inputs[0].contents.bytes_contents[1]",
        ),
        (
            "too many rows",
            objects(&[129], &vec![one(); 129]),
            bad,
            "inputs[0].shape[0]",
        ),
        (
            "too many frames",
            typed("motion", "clip", &[1, 65], &vec![one(); 65]),
            bad,
            "inputs[0].shape[1]",
        ),
        ("a length alone", bytes(&[1], &[9, 0]), bad, memory),
        (
            "a length beyond the end",
            bytes(&[1], &[9, 0, 0, 0, 1]),
            bad,
            memory,
        ),
        (
            "bytes after the end",
            bytes(&[1], &[1, 0, 0, 0, 1, 7]),
            bad,
            memory,
        ),
        ("nothing for a string", bytes(&[1], &[]), bad, memory),
        ("four channels", pixels_of(&[1, 2, 2, 4], 16), bad, shape),
        ("no batch", pixels_of(&[2, 2, 3], 12), bad, shape),
        ("too few pixels", pixels_of(&[1, 2, 2, 3], 11), bad, memory),
        ("too many pixels", pixels_of(&[1, 2, 2, 3], 13), bad, memory),
        (
            "a product that overflows",
            pixels_of(&[i64::MAX, i64::MAX, i64::MAX, 3], 3),
            bad,
            "inputs[0].shape[1]",
        ),
        (
            "a product that wraps to 0",
            pixels_of(&[1 << 32, 1 << 32, 1, 3], 0),
            bad,
            "inputs[0].shape[1]",
        ),
        (
            "a side over 32 bits",
            pixels_of(&[1, over, 1, 3], 3),
            bad,
            "inputs[0].shape[1]",
        ),
        (
            "memory that was not sent",
            pixels_of(&[1, 1 << 20, 1 << 20, 3], 3),
            bad,
            memory,
        ),
        (
            "not an image",
            objects(&[2], &[one(), Bytes::from_static(b"%PDF-1.7")]),
            bad,
            "inputs[0].contents.bytes_contents[1]",
        ),
        (
            "not an image in memory",
            bytes(&[1], &prefixed(&[Bytes::from_static(b"%PDF-1.7")])),
            bad,
            "raw_input_contents[0][0]",
        ),
        (
            "maps of two sizes",
            typed("scene", "image", &[2], &[png(8, 8, 0), png(9, 8, 0)]),
            bad,
            "outputs",
        ),
    ]
}

fn values() -> Vec<Case> {
    use ParameterChoice::{BoolParam, DoubleParam, Int64Param, StringParam, Uint64Param};
    let bad = Code::InvalidArgument;
    let case = |name: &'static str, choice, field| (name, with_parameter(name, choice), bad, field);
    let of_backbone = |list: &[(&str, ParameterChoice)]| ModelInferRequest {
        parameters: parameters(list),
        ..typed("swinv2-nano-128", "image", &[1], &[png(8, 8, 0)])
    };
    let threshold = "parameters[score_threshold]";
    vec![
        case(
            "score_treshold",
            DoubleParam(0.5),
            "parameters[score_treshold]",
        ),
        case("sequence_id", Int64Param(1), "parameters[sequence_id]"),
        case("top_k", Int64Param(1), "parameters[top_k]"),
        case("score_threshold", DoubleParam(f64::NAN), threshold),
        case("score_threshold", DoubleParam(1.5), threshold),
        case("score_threshold", Int64Param(2), threshold),
        case("score_threshold", StringParam("half".to_owned()), threshold),
        case("score_threshold", StringParam("NaN".to_owned()), threshold),
        case("score_threshold", StringParam("1.01".to_owned()), threshold),
        case("score_threshold", StringParam(String::new()), threshold),
        case(
            "max_detections",
            Int64Param(51),
            "parameters[max_detections]",
        ),
        case(
            "max_detections",
            Int64Param(0),
            "parameters[max_detections]",
        ),
        case(
            "max_detections",
            Int64Param(-1),
            "parameters[max_detections]",
        ),
        case(
            "max_detections",
            Uint64Param(u64::MAX),
            "parameters[max_detections]",
        ),
        case(
            "max_detections",
            BoolParam(true),
            "parameters[max_detections]",
        ),
        case("priority", Uint64Param(4), "parameters[priority]"),
        case(
            "priority",
            StringParam("urgent".to_owned()),
            "parameters[priority]",
        ),
        case("timeout", Int64Param(-1), "parameters[timeout]"),
        (
            "half a size",
            of_backbone(&[("height", Int64Param(128))]),
            bad,
            "parameters[width]",
        ),
        (
            "another size",
            of_backbone(&[("height", Int64Param(64)), ("width", Int64Param(64))]),
            bad,
            "parameters[height]",
        ),
        (
            "a deadline that nothing can meet",
            with_parameter("timeout", Int64Param(1)),
            Code::DeadlineExceeded,
            "",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_request_names_its_field() {
    let server = Running::start(one_lane()).await;
    let mut client = inference(&server).await;
    let cases = [names_and_inputs(), shapes_and_elements(), values()].concat();
    for (name, request, code, at) in cases {
        let status = client.model_infer(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{name}: {status:?}");
        assert_eq!(field(&status), at, "{name}: {}", status.message());
        let details = status.get_error_details();
        assert!(details.error_info().is_some(), "{name} has no reason");
    }
    client
        .model_infer(objects(&[1], &[png(8, 8, 0)]))
        .await
        .unwrap();
    server.settled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_takes_its_places_at_the_door_and_gives_them_back() {
    let mut config = one_lane();
    config.admission.images = 8;
    let server = Running::start(config).await;
    let mut client = inference(&server).await;
    let files: Vec<_> = (0..5).map(|seed| png(16, 16, seed)).collect();
    let over = client.model_infer(objects(&[5], &files)).await.unwrap_err();
    assert_eq!(field(&over), "inputs[0].shape[0]");
    client
        .model_infer(objects(&[4], &files[..4]))
        .await
        .unwrap();
    // One bad row of four: no answer, and no place is kept.
    let mut spoilt = files[..4].to_vec();
    spoilt[2] = files[2].slice(..files[2].len() / 2);
    let status = client
        .model_infer(objects(&[4], &spoilt))
        .await
        .unwrap_err();
    assert_eq!(field(&status), "inputs[0].contents.bytes_contents[2]");
    server.settled().await;
    client
        .model_infer(objects(&[4], &files[..4]))
        .await
        .unwrap();
    server.settled().await;
    server.stop().await;
}
