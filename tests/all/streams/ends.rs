//! Streams that nobody reads, or writes, or that are cut; and a server that stops.

use std::time::Duration;

use frostline::{
    proto::{
        FrameOutcome, FramePolicy, StreamState, analyze_stream_response::Message as Answer,
        vision_service_client::VisionServiceClient,
    },
    server::{ServerConfig, TransportLimits},
};
use tonic::{Code, transport::Endpoint};

use super::{
    camera::{Camera, frame, head, settings},
    policies::{SLOW, image, serve, with},
};
use crate::support::{Running, one_lane, png};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_cut_leaves_nothing_behind() {
    let server = serve().await;
    let client = server.client().await;
    for round in 0..20 {
        let camera = Camera::open(&client, with(FramePolicy::Wait, 16))
            .await
            .unwrap();
        for id in 1..=12 {
            camera.show(id, image(100 * round + id, SLOW)).await;
        }
        drop(camera);
    }
    server.settled().await;
    let mut camera = Camera::open(&client, with(FramePolicy::Wait, 0))
        .await
        .unwrap();
    camera.show(1, image(9000, 1)).await;
    assert_eq!(camera.frame(1).await.done.outcome(), FrameOutcome::Answered);
    camera.end().await.unwrap();
    server.settled().await;
    server.stop().await;
}

fn with_times(read: u64, write: u64) -> ServerConfig {
    ServerConfig {
        transport: TransportLimits {
            read: Duration::from_secs(read),
            write: Duration::from_secs(write),
            ..TransportLimits::default()
        },
        ..ServerConfig::default()
    }
}

/// One who only writes is no longer read, is ended in time, and holds up nobody meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_never_reads_is_held_up_and_ended() {
    let server = Running::start_with(one_lane(), with_times(30, 1)).await;
    // On a connection of its own, with room for few answers.
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let endpoint = endpoint.initial_stream_window_size(1 << 10);
    let mut deaf = VisionServiceClient::new(endpoint.connect().await.unwrap());
    let (out, messages) = tokio::sync::mpsc::channel(4);
    let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
    out.send(super::camera::start("", settings(vec![head("scene")])))
        .await
        .unwrap();
    let unread = deaf.analyze_stream(messages).await.unwrap();
    let writing = tokio::spawn(async move {
        for id in 1.. {
            let image = frostline::client::encoded(png(64, 64, id % 7));
            if out.send(frame(id, Some(image))).await.is_err() {
                return id;
            }
        }
        0
    });
    let client = server.client().await;
    let mut camera = Camera::open(&client, settings(vec![head("scene")]))
        .await
        .unwrap();
    // The server lets go of it: its frames go nowhere.
    for id in 1.. {
        camera.send(id, png(64, 64, id)).await;
        let done = camera.frame(id).await.done;
        assert_eq!(done.outcome(), FrameOutcome::Answered);
        if writing.is_finished() {
            break;
        }
    }
    let sent = writing.await.unwrap();
    assert!(
        (2..1000).contains(&sent),
        "{sent} frames went to one who reads nothing"
    );
    drop(unread);
    camera.end().await.unwrap();
    server.settled().await;
    server.stop().await;
}

/// One who writes nothing is told how its stream is; one that does not even begin is ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_never_writes_hears_of_it() {
    let server = Running::start_with(one_lane(), with_times(1, 60)).await;
    let client = server.client().await;
    let mut idle = Camera::open(
        &client,
        frostline::proto::StreamSettings {
            status_interval: Some(Duration::from_millis(100).try_into().unwrap()),
            ..settings(vec![head("scene")])
        },
    )
    .await
    .unwrap();
    let mut silent = Camera::call(&client).await.unwrap();
    let refused = silent.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused}");
    while idle.status.len() < 3 {
        let next = idle.next().await.unwrap();
        assert!(matches!(next, Some(Answer::Status(_))), "{next:?}");
    }
    let status = &idle.status[2];
    assert_eq!(
        (status.state(), status.frames_offered),
        (StreamState::Active, 0)
    );
    idle.end().await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_a_deadline_if_it_brings_one() {
    let server = serve().await;
    let mut client = server.client().await;
    let (out, messages) = tokio::sync::mpsc::channel(4);
    let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
    let mut request = tonic::Request::new(messages);
    request.set_timeout(Duration::from_millis(300));
    let start = super::camera::start("", with(FramePolicy::Wait, 0));
    out.send(start).await.unwrap();
    let answers = client.vision.analyze_stream(request).await;
    let ended = match answers {
        Err(status) => status,
        Ok(answers) => {
            let mut answers = answers.into_inner();
            loop {
                match answers.message().await {
                    Ok(next) => assert!(next.is_some(), "it ended well"),
                    Err(status) => break status,
                }
            }
        }
    };
    assert!(
        matches!(ended.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{ended:?}"
    );
    server.stop().await;
}

/// A server that stops says so, takes frames for a while, and every frame has its last word.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_tells_its_streams() {
    let config = ServerConfig {
        drain_timeout: Duration::from_secs(20),
        ..ServerConfig::default()
    };
    let server = Running::start_with(one_lane(), config).await;
    let client = server.client().await;
    let mut camera = Camera::open(&client, settings(vec![head("scene")]))
        .await
        .unwrap();
    camera.send(1, png(64, 64, 1)).await;
    camera.frame(1).await;
    let stopping = tokio::spawn(server.stop());
    while camera
        .status
        .last()
        .is_none_or(|s| s.state() != StreamState::Draining)
    {
        camera.next().await.unwrap();
    }
    let grace = camera.status.last().unwrap().grace.unwrap();
    assert!((1..=10).contains(&grace.seconds), "{grace:?}");
    camera.send(2, png(64, 64, 2)).await;
    assert_eq!(camera.frame(2).await.done.outcome(), FrameOutcome::Answered);
    let status = camera.end().await.unwrap();
    assert_eq!(
        (status.frames_offered, status.state()),
        (2, StreamState::Ending)
    );
    stopping.await.unwrap();
}
