//! Signals, drains and the device's death, on the real server in a process of its own.

use std::{path::Path, time::Duration};

use frostline::{
    client::{Client, raw},
    proto,
};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::common::{
    graphs::{BAD_FOR_BACKBONE, HeadGraph, Sampler, TOUCHY, pixels, write_head},
    process::Process,
};

const SIZE: [u32; 2] = [64, 64];
/// Green of a first pixel: some tens of milliseconds, and a second or so for each product.
const SLOW: u8 = 50;
const VERY_SLOW: u8 = 255;
/// With it a very slow image takes seconds on any machine.
const HANGING: Sampler = Sampler {
    products: 6,
    ..TOUCHY
};
const LIMIT: Duration = Duration::from_secs(60);

fn repository() -> TempDir {
    repository_of(TOUCHY)
}

fn repository_of(sampler: Sampler) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root: &Path = folder.path();
    let backbone = sampler.write(root);
    write_head(root, "mean", "1", &backbone, SIZE, &HeadGraph::Mean(1.0));
    folder
}

async fn ask(client: &mut Client, green: u8, level: u8) -> Result<(), Status> {
    let image = raw(SIZE[1], SIZE[0], pixels(SIZE, [0, green, 0], level));
    let request = proto::AnalyzeRequest {
        input: Some(proto::analyze_request::Input::Image(image)),
        heads: vec!["mean".to_owned()],
        ..Default::default()
    };
    client.vision.analyze(request).await.map(drop)
}

async fn health(address: &str) -> HealthClient<tonic::transport::Channel> {
    let endpoint = tonic::transport::Endpoint::from_shared(address.to_owned()).unwrap();
    HealthClient::new(endpoint.connect().await.unwrap())
}

/// Calls under way at once, each for an image of its own; returns once the first is answered, when all have arrived.
async fn under_way(
    client: &Client,
    count: u8,
    green: u8,
) -> tokio::task::JoinSet<Result<(), Status>> {
    let mut calls = tokio::task::JoinSet::new();
    for level in 0..count {
        let mut client = client.clone();
        calls.spawn(async move { ask(&mut client, green, level).await });
    }
    calls.join_next().await.unwrap().unwrap().unwrap();
    calls
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_under_load_fails_nothing_that_was_accepted() {
    let folder = repository();
    let server = Process::start(Some(folder.path()), &[]).unwrap();
    let client = Client::connect(&server.address).await.unwrap();
    // One who watches the health of the server must not hold up its end.
    let mut watching = health(&server.address).await;
    let watch = watching.watch(HealthCheckRequest::default()).await.unwrap();
    let mut watch = watch.into_inner();
    let serving = watch.message().await.unwrap().unwrap().status();
    assert_eq!(serving, ServingStatus::Serving);

    let mut calls = under_way(&client, 48, SLOW).await;
    server.signal("TERM").unwrap();
    let told = watch.message().await.unwrap().unwrap().status();
    assert_eq!(told, ServingStatus::NotServing);
    while let Some(answer) = calls.join_next().await {
        answer.unwrap().unwrap();
    }
    let (status, log) = server.wait(LIMIT).unwrap();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("draining") && log.contains("stopped"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lame_duck_still_serves() {
    let folder = repository();
    let settings = ["server.lame_duck_seconds=2"];
    let server = Process::start(Some(folder.path()), &settings).unwrap();
    let mut client = Client::connect(&server.address).await.unwrap();
    let mut health = health(&server.address).await;
    server.signal("TERM").unwrap();
    loop {
        let told = health.check(HealthCheckRequest::default()).await.unwrap();
        if told.into_inner().status() == ServingStatus::NotServing {
            break;
        }
    }
    ask(&mut client, 0, 1).await.unwrap();
    let mut late = Client::connect(&server.address).await.unwrap();
    ask(&mut late, 0, 2).await.unwrap();
    let (status, log) = server.wait(LIMIT).unwrap();
    assert_eq!(status.code(), Some(0), "{log}");
}

/// A connection on which `bytes` were sent and nothing more will be.
async fn silent(server: &Process, bytes: &[u8]) -> TcpStream {
    let address = server.address.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_not_begun_holds_up_no_drain() {
    let folder = repository();
    // Neither time limit may be what ends it.
    let settings = ["server.handshake_seconds=600", "server.drain_seconds=600"];
    let server = Process::start(Some(folder.path()), &settings).unwrap();
    let mut client = Client::connect(&server.address).await.unwrap();
    let mut held = Vec::new();
    for bytes in [&b""[..], b"PRI", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        held.push(silent(&server, bytes).await);
    }
    // It was accepted after them.
    let mut late = Client::connect(&server.address).await.unwrap();
    ask(&mut client, 0, 1).await.unwrap();
    ask(&mut late, 0, 2).await.unwrap();
    server.signal("TERM").unwrap();
    let (status, log) = server.wait(LIMIT).unwrap();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("stopped"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_take_its_leave_is_given_as_long_as_a_handshake() {
    let folder = repository();
    let settings = [
        "server.handshake_seconds=1",
        "server.drain_seconds=600",
        "server.keepalive_seconds=3600",
    ];
    let server = Process::start(Some(folder.path()), &settings).unwrap();
    // The preface and empty SETTINGS: from here on it would have to answer a ping.
    let begun = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let held = silent(&server, begun).await;
    let mut client = Client::connect(&server.address).await.unwrap();
    ask(&mut client, 0, 1).await.unwrap();
    server.signal("TERM").unwrap();
    let (status, log) = server.wait(LIMIT).unwrap();
    assert_eq!(status.code(), Some(0), "{log}");
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_stops_at_once() {
    let folder = repository();
    let settings = ["server.lame_duck_seconds=3600"];
    let server = Process::start(Some(folder.path()), &settings).unwrap();
    let mut health = health(&server.address).await;
    server.signal("TERM").unwrap();
    loop {
        let told = health.check(HealthCheckRequest::default()).await.unwrap();
        if told.into_inner().status() == ServingStatus::NotServing {
            break;
        }
    }
    server.signal("TERM").unwrap();
    let (status, log) = server.wait(LIMIT).unwrap();
    assert_eq!(status.code(), Some(130), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_at_its_time_limit() {
    let folder = repository_of(HANGING);
    let settings = ["server.drain_seconds=1", "engine.lanes=1"];
    let server = Process::start(Some(folder.path()), &settings).unwrap();
    let client = Client::connect(&server.address).await.unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for level in 0..8 {
        let mut client = client.clone();
        calls.spawn(async move { ask(&mut client, VERY_SLOW, level).await });
    }
    let mut health = health(&server.address).await;
    health.check(HealthCheckRequest::default()).await.unwrap();
    server.signal("TERM").unwrap();
    let (status, log) = server.wait(LIMIT).unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    while let Some(answer) = calls.join_next().await {
        let status = answer.unwrap().unwrap_err();
        assert!(
            matches!(
                status.code(),
                Code::Unavailable | Code::Unknown | Code::Cancelled
            ),
            "{status:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_hangs_is_told_to_everyone_and_ends_the_process() {
    let folder = repository_of(HANGING);
    let settings = ["engine.step_limit_ms=500", "engine.lanes=1"];
    let server = Process::start(Some(folder.path()), &settings).unwrap();
    let client = Client::connect(&server.address).await.unwrap();
    let mut watching = health(&server.address).await;
    let watch = watching.watch(HealthCheckRequest::default()).await.unwrap();
    let mut watch = watch.into_inner();
    watch.message().await.unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for level in 0..8 {
        let mut client = client.clone();
        calls.spawn(async move { ask(&mut client, VERY_SLOW, level).await });
    }
    let told = watch.message().await.unwrap().unwrap().status();
    assert_eq!(told, ServingStatus::NotServing);
    while let Some(answer) = calls.join_next().await {
        let status = answer.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(status.message().contains("device"), "{status:?}");
    }
    let (status, log) = server.wait(LIMIT).unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("step_limit_ms"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sticky_error_of_the_device_is_told_to_everyone_and_ends_the_process() {
    // All that crosses ONNX Runtime's border is text: an operator of this name fails as a real device does.
    let folder = repository_of(Sampler {
        failing: "CUDA failure 719: unspecified launch failure",
        ..TOUCHY
    });
    let server = Process::start(Some(folder.path()), &["engine.lanes=1"]).unwrap();
    let mut client = Client::connect(&server.address).await.unwrap();
    let mut watching = health(&server.address).await;
    let watch = watching.watch(HealthCheckRequest::default()).await.unwrap();
    let mut watch = watch.into_inner();
    watch.message().await.unwrap();
    ask(&mut client, 0, 1).await.unwrap();
    let image = raw(SIZE[1], SIZE[0], pixels(SIZE, [BAD_FOR_BACKBONE, 0, 0], 2));
    let request = proto::AnalyzeRequest {
        input: Some(proto::analyze_request::Input::Image(image)),
        heads: vec!["mean".to_owned()],
        ..Default::default()
    };
    let status = client.vision.analyze(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("device is lost"), "{status:?}");
    let told = watch.message().await.unwrap().unwrap().status();
    assert_eq!(told, ServingStatus::NotServing);
    let (status, log) = server.wait(LIMIT).unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("device"), "{log}");
}
