//! What is wrong with a frame is that frame's answer; what is wrong with a stream is that stream's.

use bytes::Bytes;
use frostline::{
    client::encoded,
    proto::{
        self, FrameOutcome, FramePolicy, StreamSettings, analyze_stream_request::Message as Asked,
        stream_head::Stride,
    },
};
use prost_types::{Duration, Timestamp};
use tonic::{Code, Status};

use super::camera::{Camera, ask, captured, frame, head, settings, start, told};
use crate::support::{Running, one_lane, png};

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_frames_are_those_frames_answers() {
    let server = Running::start(one_lane()).await;
    let client = server.client().await;
    let mut camera = Camera::open(&client, settings(vec![head("scene")]))
        .await
        .unwrap();
    let good = || Some(encoded(png(64, 64, 1)));
    let at = |id, capture_time, image| {
        ask(Asked::Frame(proto::StreamFrame {
            id,
            capture_time,
            image,
        }))
    };
    let time = |seconds, nanos| Some(Timestamp { seconds, nanos });
    let broken = || Some(encoded(Bytes::from_static(b"no image")));
    let deep = proto::RawImage {
        width: 8,
        height: 8,
        rgb: Bytes::from_static(b"too few"),
    };
    let deep = proto::Image {
        content: Some(proto::image::Content::Raw(deep)),
    };
    use FrameOutcome as O;
    let table = [
        (at(10, captured(10), good()), O::Answered, "", ""),
        (
            at(10, captured(11), good()),
            O::Duplicate,
            "INVALID_ARGUMENT",
            "frame.id",
        ),
        (
            at(3, captured(12), good()),
            O::Duplicate,
            "INVALID_ARGUMENT",
            "frame.id",
        ),
        (
            at(11, captured(9), good()),
            O::Invalid,
            "INVALID_ARGUMENT",
            "frame.capture_time",
        ),
        (
            at(12, time(0, -1), good()),
            O::Invalid,
            "INVALID_ARGUMENT",
            "frame.capture_time",
        ),
        (
            at(13, time(i64::MAX, 0), good()),
            O::Invalid,
            "INVALID_ARGUMENT",
            "frame.capture_time",
        ),
        (
            at(14, None, None),
            O::Invalid,
            "INVALID_ARGUMENT",
            "frame.image",
        ),
        (
            at(15, None, broken()),
            O::BadImage,
            "INVALID_IMAGE",
            "frame.image.encoded",
        ),
        (
            at(16, None, Some(encoded(Bytes::new()))),
            O::Invalid,
            "INVALID_ARGUMENT",
            "frame.image.encoded",
        ),
        (
            at(17, None, Some(deep)),
            O::BadImage,
            "INVALID_IMAGE",
            "frame.image.raw",
        ),
        // Another size is no mistake.
        (
            at(18, captured(18), Some(encoded(png(80, 40, 2)))),
            O::Answered,
            "",
            "",
        ),
        (at(u32::MAX, captured(19), good()), O::Answered, "", ""),
        (
            at(0, captured(20), good()),
            O::Duplicate,
            "INVALID_ARGUMENT",
            "frame.id",
        ),
    ];
    let count = table.len();
    let wanted = table
        .clone()
        .map(|(_, outcome, reason, field)| (outcome, reason, field));
    for (message, ..) in table {
        let before = camera.done.len();
        camera.ask(message).await;
        camera.outcomes(before + 1).await;
    }
    let found = camera.done.iter().map(|done| {
        let (reason, field) = told(&done.error.clone().unwrap_or_default());
        (done.outcome(), reason, field)
    });
    for (found, wanted) in found.zip(wanted) {
        assert_eq!((found.0, found.1.as_str(), found.2.as_str()), wanted);
    }
    let status = camera.end().await.unwrap();
    assert_eq!(status.frames_offered, count as u32);
    server.settled().await;
    server.stop().await;
}

/// What a stream with these messages ends with.
async fn ended(server: &Running, messages: Vec<proto::AnalyzeStreamRequest>) -> Status {
    let client = server.client().await;
    let mut camera = Camera::call(&client).await.unwrap();
    for message in messages {
        camera.ask(message).await;
    }
    loop {
        match camera.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended well"),
            Err(status) => return status,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_a_stream_end_that_stream_and_name_the_field() {
    let server = Running::start(one_lane()).await;
    let client = server.client().await;
    let mut other = Camera::open(&client, settings(vec![head("scene")]))
        .await
        .unwrap();
    let with = |change: &dyn Fn(&mut StreamSettings)| {
        let mut settings = settings(vec![head("scene"), head("motion")]);
        change(&mut settings);
        vec![start("", settings)]
    };
    let long = Duration {
        seconds: 3601,
        nanos: 0,
    };
    let back = Duration {
        seconds: -1,
        nanos: 0,
    };
    let good = || start("camera", settings(vec![head("scene")]));
    let image = || frame(1, Some(encoded(png(64, 64, 1))));
    let empty = proto::AnalyzeStreamRequest { message: None };
    let table = [
        ("start", vec![image()]),
        ("start", vec![good(), good()]),
        ("start", vec![good(), image(), good()]),
        ("start", vec![ask(Asked::End(proto::StreamEnd {}))]),
        ("start", vec![empty.clone()]),
        ("message", vec![good(), empty]),
        (
            "start.name",
            vec![start(&"x".repeat(129), settings(vec![head("scene")]))],
        ),
        ("start.settings.policy", with(&|s| s.policy = 9)),
        ("start.settings.priority", with(&|s| s.priority = -1)),
        (
            "start.settings.queue_length",
            with(&|s| s.queue_length = 65),
        ),
        ("start.settings.max_age", with(&|s| s.max_age = Some(long))),
        ("start.settings.max_age", with(&|s| s.max_age = Some(back))),
        (
            "start.settings.max_age",
            with(&|s| s.max_age = Some(Duration::default())),
        ),
        (
            "start.settings.status_interval",
            with(&|s| s.status_interval = Some(long)),
        ),
        (
            "start.settings.heads[1].name",
            with(&|s| s.heads[1].name = "scene".to_owned()),
        ),
        (
            "start.settings.heads[0].name",
            with(&|s| s.heads[0].name = "nothing".to_owned()),
        ),
        (
            "start.settings.heads[0].top_k",
            with(&|s| s.heads[0].top_k = Some(1)),
        ),
        (
            "start.settings.heads[0].label_map_format",
            with(&|s| s.heads[0].label_map_format = 9),
        ),
        (
            "start.settings.heads[1].omit_masks",
            with(&|s| s.heads[1].omit_masks = true),
        ),
        (
            "start.settings.heads[1].every",
            with(&|s| s.heads[1].every = 2),
        ),
        (
            "start.settings.heads[1].top_k",
            with(&|s| s.heads[1].top_k = Some(1000)),
        ),
        (
            "start.settings.heads[1].stride_frames",
            with(&|s| s.heads[1].stride = Some(Stride::StrideFrames(1000))),
        ),
        (
            "start.settings.heads[1].stride_frames",
            with(&|s| {
                s.every = 3;
                s.heads[1].stride = Some(Stride::StrideFrames(2));
            }),
        ),
        (
            "start.settings.heads[1].stride_time",
            with(&|s| s.heads[1].stride = Some(Stride::StrideTime(Duration::default()))),
        ),
        (
            "start.settings.heads[1].hop",
            with(&|s| {
                s.heads[1].stride = Some(Stride::StrideFrames(2));
                s.heads[1].hop = Some(proto::stream_head::Hop::HopTime(Duration {
                    seconds: 1,
                    nanos: 0,
                }));
            }),
        ),
    ];
    for (field, messages) in table {
        let status = ended(&server, messages).await;
        let missing = status.code() == Code::NotFound && field.ends_with("[0].name");
        assert!(
            status.code() == Code::InvalidArgument || missing,
            "{field}: {status}"
        );
        assert!(
            status.message().starts_with(&format!("{field}: ")),
            "{field}: {status}"
        );
    }
    other.send(1, png(64, 64, 1)).await;
    assert_eq!(other.frame(1).await.done.outcome(), FrameOutcome::Answered);
    other.end().await.unwrap();
    server.settled().await;
    server.stop().await;
}

/// Frames that are under way when a stream ends by a mistake have their last word before it.
#[tokio::test(flavor = "multi_thread")]
async fn frames_under_way_are_told_before_a_stream_fails() {
    let server = super::policies::serve().await;
    let client = server.client().await;
    let settings = super::policies::with(FramePolicy::Wait, 16);
    let mut camera = Camera::open(&client, settings.clone()).await.unwrap();
    for id in 1..=20 {
        camera
            .show(id, super::policies::image(id, super::policies::SLOW))
            .await;
    }
    camera.ask(start("", settings)).await;
    let status = loop {
        match camera.next().await {
            Ok(next) => assert!(next.is_some()),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let told = camera.status.last().unwrap();
    assert_eq!((told.frames_offered, camera.done.len()), (20, 20));
    let ended = camera
        .done
        .iter()
        .filter(|d| d.outcome() == FrameOutcome::StreamEnded);
    let answered = camera
        .done
        .iter()
        .filter(|d| d.outcome() == FrameOutcome::Answered);
    assert_eq!(ended.count() + answered.count(), 20);
    server.settled().await;
    server.stop().await;
}
