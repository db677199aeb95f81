//! Clips over frames: each frame's row is computed once, whatever number of clips it is part of.

use frostline::{
    client::encoded,
    proto::{
        self, FrameOutcome, StreamHead, StreamSettings,
        stream_head::{Hop, Stride},
        stream_result::Outcome,
    },
};

use super::camera::{self, Camera, head, settings};
use crate::support::{Running, one_lane, png};

/// Frames that the demo's action head reads.
const FRAMES: u32 = 8;

fn motion(stride: u32, hop: u32) -> StreamHead {
    StreamHead {
        stride: Some(Stride::StrideFrames(stride)),
        hop: Some(Hop::HopFrames(hop)),
        ..head("motion")
    }
}

/// What a call finds on a clip of these frames.
async fn call(client: &mut frostline::client::Client, ids: &[u32]) -> proto::ClassificationResult {
    let frames = ids.iter().map(|id| png(64, 64, *id)).collect();
    let answer = client.recognize(frames).await.unwrap();
    answer.result.unwrap()
}

/// Detection, segmentation and action on each frame, clips at each hop: one row of the backbone for each frame.
#[tokio::test(flavor = "multi_thread")]
async fn a_frame_is_computed_once_for_all_heads_and_clips() {
    let server = Running::start(one_lane()).await;
    let client = server.client().await;
    let heads = vec![head("objects"), head("scene"), motion(2, 1)];
    let mut camera = Camera::open(&client, settings(heads)).await.unwrap();
    let before = server.engine.counters().backbone_rows;
    let span = (FRAMES - 1) * 2;
    let count = span + 6;
    let mut clips = Vec::new();
    for id in 1..=count {
        camera.send(id, png(64, 64, id)).await;
        let frame = camera.frame(id).await;
        assert_eq!(
            frame.done.outcome(),
            FrameOutcome::Answered,
            "{:?}",
            frame.done
        );
        assert_eq!(frame.done.backbone_rows, 1);
        assert!(!frame.done.clips_restarted);
        let clip = frame.results.iter().find(|result| result.head == "motion");
        assert_eq!(clip.is_some(), id > span, "{id}");
        assert_eq!(frame.done.results, 2 + u32::from(id > span));
        clips.extend(clip.cloned());
    }
    let rows = server.engine.counters().backbone_rows - before;
    assert_eq!(rows as f64 / count as f64, 1.000);
    // The same as calls find on the same frames.
    let mut client = client;
    for clip in clips {
        let ids: Vec<_> = (0..FRAMES).map(|k| clip.frame_id - span + 2 * k).collect();
        assert_eq!(clip.clip_frame_ids, ids);
        let Some(Outcome::Classification(found)) = clip.outcome else {
            panic!("{clip:?}");
        };
        let wanted = call(&mut client, &ids).await;
        assert_eq!(found.frames, wanted.frames);
        for (found, wanted) in found.top.iter().zip(&wanted.top) {
            assert_eq!(found.label, wanted.label);
            assert!((found.probability - wanted.probability).abs() < 1e-4);
        }
    }
    let status = camera.end().await.unwrap();
    assert!(status.ring_bytes > 0);
    server.settled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clips_come_each_hop_and_begin_anew_after_a_hole_and_with_another_size() {
    let server = Running::start(one_lane()).await;
    let client = server.client().await;
    let mut camera = Camera::open(&client, settings(vec![motion(1, 3)]))
        .await
        .unwrap();
    let mut ends = Vec::new();
    let mut restarted = Vec::new();
    let mut show = async |camera: &mut Camera, id: u32, side: u32, broken: bool| {
        let image = if broken {
            b"broken".as_slice().into()
        } else {
            png(side, side, id)
        };
        camera
            .ask(super::camera::frame(id, Some(encoded(image))))
            .await;
        let frame = camera.frame(id).await;
        ends.extend(frame.results.iter().map(|result| result.frame_id));
        if frame.done.clips_restarted {
            restarted.push(id);
        }
        frame.done.outcome()
    };
    for id in 1..=14 {
        assert_eq!(
            show(&mut camera, id, 64, false).await,
            FrameOutcome::Answered
        );
    }
    // A frame that cannot be read is a hole of one frame, with a stride of one.
    assert_eq!(
        show(&mut camera, 15, 64, true).await,
        FrameOutcome::BadImage
    );
    for id in 16..=24 {
        show(&mut camera, id, 64, false).await;
    }
    for id in 25..=33 {
        show(&mut camera, id, 80, false).await;
    }
    assert_eq!(ends, [8, 11, 14, 23, 32]);
    assert_eq!(restarted, [16, 25]);
    camera.end().await.unwrap();
    server.settled().await;
    server.stop().await;
}

/// Times that the frames bring count, not when they come; several streams keep their own rows.
#[tokio::test(flavor = "multi_thread")]
async fn clips_by_time_go_by_the_frames_times() {
    let server = Running::start(one_lane()).await;
    let client = server.client().await;
    let milliseconds = |count: i32| prost_types::Duration {
        seconds: 0,
        nanos: count * 1_000_000,
    };
    // Frames are 40 ms apart.
    let timed = StreamHead {
        stride: Some(Stride::StrideTime(milliseconds(80))),
        hop: Some(Hop::HopTime(milliseconds(120))),
        ..head("motion")
    };
    let mut one = Camera::open(&client, settings(vec![timed])).await.unwrap();
    let mut two = Camera::open(&client, settings(vec![motion(1, 1)]))
        .await
        .unwrap();
    let mut clips = Vec::new();
    for id in 1..=24 {
        one.send(id, png(64, 64, id)).await;
        two.send(id, png(64, 64, 1000 + id)).await;
        clips.extend(one.frame(id).await.results);
        two.frame(id).await;
    }
    let ends: Vec<_> = clips.iter().map(|clip| clip.frame_id).collect();
    assert_eq!(ends, [15, 18, 21, 24]);
    let ids: Vec<_> = (0..FRAMES).map(|k| 1 + 2 * k).collect();
    assert_eq!(clips[0].clip_frame_ids, ids);
    let bytes = two.end().await.unwrap().ring_bytes;
    one.end().await.unwrap();
    // What a clip of eight frames reads, and one frame more to choose from.
    let row = bytes / (FRAMES + 1);
    assert!(row > 0 && bytes % row == 0, "{bytes}");
    server.settled().await;
    server.stop().await;
}

/// What a stream keeps is on its caller's account, and where there is no room its clips are refused, not its frames.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_find_no_room_fail_the_clips_alone() {
    let server = Running::start(one_lane()).await;
    let client = server.client().await;
    let mut camera = Camera::open(&client, settings(vec![motion(1, 1)]))
        .await
        .unwrap();
    camera.send(1, png(64, 64, 1)).await;
    camera.frame(1).await;
    let held = server.engine.load().result_bytes;
    let row = u64::from(camera.end().await.unwrap().ring_bytes);
    assert!(row > 0 && held >= row, "kept rows are not on account");
    server.settled().await;
    server.stop().await;

    let config = frostline::engine::EngineConfig {
        admission: frostline::engine::AdmissionLimits {
            // Room for a call, and for some rows beside it.
            result_bytes: 6 * row,
            ..Default::default()
        },
        ..one_lane()
    };
    let server = Running::start(config).await;
    let client = server.client().await;
    let heads = StreamSettings {
        policy: proto::FramePolicy::Queue.into(),
        ..settings(vec![motion(1, 1)])
    };
    let mut camera = Camera::open(&client, heads).await.unwrap();
    let mut refused = 0;
    for id in 1..=12 {
        camera.send(id, png(64, 64, id)).await;
        let frame = camera.frame(id).await;
        let failed = frame.results.iter().filter(|result| {
            matches!(&result.outcome, Some(Outcome::Error(error)) if camera::told(error).0 == "OVERLOADED")
        });
        let full = frame.done.outcome() == FrameOutcome::Overloaded;
        refused += failed.count() + usize::from(full);
    }
    assert!(refused > 0, "more rows were kept than there is room for");
    assert!(server.engine.load().result_bytes <= 6 * row);
    camera.end().await.unwrap();
    server.settled().await;
    server.stop().await;
}
