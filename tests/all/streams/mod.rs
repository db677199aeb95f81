//! Live streams: each frame has one last word, each head its answers in order, and no stream is felt by another.

mod bad;
mod camera;
mod clips;
mod ends;
mod idle;
mod policies;
mod shares;

use camera::{Camera, head, settings, told};
use frostline::proto::{self, FrameOutcome, stream_result::Outcome};

use crate::support::{Running, one_lane, png};

/// Detection and segmentation on each frame are what calls of their own find, for one row of the backbone a frame.
#[tokio::test(flavor = "multi_thread")]
async fn heads_answer_frames_as_they_answer_calls() {
    let server = Running::start(one_lane()).await;
    let mut client = server.client().await;
    let heads = vec![head("objects"), head("scene")];
    let mut camera = Camera::open(&client, settings(heads)).await.unwrap();
    let started = camera.started();
    assert_eq!(started.backbone, server.engine.backbone().sha256);
    assert_eq!(started.settings.as_ref().unwrap().every, 1);
    let before = server.engine.counters().backbone_rows;
    for id in 1..=3 {
        camera.send(id, png(96, 80, id)).await;
        // Nothing more is sent before all of it is there: an answer does not wait for the next one.
        let frame = camera.frame(id).await;
        let done = &frame.done;
        assert_eq!(done.outcome(), FrameOutcome::Answered, "{done:?}");
        assert_eq!((done.results, done.backbone_rows), (2, 1));
        assert_eq!(done.capture_time, camera::captured(id));
        let call = client
            .analyze_image(png(96, 80, id), &["objects", "scene"])
            .await
            .unwrap();
        for (result, own) in frame.results.iter().zip(["objects", "scene"]) {
            assert_eq!((result.head.as_str(), result.frame_id), (own, id));
        }
        use proto::head_result::Outcome as From;
        let wanted = call.results.into_iter().map(|result| match result.outcome {
            Some(From::Detection(found)) => Some(Outcome::Detection(found)),
            Some(From::Segmentation(found)) => Some(Outcome::Segmentation(found)),
            _ => None,
        });
        let found = frame.results.into_iter().map(|result| result.outcome);
        assert!(found.eq(wanted));
    }
    // Three frames, and three calls with the same images after them.
    assert_eq!(server.engine.counters().backbone_rows - before, 6);
    let status = camera.end().await.unwrap();
    assert_eq!((status.frames_offered, status.frames.len()), (3, 1));
    server.settled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn options_are_each_heads_own_and_settings_can_change() {
    let server = Running::start(one_lane()).await;
    let client = server.client().await;
    let objects = proto::StreamHead {
        score_threshold: Some(0.0),
        max_detections: Some(7),
        omit_masks: true,
        ..head("objects")
    };
    let scene = proto::StreamHead {
        label_map_format: proto::LabelMapFormat::Rle.into(),
        every: 2,
        ..head("scene")
    };
    let mut camera = Camera::open(&client, settings(vec![objects.clone(), scene]))
        .await
        .unwrap();
    let mut heads = Vec::new();
    for id in 1..=4 {
        camera.send(id, png(64, 64, id)).await;
        let frame = camera.frame(id).await;
        for result in frame.results {
            match result.outcome.unwrap() {
                Outcome::Detection(found) => {
                    assert_eq!(found.detections.len(), 7);
                    assert!(found.detections.iter().all(|found| found.mask.is_none()));
                }
                Outcome::Segmentation(found) => {
                    assert!(found.png.is_empty() && found.segments[0].mask.is_some());
                }
                other => panic!("{other:?}"),
            }
            heads.push((id, result.head));
        }
    }
    let own = |id, name: &str| (id, name.to_owned());
    let wanted = [
        (1, "objects"),
        (1, "scene"),
        (2, "objects"),
        (3, "objects"),
        (3, "scene"),
        (4, "objects"),
    ];
    heads.sort();
    assert_eq!(heads, wanted.map(|(id, name)| own(id, name)));

    // A head that there is not: the settings before it hold.
    let updated = camera.update(settings(vec![head("nothing")])).await;
    let error = updated.error.unwrap();
    assert_eq!(
        (told(&error).0.as_str(), told(&error).1.as_str()),
        ("UNKNOWN_HEAD", "update.settings.heads[0].name")
    );
    assert_eq!(updated.settings.unwrap().heads.len(), 2);
    camera.send(5, png(64, 64, 5)).await;
    assert_eq!(camera.frame(5).await.done.results, 2);

    let updated = camera.update(settings(vec![head("scene")])).await;
    assert!(updated.error.is_none());
    camera.send(6, png(64, 64, 6)).await;
    let frame = camera.frame(6).await;
    let Some(Outcome::Segmentation(found)) = &frame.results[0].outcome else {
        panic!("{frame:?}");
    };
    assert!(!found.png.is_empty() && frame.results.len() == 1);
    camera.end().await.unwrap();
    server.stop().await;
}

/// A head that goes while a stream uses it is an error of its own results, and comes back by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_unloaded_fails_its_own_results() {
    let server = Running::start(one_lane()).await;
    let client = server.client().await;
    let heads = vec![head("objects"), head("scene")];
    let mut camera = Camera::open(&client, settings(heads)).await.unwrap();
    server.engine.unload_head("objects").unwrap();
    camera.send(1, png(64, 64, 1)).await;
    let frame = camera.frame(1).await;
    assert_eq!(frame.done.outcome(), FrameOutcome::Answered);
    let Some(Outcome::Error(error)) = &frame.of("objects").outcome else {
        panic!("{frame:?}");
    };
    assert_eq!(told(error).0, "UNKNOWN_HEAD");
    assert!(matches!(
        frame.of("scene").outcome,
        Some(Outcome::Segmentation(_))
    ));
    let engine = std::sync::Arc::clone(&server.engine);
    tokio::task::spawn_blocking(move || engine.load_head("objects").map(drop))
        .await
        .unwrap()
        .unwrap();
    camera.send(2, png(64, 64, 2)).await;
    let frame = camera.frame(2).await;
    assert!(matches!(
        frame.of("objects").outcome,
        Some(Outcome::Detection(_))
    ));
    camera.end().await.unwrap();
    server.stop().await;
}

/// Objects keep their numbers while they are seen; what is shown is what is found without tracking.
#[tokio::test(flavor = "multi_thread")]
async fn tracked_objects_keep_their_numbers() {
    let server = Running::start(one_lane()).await;
    let mut client = server.client().await;
    let scene = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/models/demo/samples/scene-1.jpg"
    );
    let scene: bytes::Bytes = std::fs::read(scene).unwrap().into();
    let plain = client.detect(scene.clone()).await.unwrap();
    let plain = plain.result.unwrap().detections;
    let tracked = proto::StreamHead {
        track: true,
        ..head("objects")
    };
    let mut camera = Camera::open(&client, settings(vec![tracked]))
        .await
        .unwrap();
    let mut ids = Vec::new();
    for id in 1..=4 {
        camera.send(id, scene.clone()).await;
        let frame = camera.frame(id).await;
        let result = frame.of("objects");
        let Some(Outcome::Detection(found)) = &result.outcome else {
            panic!("{result:?}");
        };
        assert_eq!(found.detections, plain, "the detections' own");
        assert_eq!(result.track_ids.len(), plain.len());
        ids.push(result.track_ids.clone());
    }
    assert!(ids[0].iter().all(|id| *id == 0), "seen once: {ids:?}");
    let sure = plain.iter().filter(|found| found.score >= 0.7).count();
    let mut given: Vec<_> = ids[1].iter().copied().filter(|id| *id > 0).collect();
    assert!(sure > 0 && given.len() >= sure, "{ids:?}");
    assert_eq!((&ids[2], &ids[3]), (&ids[1], &ids[1]));
    given.sort_unstable();
    given.dedup();
    assert_eq!(given.len(), ids[1].iter().filter(|id| **id > 0).count());
    // For heads that detect alone.
    let wrong = proto::StreamHead {
        track: true,
        ..head("scene")
    };
    let updated = camera.update(settings(vec![wrong])).await;
    assert_eq!(
        told(&updated.error.unwrap()).1,
        "update.settings.heads[0].track"
    );
    camera.end().await.unwrap();
    server.stop().await;
}
