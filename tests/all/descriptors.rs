//! A server with few file descriptors: idle connections do not keep others, probes and files out.

use std::{net::SocketAddr, time::Duration};

use frostline::server::TransportLimits;
use h2::Reason;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    abuse::{DETECT, LIMIT, bare, bounded, detect, request},
    common::framing::framed,
    observe::http,
    process::Process,
    support::png,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Idle connections: every other one has begun HTTP/2.
async fn idle(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut all = Vec::with_capacity(count);
    for index in 0..count {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if index % 2 == 0 {
            // It may have been closed already.
            let _ = stream.write_all(PREFACE).await;
        }
        all.push(stream);
    }
    all
}

/// The tests' own ends need descriptors, too.
fn raise() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let _ = setrlimit(Resource::Nofile, most);
    let current = getrlimit(Resource::Nofile).current;
    assert!(current.is_none_or(|most| most >= 3000), "ulimit -n");
}

/// Warnings of a log, by message.
fn warnings(log: &[serde_json::Value]) -> Vec<&str> {
    let loud = log.iter().filter(|line| line["level"] != "INFO");
    loud.filter_map(|line| line["message"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_soft_limit_is_raised_so_that_idle_connections_stay() {
    raise();
    let settings = ["--set", "server.max_connections=1500"];
    let process = Process::start_with_files(1024, 2048, &settings).await;
    let files = procfs::process::Process::new(i32::try_from(process.child.id()).unwrap());
    let limits = files.unwrap().limits().unwrap();
    let soft = limits.max_open_files.soft_limit;
    let raised = matches!(soft, procfs::process::LimitValue::Value(2048));
    assert!(raised, "{soft:?}");
    let mut resting = idle(process.address, 1100).await;
    let mut client = process.client(None).await;
    let call = client.detect(png(64, 64, 1));
    timeout(LIMIT, call).await.expect("a call hangs").unwrap();
    assert_eq!(http(process.admin, "GET", "/livez", "").await.0, 200);
    // None had to go: each is greeted, or waits to say something.
    for stream in resting.iter_mut().step_by(2) {
        let mut head = [0; 9];
        let read = timeout(LIMIT, stream.read_exact(&mut head)).await;
        read.expect("no greeting").expect("closed");
        assert_eq!(head[3], 4, "SETTINGS");
    }
    for stream in resting.iter().skip(1).step_by(2) {
        let closed = stream.try_read(&mut [0]);
        let open = closed.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(open, "closed");
    }
    drop((client, resting));
    let log = process.stop().await;
    assert_eq!(warnings(&log), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_as_many_as_files_may_be_open() {
    raise();
    let mut process = Process::start_with_files(128, 256, &[]).await;
    let resting = idle(process.address, 1100).await;
    for _ in 0..20 {
        let mut client = process.client(None).await;
        let call = client.detect(png(64, 64, 1));
        timeout(LIMIT, call).await.expect("a call hangs").unwrap();
        let probe = timeout(LIMIT, http(process.admin, "GET", "/livez", ""));
        assert_eq!(probe.await.expect("the probe hangs").0, 200);
    }
    let lowered = process.take_seen();
    let lowered = lowered.iter().find(|line| line["asked"] == 1024);
    let fit = lowered.expect("it does not say so")["connections"].as_u64();
    assert!((1..256 - 64 - 32).contains(&fit.unwrap()), "{lowered:?}");
    drop(resting);
    let log = process.stop().await;
    assert_eq!(warnings(&log), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_are_busy_a_new_connection_is_told_so() {
    let transport = TransportLimits {
        connections: 2,
        read: Duration::from_secs(600),
        ..TransportLimits::default()
    };
    let server = bounded(transport).await;
    let whole = framed(&detect(1), false);
    let mut calls = Vec::new();
    for _ in 0..2 {
        let (mut sender, end) = bare(&server, 65_535).await;
        let call = request(&server, DETECT).body(()).unwrap();
        let (answer, mut stream) = sender.send_request(call, false).unwrap();
        stream.send_data(whole.slice(..10), false).unwrap();
        // The server has taken the call once it asks for more of it or answers another one on the same connection.
        let other = request(&server, "VisionService/Nothing").body(()).unwrap();
        let (nothing, _) = sender.send_request(other, true).unwrap();
        timeout(LIMIT, nothing).await.unwrap().unwrap();
        calls.push((sender, end, answer, stream));
    }
    for _ in 0..3 {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
        let call = request(&server, DETECT).body(()).unwrap();
        // It may hear of it before it asks.
        if let Ok((answer, _)) = sender.send_request(call, true) {
            drop(answer);
        }
        let error = timeout(LIMIT, connection).await.expect("it waits");
        let error = error.expect_err("it was served");
        assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{error}");
        assert!(error.is_go_away() && error.is_remote(), "{error}");
    }
    for (sender, end, answer, mut stream) in calls {
        stream.send_data(whole.slice(10..), true).unwrap();
        assert_eq!(timeout(LIMIT, answer).await.unwrap().unwrap().status(), 200);
        drop((sender, end));
    }
    server.stop().await;
}
