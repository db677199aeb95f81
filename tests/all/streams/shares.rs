//! How many streams there may be, what they may promise, and what they have of each other.

use frostline::{
    engine::EngineConfig,
    proto::{FrameOutcome, FramePolicy, StreamSettings},
    server::{ServerConfig, StreamLimits},
};
use tonic::Code;
use tonic_types::RpcStatusExt;

use super::{
    camera::{Camera, head, settings, told},
    policies::{SLOW, image, serve, with},
};
use crate::support::{Running, one_lane, png, reason};

fn limits(streams: usize, per_caller: usize) -> ServerConfig {
    ServerConfig {
        stream: StreamLimits {
            streams,
            per_caller,
            ..StreamLimits::default()
        },
        ..ServerConfig::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stream_too_many_is_refused_and_the_others_do_not_notice() {
    for config in [limits(2, 9), limits(9, 2)] {
        let server = Running::start_with(one_lane(), config).await;
        let client = server.client().await;
        let open = || Camera::open(&client, settings(vec![head("scene")]));
        let mut first = open().await.unwrap();
        let second = open().await.unwrap();
        let refused = open().await.err().unwrap();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert!(refused.message().contains("stream.streams"), "{refused}");
        assert_eq!(reason(&refused), "OVERLOADED");
        first.send(1, png(64, 64, 1)).await;
        assert_eq!(first.frame(1).await.done.outcome(), FrameOutcome::Answered);
        // A place comes free when a stream is gone, however it went.
        drop(second);
        let mut third = loop {
            match open().await {
                Ok(camera) => break camera,
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
            }
        };
        first.end().await.unwrap();
        third.end().await.unwrap();
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn promises_are_held_to_what_the_server_can_do() {
    let server = Running::start(one_lane()).await;
    let client = server.client().await;
    let promise = |frames_per_second| StreamSettings {
        frames_per_second,
        ..settings(vec![head("scene")])
    };
    let refused = Camera::open(&client, promise(1000.0)).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("cannot be held"), "{refused}");
    let mut camera = Camera::open(&client, promise(0.5)).await.unwrap();
    let updated = camera.update(promise(1000.0)).await;
    let error = updated.error.unwrap();
    assert_eq!(told(&error).1, "update.settings.frames_per_second");
    assert!(error.get_details_retry_info().is_some());
    assert_eq!(updated.settings.unwrap().frames_per_second, 0.5);
    // Each frame of four.
    let thin = StreamSettings {
        every: 4,
        ..promise(0.5)
    };
    assert!(camera.update(thin).await.error.is_none());
    for wrong in [-1.0, 1001.0, f32::NAN] {
        let refused = Camera::open(&client, promise(wrong)).await.err().unwrap();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(
            refused
                .message()
                .contains("start.settings.frames_per_second"),
            "{refused}"
        );
    }
    camera.end().await.unwrap();
    server.stop().await;
}

/// A stream that sends as much as it can leaves another of the same caller its share: neither waits for the other's queue.
#[tokio::test(flavor = "multi_thread")]
async fn streams_of_one_caller_share_what_it_gets() {
    let server = serve().await;
    let client = server.client().await;
    let mut flood = Camera::named(&client, "flood", with(FramePolicy::Wait, 64))
        .await
        .unwrap();
    let mut quiet = Camera::named(&client, "quiet", with(FramePolicy::Wait, 64))
        .await
        .unwrap();
    const FRAMES: u32 = 60;
    let sender = flood.out.clone();
    let sending = tokio::spawn(async move {
        for id in 1..=FRAMES {
            let frame = super::camera::frame(id, Some(image(id, SLOW)));
            let _ = sender.send(frame).await;
        }
    });
    flood.frame(1).await;
    for id in 1..=10 {
        quiet.show(id, image(100 + id, SLOW)).await;
        assert_eq!(quiet.frame(id).await.done.outcome(), FrameOutcome::Answered);
    }
    // What of the flood had been computed by then is not read yet: the last of it cannot be, if it only got its share.
    let rows = server.engine.counters().backbone_rows;
    assert!(
        rows < u64::from(10 + FRAMES),
        "the quiet one has waited for all of the flood"
    );
    sending.await.unwrap();
    flood.outcomes(FRAMES as usize).await;
    flood.end().await.unwrap();
    quiet.end().await.unwrap();
    server.settled().await;
    server.stop().await;
}

/// Frames count against the quota of pixels as calls do, and are each refused by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn frames_are_on_the_accounts_of_calls() {
    let config = EngineConfig {
        admission: frostline::engine::AdmissionLimits {
            result_bytes: 100,
            ..Default::default()
        },
        ..one_lane()
    };
    let server = Running::start(config).await;
    let client = server.client().await;
    let mut camera = Camera::open(&client, settings(vec![head("scene")]))
        .await
        .unwrap();
    camera.send(1, png(64, 64, 1)).await;
    let done = camera.frame(1).await.done;
    assert_eq!(done.outcome(), FrameOutcome::BadImage);
    let error = done.error.unwrap();
    assert_eq!(told(&error).0, "LIMIT_EXCEEDED");
    assert!(error.message.contains("limits.result_bytes"), "{error:?}");
    camera.end().await.unwrap();
    server.stop().await;
}
