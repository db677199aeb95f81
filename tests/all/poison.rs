//! Bad rows, bad heads and calls that cannot be met fail alone.

use std::{path::Path, sync::Arc, time::Duration};

use frostline::{
    client::{Client, raw},
    engine::{self, EngineConfig},
    error::Kind,
    proto::{self, AnalyzeResponse, head_result::Outcome as Answer},
    repository::Repository,
};
use tokio::sync::Barrier;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::{
    common::graphs::{
        BAD_FOR_BACKBONE, BAD_FOR_HEAD, HeadGraph, TOUCHY, expected_mean, pixels, write_head,
    },
    support::{Running, one_lane},
};

const SMALL: [u32; 2] = [64, 64];
const LARGE: [u32; 2] = [96, 96];

fn write(root: &Path) {
    let backbone = TOUCHY.write(root);
    write_head(root, "small", "1", &backbone, SMALL, &HeadGraph::Mean(1.0));
    write_head(root, "large", "1", &backbone, LARGE, &HeadGraph::Mean(1.0));
    write_head(root, "fragile", "1", &backbone, SMALL, &HeadGraph::Fragile);
}

async fn serve(config: EngineConfig) -> Running {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    Running::start_of(&Repository::open(folder.path()).unwrap(), config).await
}

/// A lane that waits until eight images are there.
fn batches_of_eight() -> EngineConfig {
    EngineConfig {
        buckets: Some(vec![8]),
        max_queue_delay: Duration::from_secs(5),
        ..one_lane()
    }
}

async fn analyze(
    client: &mut Client,
    size: [u32; 2],
    (first, level): ([u8; 3], u8),
    heads: &[&str],
) -> Result<AnalyzeResponse, Status> {
    let image = raw(size[1], size[0], pixels(size, first, level));
    let request = proto::AnalyzeRequest {
        input: Some(proto::analyze_request::Input::Image(image)),
        heads: heads.iter().map(|head| (*head).to_owned()).collect(),
        ..Default::default()
    };
    Ok(client.vision.analyze(request).await?.into_inner())
}

/// The one number that a mean head answers.
fn number(answer: &proto::HeadResult) -> f32 {
    let Some(Answer::Tensor(tensors)) = &answer.outcome else {
        panic!("no tensors: {answer:?}")
    };
    let bytes = tensors.outputs[0].data.as_ref();
    f32::from_le_bytes(bytes.try_into().unwrap())
}

fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    details
        .error_info()
        .map(|info| info.reason.clone())
        .unwrap_or_default()
}

/// Eight calls at once, the first pixel's red as given.
async fn at_once(
    server: &Running,
    reds: [u8; 8],
    heads: &'static [&'static str],
) -> Vec<Result<AnalyzeResponse, Status>> {
    let client = server.client().await;
    let barrier = Arc::new(Barrier::new(8));
    let calls: Vec<_> = (0_u8..)
        .zip(reds)
        .map(|(index, red)| {
            let (mut client, barrier) = (client.clone(), Arc::clone(&barrier));
            tokio::spawn(async move {
                barrier.wait().await;
                analyze(&mut client, SMALL, ([red, 0, index], index), heads).await
            })
        })
        .collect();
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.unwrap());
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_on_which_the_backbone_fails_fails_alone() {
    let server = serve(batches_of_eight()).await;
    let reds = [1, 2, 3, BAD_FOR_BACKBONE, 5, 6, 7, 8];
    let answers = at_once(&server, reds, &["small"]).await;
    for (index, answer) in (0_u8..).zip(answers) {
        let red = reds[usize::from(index)];
        if red == BAD_FOR_BACKBONE {
            let status = answer.unwrap_err();
            assert_eq!(status.code(), Code::Internal, "{status:?}");
            assert_eq!(reason(&status), "BACKBONE_FAILED");
            continue;
        }
        let (got, want) = (
            number(&answer.unwrap().results[0]),
            expected_mean(SMALL, [red, 0, index], index),
        );
        assert!((got - want).abs() < 1e-3, "{got} is not {want}");
    }
    let counters = server.engine.counters();
    assert_eq!(counters.backbone_rows, 7, "{counters:?}");
    server.settled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_on_which_a_head_fails_costs_only_that_heads_answer() {
    let server = serve(batches_of_eight()).await;
    let reds = [1, 2, 3, 4, 5, BAD_FOR_HEAD, 7, 8];
    let answers = at_once(&server, reds, &["fragile", "small"]).await;
    for (red, answer) in reds.into_iter().zip(answers) {
        let results = answer.unwrap().results;
        match (&results[0].outcome, red) {
            (Some(Answer::Error(error)), BAD_FOR_HEAD) => {
                assert_eq!(error.code, Code::Internal as i32);
                assert_eq!(frostline::client::reason(error), "HEAD_FAILED");
                assert!(error.message.contains("fragile"), "{error:?}");
            }
            (Some(Answer::Tensor(_)), _) if red != BAD_FOR_HEAD => {
                assert!((number(&results[0]) - number(&results[1])).abs() < 1e-3);
            }
            other => panic!("red {red}: {other:?}"),
        }
        assert!(matches!(results[1].outcome, Some(Answer::Tensor(_))));
    }
    let counters = server.engine.counters();
    assert_eq!((counters.backbone_rows, counters.backbone_batches), (8, 1));
    server.settled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_of_two_input_sizes_serve_from_one_backbone() {
    let server = serve(one_lane()).await;
    let mut client = server.client().await;
    let image = ([40, 40, 40], 40);
    let answer = analyze(&mut client, LARGE, image, &["small", "large", "fragile"]).await;
    let answer = answer.unwrap();
    for result in &answer.results {
        let got = number(result);
        assert!((got - 40.0).abs() < 1e-3, "{}: {got}", result.head);
    }
    // One pass at each size, shared by the two small heads.
    assert_eq!(answer.provenance.unwrap().backbone_rows, 2);
    assert_eq!(server.engine.counters().backbone_rows, 2);
    assert_eq!(server.engine.counters().multi_head, 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_cannot_be_met_is_told_at_once_and_costs_no_pass() {
    let server = serve(one_lane()).await;
    let mut client = server.client().await;
    // Teaches the engine what a batch may take: hundreds of milliseconds.
    let slow = ([0, 80, 0], 1);
    analyze(&mut client, SMALL, slow, &["small"]).await.unwrap();
    let before = server.engine.counters();
    // Asked in process: over gRPC the client's own clock would end the call first.
    let now = std::time::Instant::now();
    for deadline in [now, now + Duration::from_millis(5)] {
        let request = engine::Request {
            images: vec![(
                engine::Source::Raw {
                    width: SMALL[0],
                    height: SMALL[0],
                    rgb: pixels(SMALL, [0, 80, 0], 2),
                },
                "image".to_owned(),
            )],
            heads: server.engine.head("small").into_iter().collect(),
            deadline: Some(deadline),
            ..engine::Request::default()
        };
        let error = server.engine.run(request).await.unwrap_err();
        assert_eq!(error.kind(), Kind::DeadlineExceeded, "{error}");
    }
    assert_eq!(
        server.engine.counters().backbone_rows,
        before.backbone_rows,
        "a pass was spent on a call that could not be answered"
    );
    server.settled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_behind_a_slow_batch_is_told_when_its_deadline_passes() {
    let server = serve(one_lane()).await;
    let client = server.client().await;
    let slow = {
        let mut client = client.clone();
        tokio::spawn(async move { analyze(&mut client, SMALL, ([0, 120, 0], 1), &["small"]).await })
    };
    while server.engine.in_flight() == 0 || server.engine.load().queued > 0 {
        tokio::task::yield_now().await;
    }
    let calls: Vec<_> = (0..8)
        .map(|index| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let image = raw(64, 64, pixels(SMALL, [0, 0, index], 3));
                let mut request = Request::new(proto::AnalyzeRequest {
                    input: Some(proto::analyze_request::Input::Image(image)),
                    heads: vec!["small".to_owned()],
                    ..Default::default()
                });
                request.set_timeout(Duration::from_millis(30));
                client.vision.analyze(request).await
            })
        })
        .collect();
    for call in calls {
        let status = call.await.unwrap().unwrap_err();
        let code = status.code();
        assert!(
            matches!(code, Code::DeadlineExceeded | Code::ResourceExhausted),
            "{status:?}"
        );
    }
    slow.await.unwrap().unwrap();
    server.settled().await;
    assert_eq!(server.engine.counters().backbone_rows, 1);
    server.stop().await;
}
