//! What is accounted for before it is spent: bytes in arrival, unread answers, calls open to all, frames without use.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use frostline::{
    client::encoded,
    proto,
    server::{ServerConfig, TransportLimits},
};
use h2::{
    RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_types::StatusExt;

use crate::{
    abuse::{DETECT, LIMIT, Witness, bare, bounded, detect, request},
    common::framing::framed,
    support::{Running, one_lane, png},
};

const WATCH: &str = "grpc.health.v1.Health/Watch";
const CHECK: &str = "grpc.health.v1.Health/Check";

fn health(server: &Running, method: &str) -> Request<()> {
    Request::post(format!("http://{}/{method}", server.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

/// A message's prefix, which says that `length` bytes follow.
fn prefix(length: u32) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(length);
    bytes.freeze()
}

/// A connection that comes from `source`.
async fn from(source: [u8; 4], server: &Running) -> SendRequest<Bytes> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((source, 0))).unwrap();
    let stream = socket.connect(server.address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20);
    let (sender, connection) = builder.handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn send(
    sender: &mut SendRequest<Bytes>,
    call: Request<()>,
) -> (ResponseFuture, SendStream<Bytes>) {
    let mut ready = timeout(LIMIT, sender.clone().ready())
        .await
        .unwrap()
        .unwrap();
    ready.send_request(call, false).unwrap()
}

/// The status of an answer.
async fn status(answer: ResponseFuture) -> Status {
    end(timeout(LIMIT, answer).await.expect("no answer").unwrap()).await
}

/// The status of a response, in its headers or in the trailers behind all of its body.
async fn end(response: Response<RecvStream>) -> Status {
    if let Some(status) = Status::from_header_map(response.headers()) {
        return status;
    }
    let mut body = response.into_body();
    while let Some(data) = timeout(LIMIT, body.data()).await.expect("no data") {
        let length = data.unwrap().len();
        body.flow_control().release_capacity(length).unwrap();
    }
    let trailers = timeout(LIMIT, body.trailers()).await.expect("no trailers");
    Status::from_header_map(&trailers.unwrap().unwrap()).expect("no status")
}

/// Sends `bytes` as they may go.
async fn push(stream: &mut SendStream<Bytes>, mut bytes: Bytes) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let capacity = std::future::poll_fn(|context| stream.poll_capacity(context)).await;
        let capacity = capacity.ok_or(h2::Error::from(h2::Reason::CANCEL))??;
        stream.send_data(bytes.split_to(capacity.min(bytes.len())), false)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_without_an_identity_keep_nobody_out() {
    let transport = TransportLimits {
        calls: 16,
        ..TransportLimits::default()
    };
    let server = bounded(transport).await;
    let mut witness = Witness::new(&server).await;
    // One watcher of another address, who came first and stays.
    let steady = framed(&HealthCheckRequest::default(), false);
    let mut other = from([127, 0, 0, 2], &server).await;
    let (answer, mut stream) = send(&mut other, health(&server, WATCH)).await;
    stream.send_data(steady.clone(), true).unwrap();
    let mut stays = answer.await.unwrap().into_body();
    stays.data().await.unwrap().unwrap();
    // More watches than there are places, twice, one after the other.
    let mut responses = Vec::new();
    for _ in 0..2 {
        let mut sender = from([127, 0, 0, 3], &server).await;
        let mut watches = Vec::new();
        for _ in 0..300 {
            let (answer, mut stream) = send(&mut sender, health(&server, WATCH)).await;
            stream.send_data(steady.clone(), true).unwrap();
            watches.push(answer);
        }
        for answer in watches {
            responses.push(timeout(LIMIT, answer).await.unwrap().unwrap());
        }
    }
    witness.sees_nothing(&server).await;
    let (answer, mut stream) = send(&mut other, health(&server, CHECK)).await;
    stream.send_data(steady, true).unwrap();
    assert_eq!(status(answer).await.code(), Code::Ok);
    // The older ones of the flood have ended, and say why; the watcher from elsewhere has not.
    for response in responses.drain(..300) {
        assert_eq!(end(response).await.code(), Code::ResourceExhausted);
    }
    assert!(!stays.is_end_stream());
    drop((witness, other, stays, responses));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_never_end_leave_room_to_others() {
    const LENGTH: u32 = 4 << 20;
    let transport = TransportLimits {
        bytes: 48 << 20,
        ..TransportLimits::default()
    };
    let config = ServerConfig {
        max_request_bytes: 8 << 20,
        max_response_bytes: 8 << 20,
        transport,
        ..ServerConfig::default()
    };
    let server = Running::start_with(one_lane(), config).await;
    let mut witness = Witness::new(&server).await;
    let mut sender = from([127, 0, 0, 3], &server).await;
    let mut open = Vec::new();
    let mut refused = 0;
    let most = Bytes::from(vec![0; LENGTH as usize - 1]);
    for _ in 0..30 {
        let call = request(&server, DETECT).body(()).unwrap();
        let (answer, mut stream) = send(&mut sender, call).await;
        stream.send_data(prefix(LENGTH), false).unwrap();
        // A call that is refused takes no more.
        let sent = timeout(LIMIT, push(&mut stream, most.clone()))
            .await
            .unwrap();
        open.push((answer, stream, sent.is_ok()));
    }
    let mut kept = Vec::new();
    for (answer, stream, sent) in open {
        if sent {
            kept.push((answer, stream));
            continue;
        }
        let status = status(answer).await;
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(
            status.message().contains("limits.transport_bytes"),
            "{status:?}"
        );
        refused += 1;
    }
    // Two thirds of the budget are eight messages of this length.
    assert!(
        (6..=8).contains(&kept.len()),
        "{} kept, {refused} refused",
        kept.len()
    );
    // Another address has what is left, and the end of one of those that wait is still good for an answer.
    let mut other = from([127, 0, 0, 2], &server).await;
    let call = request(&server, DETECT).body(()).unwrap();
    let (answer, mut stream) = send(&mut other, call).await;
    stream.send_data(prefix(LENGTH), false).unwrap();
    push(&mut stream, Bytes::from(vec![0; LENGTH as usize]))
        .await
        .unwrap();
    stream.send_data(Bytes::new(), true).unwrap();
    // It is no request, but it came whole.
    assert_eq!(status(answer).await.code(), Code::InvalidArgument);
    witness.sees_nothing(&server).await;
    drop(kept);
    witness.sees_nothing(&server).await;
    drop((witness, sender, other));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_alone_takes_no_memory() {
    let server = bounded(TransportLimits::default()).await;
    let mut witness = Witness::new(&server).await;
    let before = virtual_memory();
    let mut sender = from([127, 0, 0, 3], &server).await;
    let mut open = Vec::new();
    for _ in 0..200 {
        let call = request(&server, DETECT).body(()).unwrap();
        let (answer, mut stream) = send(&mut sender, call).await;
        stream.send_data(prefix(64 << 20), false).unwrap();
        stream
            .send_data(Bytes::from_static(&[0; 9000]), false)
            .unwrap();
        open.push((answer, stream));
    }
    // Calls of a connection are taken up in their order.
    let call = request(&server, "Unknown/Method").body(()).unwrap();
    let (answer, _stream) = send(&mut sender, call).await;
    status(answer).await;
    let grown = virtual_memory().saturating_sub(before);
    assert!(grown < 4 << 30, "{grown} bytes for 200 lengths of 64 MiB");
    witness.sees_nothing(&server).await;
    drop((witness, sender, open));
    server.stop().await;
}

/// Bytes of address space of this process, in which other tests run as well.
fn virtual_memory() -> u64 {
    procfs::process::Process::myself()
        .unwrap()
        .stat()
        .unwrap()
        .vsize
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_answers_are_bounded_and_given_back() {
    const CALLS: usize = 64;
    let transport = TransportLimits {
        bytes: 2 << 20,
        ..TransportLimits::default()
    };
    let config = ServerConfig {
        transport,
        ..ServerConfig::default()
    };
    let server = Running::start_with(one_lane(), config).await;
    let mut witness = Witness::new(&server).await;
    let message = proto::ExtractFeaturesRequest {
        image: Some(encoded(png(64, 64, 1))),
        ..Default::default()
    };
    let message = framed(&message, false);
    let (mut sender, _end) = bare(&server, 1024).await;
    let call = || request(&server, "VisionService/ExtractFeatures").body(());
    let mut answers = Vec::new();
    for _ in 0..CALLS {
        let (answer, mut stream) = send(&mut sender, call().unwrap()).await;
        stream.send_data(message.clone(), true).unwrap();
        answers.push(answer);
    }
    // All have been answered or refused before any of them is read.
    let mut responses = Vec::new();
    for answer in answers {
        responses.push(timeout(LIMIT, answer).await.unwrap().unwrap());
    }
    witness.sees_nothing(&server).await;
    let mut codes = Vec::new();
    for response in responses {
        codes.push(end(response).await.code());
    }
    let count = |code| codes.iter().filter(|c| **c == code).count();
    let (read, refused) = (count(Code::Ok), count(Code::ResourceExhausted));
    assert!(
        read > 0 && refused > 0 && read + refused == CALLS,
        "{codes:?}"
    );
    // Once they are read there is room again.
    let (answer, mut stream) = send(&mut sender, call().unwrap()).await;
    stream.send_data(message, true).unwrap();
    assert_eq!(status(answer).await.code(), Code::Ok);
    drop((witness, sender));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_method_has_its_own_size() {
    let server = bounded(TransportLimits::default()).await;
    let mut client = server.client().await;
    let (mut sender, _end) = bare(&server, 65_535).await;
    for (call, most) in [
        (health(&server, CHECK), 4 << 10),
        (
            request(&server, "ModelService/LoadHead").body(()).unwrap(),
            64 << 10,
        ),
    ] {
        let (answer, mut stream) = send(&mut sender, call).await;
        stream.send_data(prefix(most + 1), false).unwrap();
        let status = status(answer).await;
        assert_eq!(status.code(), Code::InvalidArgument);
        let info = status.get_error_details().error_info().cloned();
        let limit = info.and_then(|info| info.metadata.get("limit").cloned());
        assert_eq!(limit, Some(most.to_string()), "{status:?}");
    }
    client.detect(png(32, 32, 0)).await.unwrap();
    drop((client, sender));
    server.stop().await;
}

/// Whether a connection on which these frames come is ended before they have all been sent.
async fn ends(server: &Running, frames: impl Iterator<Item = Vec<u8>> + Send + 'static) -> bool {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(preface).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let writing = tokio::spawn(async move {
        for frame in frames {
            if write.write_all(&frame).await.is_err() {
                return true;
            }
        }
        false
    });
    let mut answers = Vec::new();
    // Closed or reset.
    let _ = timeout(LIMIT, read.read_to_end(&mut answers))
        .await
        .expect("it goes on");
    writing.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_carry_nothing_end_their_connection() {
    let server = bounded(TransportLimits::default()).await;
    let mut witness = Witness::new(&server).await;
    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    // Windows of all streams, smaller and larger in turns.
    let window = |size: u8| [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, size, 0];
    let settings = [window(1), window(2)].concat();
    let priority = [0, 0, 5, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1];
    for flood in [&ping[..], &settings, &priority] {
        let flood = flood.repeat(1000);
        assert!(ends(&server, std::iter::repeat_n(flood, 1000)).await);
    }
    witness.sees_nothing(&server).await;
    drop(witness);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_the_server_must_reset_end_their_connection() {
    let server = bounded(TransportLimits::default()).await;
    let mut witness = Witness::new(&server).await;
    let frames = (1..40_000_u32).step_by(2).map(|stream| {
        let [a, b, c, d] = stream.to_be_bytes();
        // A call (POST, http, / in HPACK's table), and a window that grows by nothing, which resets it.
        let call = [0, 0, 3, 1, 4, a, b, c, d, 0x83, 0x86, 0x84];
        let window = [0, 0, 4, 8, 0, a, b, c, d, 0, 0, 0, 0];
        [&call[..], &window].concat()
    });
    assert!(ends(&server, frames).await);
    witness.sees_nothing(&server).await;
    drop(witness);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_on_where_frames_come_with_them() {
    let server = bounded(TransportLimits::default()).await;
    let mut client = server.client().await;
    // Windows of 1 KiB: an update for each.
    let (mut sender, _end) = bare(&server, 1024).await;
    let message = framed(&detect(3), false);
    for _ in 0..200 {
        let (answer, mut stream) =
            send(&mut sender, request(&server, DETECT).body(()).unwrap()).await;
        stream.send_data(message.clone(), true).unwrap();
        assert_eq!(status(answer).await.code(), Code::Ok);
    }
    client.detect(png(32, 32, 0)).await.unwrap();
    drop((client, sender));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_without_a_key_ends_its_connection() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    std::fs::write(&file, "").unwrap();
    let auth = frostline::server::AuthConfig {
        keys: Some(file),
        ..Default::default()
    };
    let server = crate::auth::with_auth(one_lane(), auth).await;
    let (sender, end) = bare(&server, 65_535).await;
    let flood = async {
        for _ in 0..50_000 {
            let Ok(mut ready) = sender.clone().ready().await else {
                return;
            };
            let call = request(&server, DETECT).body(()).unwrap();
            let Ok((answer, _)) = ready.send_request(call, true) else {
                return;
            };
            if answer.await.is_err() {
                return;
            }
        }
        panic!("all of it was taken");
    };
    timeout(4 * LIMIT, flood).await.expect("the flood goes on");
    assert!(timeout(LIMIT, end).await.is_ok());
    server.stop().await;
}
