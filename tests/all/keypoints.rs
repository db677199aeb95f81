//! Keypoints heads, from the manifest to the answer. How points lie in pictures of other sizes is held to numpy by
//! tests/reference/test_keypoints.py.

use std::{fs, path::Path};

use frostline::{
    backend::Runtime,
    client::raw,
    engine::Engine,
    proto::{self, head_result::Outcome as Answer},
    repository::Repository,
};
use sha2::{Digest, Sha256};
use tonic::Code;

use crate::{
    common::{
        graphs::{ECHO, pixels},
        onnx::{FLOAT, Onnx},
    },
    support::{Running, one_lane},
};

const BODIES: usize = 4;
const POINTS: usize = 3;
const VALUES: usize = BODIES * POINTS * 3;

/// Points that are the image's first bytes: x, y, and the score in 255ths. A first byte of 255 is no number.
fn graph(points: i64) -> Vec<u8> {
    Onnx::default()
        .input("f", FLOAT, &["N", "h", "w", "c"])
        .output("keypoints", FLOAT, &["N", "K", "P", "3"])
        .node("Flatten", &["f"], "flat", &[("axis", 1)])
        .ints("0", &[0])
        .ints("1", &[1])
        .ints("all", &[BODIES as i64 * points * 3])
        .node("Slice", &["flat", "0", "all", "1"], "values", &[])
        .floats("limit", &[254.5])
        .node("Sub", &["limit", "values"], "below", &[])
        .node("Sqrt", &["below"], "root", &[])
        .floats("0f", &[0.0])
        .node("Mul", &["root", "0f"], "nan", &[])
        .node("Add", &["values", "nan"], "poisoned", &[])
        .ints("shape", &[-1, BODIES as i64, points, 3])
        .node("Reshape", &["poisoned", "shape"], "points", &[])
        .floats("scale", &[1.0, 1.0, 1.0 / 255.0])
        .node("Mul", &["points", "scale"], "keypoints", &[])
        .bytes()
}

fn repository(root: &Path, points: i64, labels: &str, post: &str) {
    let backbone = ECHO.write(root);
    let folder = root.join("heads/pose");
    fs::create_dir_all(&folder).unwrap();
    let graph = graph(points);
    let manifest = format!(
        "name = \"pose\"\nversion = \"1\"\ntask = \"keypoints\"\nfile = \"head.onnx\"\nsha256 = \"{}\"\n\
         backbone = \"{backbone}\"\ninput_size = [128, 128]\nfeatures = [\"f\"]\nlabels = {labels}\n[postprocess]\n{post}\n",
        hex::encode(Sha256::digest(&graph))
    );
    fs::write(folder.join("head.onnx"), graph).unwrap();
    fs::write(folder.join("head.toml"), manifest).unwrap();
}

const LABELS: &str = r#"["head", "left hand", "right hand"]"#;

/// An image of the input's size that says where the points are.
fn image(points: [[[u8; 3]; POINTS]; BODIES]) -> proto::Image {
    let mut rgb = pixels([128, 128], [0; 3], 0).to_vec();
    rgb[..VALUES].copy_from_slice(points.as_flattened().as_flattened());
    raw(128, 128, rgb.into())
}

const SURE: [[u8; 3]; POINTS] = [[10, 20, 204], [30, 40, 204], [50, 60, 102]];
const DOUBTFUL: [[u8; 3]; POINTS] = [[11, 21, 51], [31, 41, 51], [51, 61, 51]];
/// One point of three: a mean of 1/3 of 0.6. What the others say means nothing.
const HALF_SEEN: [[u8; 3]; POINTS] = [[12, 22, 153], [99, 98, 0], [97, 96, 0]];
const NOBODY: [[u8; 3]; POINTS] = [[1, 2, 0], [3, 4, 0], [5, 6, 0]];

async fn found(
    server: &Running,
    image: proto::Image,
    detection: Option<proto::DetectionOptions>,
) -> Result<Answer, tonic::Status> {
    let request = proto::AnalyzeRequest {
        input: Some(proto::analyze_request::Input::Image(image)),
        detection,
        ..Default::default()
    };
    let answer = server.client().await.vision.analyze(request).await?;
    let mut results = answer.into_inner().results;
    assert_eq!(results.len(), 1);
    Ok(results.remove(0).outcome.unwrap())
}

async fn poses(server: &Running, detection: proto::DetectionOptions) -> proto::KeypointResult {
    let image = image([DOUBTFUL, NOBODY, SURE, HALF_SEEN]);
    match found(server, image, Some(detection)).await.unwrap() {
        Answer::Keypoints(found) => found,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_come_best_first_with_their_points_and_what_joins_them() {
    let folder = tempfile::tempdir().unwrap();
    let post = "score_threshold = 0.1\nmax_detections = 3\nskeleton = [[0, 1], [0, 2]]";
    repository(folder.path(), POINTS as i64, LABELS, post);
    let server = Running::start_of(&Repository::open(folder.path()).unwrap(), one_lane()).await;
    let all = poses(&server, proto::DetectionOptions::default()).await;
    assert_eq!(all.labels, ["head", "left hand", "right hand"]);
    let bones: Vec<_> = all
        .skeleton
        .iter()
        .map(|bone| (bone.first, bone.second))
        .collect();
    assert_eq!(bones, [(0, 1), (0, 2)]);
    let scores: Vec<_> = all
        .poses
        .iter()
        .map(|pose| (pose.score * 1000.0).round())
        .collect();
    // The mean over all points; equal ones in the graph's order.
    assert_eq!(scores, [667.0, 200.0, 200.0]);
    let points = |pose: usize| -> Vec<_> {
        let points = all.poses[pose].keypoints.iter();
        points
            .map(|point| (point.x, point.y, (point.score * 255.0).round()))
            .collect()
    };
    assert_eq!(
        points(0),
        [
            (10.0, 20.0, 204.0),
            (30.0, 40.0, 204.0),
            (50.0, 60.0, 102.0)
        ]
    );
    assert_eq!(
        points(1),
        [(11.0, 21.0, 51.0), (31.0, 41.0, 51.0), (51.0, 61.0, 51.0)]
    );
    assert_eq!(
        points(2),
        [(12.0, 22.0, 153.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)]
    );

    let asked = |score_threshold, max_detections| proto::DetectionOptions {
        score_threshold,
        max_detections,
        ..Default::default()
    };
    assert_eq!(
        poses(&server, asked(Some(0.3), None)).await.poses,
        all.poses[..1]
    );
    assert_eq!(
        poses(&server, asked(Some(0.0), None)).await.poses,
        all.poses[..]
    );
    assert_eq!(
        poses(&server, asked(None, Some(2))).await.poses,
        all.poses[..2]
    );
    let status = found(&server, image([SURE; BODIES]), Some(asked(None, Some(4))));
    let status = status.await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains("must be from 1 to 3"),
        "{status:?}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_that_is_nowhere_fails_the_head_unless_it_is_none() {
    let folder = tempfile::tempdir().unwrap();
    repository(folder.path(), POINTS as i64, LABELS, "");
    let server = Running::start_of(&Repository::open(folder.path()).unwrap(), one_lane()).await;
    let mut bodies = [SURE, NOBODY, NOBODY, HALF_SEEN];
    // No numbers where nobody looks.
    bodies[3][1][0] = 255;
    bodies[1][2][1] = 255;
    let answer = found(&server, image(bodies), None).await.unwrap();
    assert!(
        matches!(&answer, Answer::Keypoints(found) if found.poses.len() == 2),
        "{answer:?}"
    );
    for (point, words) in [(0, "not finite"), (2, "must be probabilities")] {
        let mut bodies = bodies;
        bodies[0][1][point] = 255;
        let answer = found(&server, image(bodies), None).await.unwrap();
        let said = format!("{answer:?}");
        assert!(matches!(answer, Answer::Error(_)), "{said}");
        assert!(
            said.contains("keypoints: holds") && said.contains(words),
            "{said}"
        );
    }
    server.stop().await;
}

#[test]
fn what_no_keypoints_head_can_be_is_refused_by_name() {
    let cases = [
        (
            3,
            r#"["a", "b"]"#,
            "",
            "heads/pose/head.onnx: output \"keypoints\": is float32 [N, 4, 3, 3], but must be float32 [N, K, labels, 3], and the manifest has 2 labels",
        ),
        (3, "[]", "", "labels: is empty, but the task is keypoints"),
        (
            3,
            LABELS,
            "skeleton = [[0, 3]]",
            "postprocess.skeleton[0]: is [0, 3], but must be two of the 3 labels, numbered from 0",
        ),
        (
            3,
            LABELS,
            "skeleton = [[0, 1], [2, 2]]",
            "postprocess.skeleton[1]: is [2, 2]",
        ),
        (
            3,
            LABELS,
            "mask = \"box\"",
            "postprocess.mask: has no meaning for the task keypoints",
        ),
        (
            3,
            LABELS,
            "max_detections = 0",
            "postprocess.max_detections: is 0, but must be from 1 to 10000",
        ),
        (
            3,
            LABELS,
            "bones = [[0, 1]]",
            "postprocess.bones: is unknown; the keys are score_threshold,",
        ),
    ];
    for (points, labels, post, words) in cases {
        let folder = tempfile::tempdir().unwrap();
        repository(folder.path(), points, labels, post);
        let started = Repository::open(folder.path()).map_err(|error| error.to_string());
        let started = started.and_then(|repository| {
            let engine = Engine::start(&Runtime::load(None).unwrap(), &repository, one_lane());
            engine
                .map(|engine| engine.stop())
                .map_err(|error| error.to_string())
        });
        let said = started.expect_err(words);
        assert!(said.contains(words), "{said}");
    }
}
