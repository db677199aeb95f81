//! What is no gRPC call, or a broken one: its caller is told what is wrong, and it is no fault of the server's.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::{Reason, client::SendRequest};
use http::{Method, Request, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    abuse::{LIMIT, bare_to},
    observe::scrape,
    process::Process,
    support::png,
};

const DETECT: &str = "/frostline.v1.VisionService/Detect";
const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const CHECK: &str = "/grpc.health.v1.Health/Check";

/// The answer to a request, and its text.
async fn ask(
    sender: &mut SendRequest<Bytes>,
    request: Request<()>,
    body: &[u8],
) -> (http::Response<()>, String) {
    let (answer, mut stream) = sender.send_request(request, false).unwrap();
    // The answer may come, and end the stream, before the body is on its way.
    let _ = stream.send_data(Bytes::copy_from_slice(body), true);
    let response = timeout(LIMIT, answer).await.expect("no answer").unwrap();
    let (parts, mut body) = response.into_parts();
    let mut text = Vec::new();
    while let Some(Ok(piece)) = body.data().await {
        text.extend_from_slice(&piece);
    }
    let text = String::from_utf8(text).unwrap();
    (http::Response::from_parts(parts, ()), text)
}

fn request(address: SocketAddr, method: Method, path: &str, content: &str) -> Request<()> {
    let request = Request::builder()
        .method(method)
        .uri(format!("http://{address}{path}"));
    let request = match content {
        "" => request,
        content => request.header("content-type", content),
    };
    request.body(()).unwrap()
}

/// The status of an answer that has no message.
async fn status(
    sender: &mut SendRequest<Bytes>,
    address: SocketAddr,
    path: &str,
    body: &[u8],
) -> Status {
    let request = request(address, Method::POST, path, "application/grpc");
    let (response, _) = ask(sender, request, body).await;
    assert_eq!(response.status(), StatusCode::OK);
    Status::from_header_map(response.headers()).expect("no status")
}

fn field(status: &Status) -> String {
    let details = status.get_error_details();
    let violations = details.bad_request().map(|bad| &bad.field_violations);
    violations.map_or_else(String::new, |all| all[0].field.clone())
}

async fn http1(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    timeout(LIMIT, read).await.expect("no answer").unwrap();
    answer
}

async fn what_is_not_grpc(address: SocketAddr, sender: &mut SendRequest<Bytes>) {
    let (get, post) = (Method::GET, Method::POST);
    for (method, content) in [
        (&get, ""),
        (&post, ""),
        (&post, "application/json"),
        (&post, "text/plain"),
        (&post, "application/grpc-web+proto"),
        (&post, "application/grpc+json"),
    ] {
        let request = request(address, method.clone(), DETECT, content);
        let (response, text) = ask(sender, request, b"{\"image\": 1}").await;
        let status = response.status();
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content:?}");
        assert!(text.contains("gRPC port"), "{text}");
        assert!(text.contains(content), "{text}");
        // For proxies, which tell gRPC clients.
        assert_eq!(response.headers()["grpc-status"], "3");
    }
    let request = request(address, get, DETECT, "application/grpc");
    let (response, text) = ask(sender, request, b"").await;
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{text}");

    // A body that nobody reads does not cost its sender the answer.
    let long = "x".repeat(200_000);
    for request in [
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        format!("POST {DETECT} HTTP/1.1\r\ncontent-length: 200000\r\n\r\n{long}"),
        "OPTIONS * HTTP/1.0\r\n\r\n".to_owned(),
    ] {
        let answer = http1(address, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 415 "), "{answer}");
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        assert!(text.contains("gRPC port"), "{answer}");
        assert!(head.contains(&format!("content-length: {}\r\n", text.len())));
    }
    // Neither HTTP nor silence: closed at once.
    assert_eq!(http1(address, &[22, 3, 1, 0, 0]).await, "");
}

async fn broken_calls(address: SocketAddr, sender: &mut SendRequest<Bytes>) {
    // A length-delimited field that is longer than the message.
    let damaged = [0, 0, 0, 0, 4, 0x0a, 0xff, 0xff, 0x7f];
    for path in [DETECT, INFER, CHECK] {
        let bodies: [(&str, &[u8]); 5] = [
            ("damaged", &damaged),
            ("no message", &[]),
            ("half a prefix", &[0, 0]),
            ("half a message", &damaged[..7]),
            ("flag 7", &[7, 0, 0, 0, 0]),
        ];
        for (what, body) in bodies {
            let status = status(sender, address, path, body).await;
            assert_eq!(status.code(), Code::InvalidArgument, "{path} {what}");
            assert_eq!(field(&status), "request", "{path} {what}: {status:?}");
        }
    }
    // A message that says that it is packed, and not how.
    let status = status(sender, address, DETECT, &[1, 0, 0, 0, 1, 0]).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("grpc-encoding"), "{status:?}");
}

async fn unknown_methods(address: SocketAddr, sender: &mut SendRequest<Bytes>) {
    for (path, names) in [
        ("/frostline.v1.VisionService/Find", "Analyze, Detect"),
        ("/vision.VisionService/Detect", "frostline.v1.VisionService"),
        ("/", "frostline.v1.VisionService"),
    ] {
        let status = status(sender, address, path, &[0, 0, 0, 0, 0]).await;
        assert_eq!(status.code(), Code::Unimplemented, "{path}");
        let told = status.message();
        assert!(told.contains(path.trim_start_matches('/')), "{told}");
        assert!(told.contains(names), "{told}");
    }
}

async fn long_headers(address: SocketAddr, sender: &mut SendRequest<Bytes>) {
    let with = |bytes: usize| {
        let mut request = request(address, Method::POST, DETECT, "application/grpc");
        let long = "a".repeat(bytes).parse().unwrap();
        request.headers_mut().insert("x-long", long);
        request
    };
    for bytes in [16 << 10, 60_000] {
        let (response, _) = ask(sender, with(bytes), &[0, 0, 0, 0, 0]).await;
        let status = Status::from_header_map(response.headers()).expect("no status");
        assert_eq!(status.code(), Code::InvalidArgument, "{bytes}");
        assert_eq!(field(&status), "metadata", "{status:?}");
    }
    // What HTTP itself does not take.
    let (response, _) = ask(sender, with(100_000), &[]).await;
    assert_eq!(response.status(), 431);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_mistake_is_told_and_is_no_fault() {
    let process = Process::start(&["--set", "telemetry.log=info"]).await;
    let address = process.address;
    let (mut sender, _end) = bare_to(address, 1 << 20).await;
    what_is_not_grpc(address, &mut sender).await;
    broken_calls(address, &mut sender).await;
    unknown_methods(address, &mut sender).await;
    long_headers(address, &mut sender).await;
    // A call that its caller gives up while it sends, for whatever reason.
    for reason in [Reason::CANCEL, Reason::INTERNAL_ERROR] {
        let call = request(address, Method::POST, DETECT, "application/grpc");
        let (_answer, mut stream) = sender.send_request(call, false).unwrap();
        stream
            .send_data(Bytes::from_static(&[0, 0, 0, 1, 0, 1]), false)
            .unwrap();
        stream.send_reset(reason);
    }
    // The server goes on.
    let mut client = process.client(None).await;
    client.detect(png(64, 64, 1)).await.unwrap();

    let is_cancelled = |line: &&str| line.contains(r#"code="CANCELLED""#);
    let cancelled = async {
        loop {
            let text = scrape(process.admin).await;
            let counted = text
                .lines()
                .filter(|line| line.starts_with("frostline_call_duration_seconds_count"))
                .find(is_cancelled)
                .is_some_and(|line| line.ends_with(" 2"));
            if counted {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let text = timeout(LIMIT, cancelled).await.expect("they count not");
    for fault in ["INTERNAL", "UNKNOWN", "DATA_LOSS"] {
        let label = format!("code=\"{fault}\"");
        // Some exist from the start.
        let counts =
            |line: &&str| line.contains(&label) && !line.ends_with(" 0") && !line.ends_with(" 0.0");
        let found: Vec<_> = text.lines().filter(counts).collect();
        assert!(found.is_empty(), "{found:?}");
    }
    drop((sender, client));
    let log = process.stop().await;
    let loud = |line: &&serde_json::Value| ["ERROR", "WARN"].iter().any(|l| line["level"] == *l);
    let loud: Vec<_> = log.iter().filter(loud).collect();
    assert!(loud.is_empty(), "{loud:?}");
}
