//! Connections in numbers and in age: idle ones make room, old ones are told to go and then closed.

use std::time::Duration;

use frostline::server::TransportLimits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic_health::pb::HealthCheckRequest;

use crate::{
    abuse::{DETECT, LIMIT, Witness, bare, bounded, detect, request},
    common::framing::framed,
};

/// How many files this process may have open, once that is raised as far as it may be.
fn descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Where that is not allowed, what there was has to do.
    let _ = setrlimit(Resource::Nofile, most);
    getrlimit(Resource::Nofile).current.unwrap_or(1 << 20)
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_make_room_for_those_that_call() {
    const MOST: usize = 64;
    // The server's end of a connection and the test's are descriptors of one process, and other tests need some too.
    let all = usize::try_from(descriptors())
        .unwrap()
        .saturating_sub(1000)
        .min(3000);
    assert!(all >= 2000, "too few files may be open: ulimit -n");
    let transport = TransportLimits {
        connections: MOST,
        // The call below takes as long as the connections do.
        read: Duration::from_secs(600),
        ..TransportLimits::default()
    };
    let server = bounded(transport).await;
    let mut witness = Witness::new(&server).await;
    // A call that is under way from the first to the last of them.
    let (mut sender, busy) = bare(&server, 65_535).await;
    let (answer, mut stream) = sender
        .send_request(request(&server, DETECT).body(()).unwrap(), false)
        .unwrap();
    let whole = framed(&detect(1), false);
    stream.send_data(whole.slice(..10), false).unwrap();
    // Calls of a connection are taken up in their order: once a later one is answered, it is under way.
    let (later, mut body) = sender
        .send_request(request(&server, DETECT).body(()).unwrap(), false)
        .unwrap();
    body.send_data(whole.clone(), true).unwrap();
    assert_eq!(timeout(LIMIT, later).await.unwrap().unwrap().status(), 200);
    let mut idle = Vec::new();
    for index in 0..all {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // Every other one goes so far as HTTP/2's preface.
        if index % 2 == 0 {
            let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
            // It may have been closed already.
            let _ = stream.write_all(preface).await;
        }
        idle.push(stream);
    }
    for stream in &mut idle[..all - MOST] {
        let mut bytes = Vec::new();
        // Closed or reset; what counts is that it does not stay.
        let _ = timeout(LIMIT, stream.read_to_end(&mut bytes))
            .await
            .expect("an idle connection stays");
    }
    assert!(
        !busy.is_finished(),
        "a connection with a call under way was closed"
    );
    stream.send_data(whole.slice(10..), true).unwrap();
    assert_eq!(timeout(LIMIT, answer).await.unwrap().unwrap().status(), 200);
    // The witness's own connection was idle and may be gone; a new one is served.
    witness.client = server.client().await;
    witness.sees_nothing(&server).await;
    drop((witness, sender, stream, idle));
    server.stop().await;
}

fn aged(age: Duration, grace: Duration) -> TransportLimits {
    TransportLimits {
        age,
        age_grace: grace,
        ..TransportLimits::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_connection_takes_no_new_calls_and_finishes_those_under_way() {
    let limits = aged(Duration::from_millis(300), Duration::from_secs(600));
    let server = bounded(limits).await;
    let (mut sender, end) = bare(&server, 65_535).await;
    let call = request(&server, DETECT).body(()).unwrap();
    let (answer, mut stream) = sender.send_request(call, false).unwrap();
    let whole = framed(&detect(1), false);
    stream.send_data(whole.slice(..10), false).unwrap();
    // Other calls on it are taken until it is told to go.
    let told = async {
        loop {
            let check = http::Request::post(format!(
                "http://{}/grpc.health.v1.Health/Check",
                server.address
            ));
            let check = check
                .header("content-type", "application/grpc")
                .body(())
                .unwrap();
            let Ok(mut ready) = sender.clone().ready().await else {
                return;
            };
            let Ok((answer, mut stream)) = ready.send_request(check, false) else {
                return;
            };
            let _ = stream.send_data(framed(&HealthCheckRequest::default(), false), true);
            let Ok(response) = answer.await else {
                return;
            };
            // Read to its end: what is dropped before is reset, and resets are counted.
            let mut body = response.into_body();
            while let Some(piece) = body.data().await {
                let length = piece.unwrap().len();
                body.flow_control().release_capacity(length).unwrap();
            }
            let status = body.trailers().await.unwrap().unwrap();
            assert_eq!(status["grpc-status"], "0");
        }
    };
    timeout(LIMIT, told).await.expect("it is never told to go");
    let rest = stream.send_data(whole.slice(10..), true);
    if let Err(error) = rest {
        panic!("closed within its grace: {error}, {:?}", end.await);
    }
    assert_eq!(timeout(LIMIT, answer).await.unwrap().unwrap().status(), 200);
    drop((sender, stream));
    // With its last call it is over.
    let ended = timeout(LIMIT, end).await.expect("it stays open");
    assert!(ended.unwrap().is_ok());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_connection_is_closed_when_its_grace_is_over() {
    let limits = aged(Duration::from_millis(200), Duration::from_millis(200));
    let server = bounded(limits).await;
    let (mut sender, end) = bare(&server, 65_535).await;
    let call = request(&server, DETECT).body(()).unwrap();
    // A call that would never end.
    let (answer, mut stream) = sender.send_request(call, false).unwrap();
    let whole = framed(&detect(1), false);
    stream.send_data(whole.slice(..10), false).unwrap();
    let answer = timeout(LIMIT, answer).await.expect("it stays open");
    assert!(answer.is_err());
    timeout(LIMIT, end)
        .await
        .expect("it stays open")
        .unwrap()
        .ok();
    // A new connection is as young as any.
    Witness::new(&server).await.sees_nothing(&server).await;
    server.settled().await;
    drop((sender, stream));
    server.stop().await;
}
