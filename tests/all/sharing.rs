//! One image needs one backbone pass, however many heads and callers want it.

use std::sync::Arc;

use bytes::Bytes;
use frostline::{
    engine::EngineConfig,
    proto::{self, FeatureSource, head_result::Outcome as Answer},
};
use tokio::sync::Barrier;

use crate::support::{Running, one_lane, png};

fn clip(seed: u32) -> Vec<Bytes> {
    (0..8)
        .map(|frame| png(160, 120, seed * 100 + frame))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_heads_on_a_clip_cost_one_pass_for_each_frame_and_equal_the_single_calls() {
    let server = Running::start(one_lane()).await;
    let mut client = server.client().await;
    let frames = clip(1);
    let all = client.analyze_clip(frames.clone(), &[]).await.unwrap();
    assert_eq!(server.engine.counters().backbone_rows, 8);
    let made = all.provenance.clone().unwrap();
    assert_eq!(made.backbone_rows, 8);
    assert_eq!(made.feature_source(), FeatureSource::Computed);

    let last = frames[7].clone();
    let detected = client.detect(last.clone()).await.unwrap().result.unwrap();
    let segmented = client.segment(last).await.unwrap().result.unwrap();
    let recognized = client.recognize(frames).await.unwrap().result.unwrap();
    assert_eq!(all.results.len(), 3);
    for result in &all.results {
        match result.outcome.as_ref().unwrap() {
            Answer::Classification(top) => {
                for (got, want) in top.top.iter().zip(&recognized.top) {
                    assert_eq!(got.class_index, want.class_index);
                    assert!((got.probability - want.probability).abs() < 1e-4);
                }
            }
            Answer::Detection(found) => {
                assert_eq!(found.detections.len(), detected.detections.len());
                for (got, want) in found.detections.iter().zip(&detected.detections) {
                    assert!((got.score - want.score).abs() < 1e-4);
                    assert_eq!(got.class_index, want.class_index);
                }
            }
            Answer::Segmentation(map) => {
                assert_eq!((map.width, map.height), (160, 120));
                assert_eq!(
                    map.segments.iter().map(|s| s.pixels).sum::<u32>(),
                    160 * 120
                );
                let same =
                    |a: &proto::Segment, b: &proto::Segment| a.pixels.abs_diff(b.pixels) < 20;
                assert!(
                    map.segments
                        .iter()
                        .zip(&segmented.segments)
                        .all(|(a, b)| same(a, b))
                );
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn analyze_of_one_image_runs_the_backbone_once() {
    let server = Running::start(one_lane()).await;
    let mut client = server.client().await;
    let answer = client
        .analyze_image(png(320, 200, 5), &["objects", "scene"])
        .await
        .unwrap();
    assert_eq!(answer.provenance.unwrap().backbone_rows, 1);
    assert_eq!(server.engine.counters().backbone_rows, 1);
    let names: Vec<_> = answer
        .results
        .iter()
        .map(|result| result.head.as_str())
        .collect();
    assert_eq!(names, ["objects", "scene"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_answers_an_equal_image_without_a_pass_and_with_the_same_result() {
    let server = Running::start(EngineConfig {
        cache_bytes: 64 << 20,
        ..one_lane()
    })
    .await;
    let mut client = server.client().await;
    let first = client.analyze_image(png(200, 300, 9), &[]).await.unwrap();
    let second = client.analyze_image(png(200, 300, 9), &[]).await.unwrap();
    assert_eq!(second.results, first.results);
    let made = second.provenance.unwrap();
    assert_eq!(made.feature_source(), FeatureSource::Cached);
    assert_eq!(made.backbone_rows, 0);
    assert_eq!(server.engine.counters().backbone_rows, 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_answered_once_and_every_place_is_given_back() {
    let server = Running::start(EngineConfig::default()).await;
    let client = server.client().await;
    let barrier = Arc::new(Barrier::new(24));
    let calls: Vec<_> = (0..24)
        .map(|index| {
            let (mut client, barrier) = (client.clone(), Arc::clone(&barrier));
            tokio::spawn(async move {
                barrier.wait().await;
                let head = ["objects", "scene"][index % 2];
                client
                    .analyze_image(png(150, 150, index as u32 / 4), &[head])
                    .await
            })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().results.len(), 1);
    }
    let counters = server.engine.counters();
    assert_eq!(counters.backbone_rows + counters.shared, 24);
    assert!(counters.backbone_rows >= 6, "{counters:?}");
    server.settled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_refuses_with_a_delay_and_goes_on() {
    let mut config = one_lane();
    config.admission.images = 8;
    let server = Running::start(config).await;
    let client = server.client().await;
    let calls: Vec<_> = (0..40)
        .map(|seed| {
            let mut client = client.clone();
            tokio::spawn(async move { client.analyze_clip(clip(seed), &["motion"]).await })
        })
        .collect();
    let (mut answered, mut refused) = (0, 0);
    for call in calls {
        match call.await.unwrap() {
            Ok(_) => answered += 1,
            Err(status) => {
                assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
                let details = tonic_types::StatusExt::get_error_details(&status);
                assert!(
                    details
                        .retry_info()
                        .is_some_and(|info| info.retry_delay.is_some())
                );
                refused += 1;
            }
        }
    }
    assert_eq!(answered + refused, 40);
    assert!(answered >= 1);
    server.settled().await;
    server.client().await.detect(png(50, 50, 1)).await.unwrap();
    server.stop().await;
}
