//! An attacker's table: each attempt is refused or bounded, and another caller sees nothing of it.

use std::{fs, net::SocketAddr, os::unix::fs::symlink, path::Path, time::Duration};

use bytes::Bytes;
use frostline::{
    client::{Client, encoded},
    metrics::Sample,
    proto,
    repository::Repository,
    server::{ServerConfig, TransportLimits},
};
use h2::{
    Reason,
    client::{ResponseFuture, SendRequest},
};
use http::Request;
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    common::framing::framed,
    support::{Running, one_lane, png, reason},
};

/// Longest that anything here may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) const DETECT: &str = "VisionService/Detect";

/// The other caller: what it asks for and what it got at first.
pub(crate) struct Witness {
    pub(crate) client: Client,
    seen: proto::DetectionResult,
}

impl Witness {
    pub(crate) async fn new(server: &Running) -> Self {
        let mut client = server.client().await;
        let seen = client.detect(png(96, 64, 5)).await.unwrap().result.unwrap();
        Self { client, seen }
    }

    /// Asks again, on its own connection and on a new one.
    pub(crate) async fn sees_nothing(&mut self, server: &Running) {
        let mut other = server.client().await;
        for client in [&mut self.client, &mut other] {
            let answer = timeout(LIMIT, client.detect(png(96, 64, 5))).await;
            let answer = answer.expect("the other caller waits").unwrap();
            assert_eq!(answer.result.unwrap(), self.seen);
        }
    }
}

pub(crate) async fn bounded(transport: TransportLimits) -> Running {
    let config = ServerConfig {
        transport,
        ..ServerConfig::default()
    };
    Running::start_with(one_lane(), config).await
}

/// A bare HTTP/2 connection with a receive window of `window` bytes a stream, and its end.
pub(crate) async fn bare(
    server: &Running,
    window: u32,
) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    bare_to(server.address, window).await
}

/// As [`bare`], to any server.
pub(crate) async fn bare_to(
    address: SocketAddr,
    window: u32,
) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(window)
        .handshake(stream)
        .await
        .unwrap();
    (sender, tokio::spawn(connection))
}

pub(crate) fn request(server: &Running, method: &str) -> http::request::Builder {
    Request::post(format!("http://{}/frostline.v1.{method}", server.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

pub(crate) fn detect(seed: u32) -> proto::DetectRequest {
    proto::DetectRequest {
        image: Some(encoded(png(64, 64, seed))),
        ..Default::default()
    }
}

/// The code of an answer that has no message.
async fn code(answer: ResponseFuture) -> Code {
    let response = timeout(LIMIT, answer).await.expect("no answer").unwrap();
    Status::from_header_map(response.headers())
        .expect("no status")
        .code()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_refused_by_its_length() {
    let config = ServerConfig {
        max_request_bytes: 50_000,
        ..ServerConfig::default()
    };
    let server = Running::start_with(one_lane(), config).await;
    let mut witness = Witness::new(&server).await;
    let status = witness
        .client
        .detect(vec![0xff; 60_000].into())
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::InvalidArgument, "LIMIT_EXCEEDED")
    );
    let details = status.get_error_details();
    assert_eq!(
        details.bad_request().unwrap().field_violations[0].field,
        "request"
    );
    // Of four gigabytes not one byte is waited for.
    let (mut sender, _end) = bare(&server, 65_535).await;
    let (answer, mut stream) = sender
        .send_request(request(&server, DETECT).body(()).unwrap(), false)
        .unwrap();
    stream
        .send_data(Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]), false)
        .unwrap();
    assert_eq!(code(answer).await, Code::InvalidArgument);
    witness.sees_nothing(&server).await;
    drop((witness, sender, stream));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_writer_is_given_its_time_and_no_more() {
    let transport = TransportLimits {
        read: Duration::from_millis(300),
        ..TransportLimits::default()
    };
    let server = bounded(transport).await;
    let mut witness = Witness::new(&server).await;
    let (mut sender, _end) = bare(&server, 65_535).await;
    let whole = framed(&detect(0), false);
    // Nothing; half of a message; a whole one without an end.
    for sent in [0, whole.len() / 2, whole.len()] {
        let call = request(&server, DETECT).body(()).unwrap();
        let (answer, mut stream) = sender.send_request(call, false).unwrap();
        stream.send_data(whole.slice(..sent), false).unwrap();
        assert_eq!(code(answer).await, Code::DeadlineExceeded, "{sent} bytes");
    }
    witness.sees_nothing(&server).await;
    server.settled().await;
    drop((witness, sender));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_no_answer_for_long() {
    let transport = TransportLimits {
        write: Duration::from_millis(300),
        ..TransportLimits::default()
    };
    let server = bounded(transport).await;
    let mut witness = Witness::new(&server).await;
    let (mut sender, end) = bare(&server, 1024).await;
    let message = proto::ExtractFeaturesRequest {
        image: Some(encoded(png(64, 64, 1))),
        ..Default::default()
    };
    let mut unread = Vec::new();
    for _ in 0..8 {
        let call = request(&server, "VisionService/ExtractFeatures")
            .body(())
            .unwrap();
        let (answer, mut stream) = sender.send_request(call, false).unwrap();
        stream.send_data(framed(&message, false), true).unwrap();
        unread.push(answer);
    }
    let mut bodies = Vec::new();
    for answer in unread {
        bodies.push(answer.await.unwrap().into_body());
    }
    // All calls of this connection are stalled, so all of it goes, cleanly or not.
    let ended = timeout(LIMIT, end)
        .await
        .expect("the connection stays open");
    assert!(ended.is_ok(), "its task panicked");
    assert!(!bodies.iter().any(h2::RecvStream::is_end_stream));
    witness.sees_nothing(&server).await;
    drop((witness, sender, bodies));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_at_once_are_bounded_over_all_connections() {
    let transport = TransportLimits {
        calls: 1,
        ..TransportLimits::default()
    };
    let server = bounded(transport).await;
    let mut client = server.client().await;
    // A call that is under way: it has the one place, or another call had it at that moment and it is sent again.
    let (mut sender, _end) = bare(&server, 65_535).await;
    let begun = framed(&detect(1), false).slice(..10);
    let refused = async {
        loop {
            let (mut busy, mut stream) = sender
                .send_request(request(&server, DETECT).body(()).unwrap(), false)
                .unwrap();
            stream.send_data(begun.clone(), false).unwrap();
            while timeout(Duration::ZERO, &mut busy).await.is_err() {
                if let Err(status) = client.detect(png(32, 32, 0)).await {
                    return (status, busy, stream);
                }
            }
        }
    };
    let (status, busy, mut stream) = timeout(LIMIT, refused).await.expect("none is refused");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::ResourceExhausted, "OVERLOADED")
    );
    assert!(status.get_error_details().retry_info().is_some());
    stream.send_reset(Reason::CANCEL);
    drop(busy);
    let free = async { while client.detect(png(32, 32, 0)).await.is_err() {} };
    timeout(LIMIT, free)
        .await
        .expect("the place was not given back");
    drop(client);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_resets_ends_its_own_connection() {
    let server = bounded(TransportLimits::default()).await;
    let mut witness = Witness::new(&server).await;
    let (sender, end) = bare(&server, 65_535).await;
    let mut sender = sender.ready().await.unwrap();
    let flood = async {
        for _ in 0..50_000 {
            let call = request(&server, DETECT).body(()).unwrap();
            let Ok((_, mut stream)) = sender.send_request(call, false) else {
                return;
            };
            stream.send_reset(Reason::CANCEL);
            let Ok(ready) = sender.clone().ready().await else {
                return;
            };
            sender = ready;
        }
        panic!("all of it was taken");
    };
    timeout(LIMIT, flood).await.expect("the flood goes on");
    let error = timeout(LIMIT, end).await.unwrap().unwrap().unwrap_err();
    // The flood may find the connection closed before it reads why.
    let calm = error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
    assert!(calm || error.is_io(), "{error}");
    witness.sees_nothing(&server).await;
    server.settled().await;
    let metrics = &server.engine.config().metrics;
    let page = metrics.render(Sample::default()).unwrap();
    let resets = page
        .lines()
        .find_map(|l| l.strip_prefix("frostline_resets_total "));
    let resets: f64 = resets.expect("they are counted").parse().unwrap();
    assert!((1000.0..=50_000.0).contains(&resets), "{resets}");
    drop(witness);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_links_do_not_lead_out_of_the_repository() {
    let outside = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (root, demo) = (
        folder.path(),
        Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo"),
    );
    for file in [
        "backbone.toml",
        "backbone.onnx",
        "heads/scene/head.toml",
        "heads/scene/head.onnx",
    ] {
        fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
        fs::copy(demo.join(file), root.join(file)).unwrap();
    }
    // A sound head that lies outside, and links to it: to the folder, to the graph, and by name.
    let away = outside.path().join("objects");
    fs::create_dir(&away).unwrap();
    for file in ["head.toml", "head.onnx"] {
        fs::copy(demo.join("heads/objects").join(file), away.join(file)).unwrap();
    }
    let server = Running::start_from(
        &Repository::open(root).unwrap(),
        one_lane(),
        ServerConfig::default(),
    )
    .await;
    let mut client = server.client().await;
    let before = client.segment(png(64, 64, 3)).await.unwrap().result;
    let load = |name: &str| proto::LoadHeadRequest {
        name: name.to_owned(),
    };

    let up = format!("../../..{}", away.display());
    let long = "a".repeat(60_000);
    let names = [
        "",
        ".",
        "..",
        "../scene",
        "scene/../scene",
        "/etc",
        "a\0b",
        ".hidden",
        "scene/",
        "%2e%2e",
        "\\\\..",
        &up,
        away.to_str().unwrap(),
        &long,
    ];
    for name in names {
        let status = client.model.load_head(load(name)).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{name:.80}: {status:?}");
        assert!(status.message().len() < 1000);
    }
    let objects = root.join("heads/objects");
    symlink(&away, &objects).unwrap();
    let status = client.model.load_head(load("objects")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    fs::remove_file(&objects).unwrap();
    fs::create_dir(&objects).unwrap();
    fs::copy(away.join("head.toml"), objects.join("head.toml")).unwrap();
    symlink(away.join("head.onnx"), objects.join("head.onnx")).unwrap();
    let status = client.model.load_head(load("objects")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(
        status.message().contains("heads/objects/head.onnx"),
        "{status:?}"
    );
    assert!(server.engine.head("objects").is_none());
    assert_eq!(client.segment(png(64, 64, 3)).await.unwrap().result, before);
    drop(client);
    server.stop().await;
}
