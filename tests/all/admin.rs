//! The admin port under callers that mean it no good.

use std::{io::ErrorKind, net::SocketAddr, sync::Arc, time::Duration};

use frostline::server::{AdminAccess, AdminTokens, check_admin_tokens};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    observe::{Observed, http},
    process::Process,
    support::one_lane,
};

/// What is answered to these headers, the status line alone.
async fn status(address: SocketAddr, method: &str, path: &str, headers: &str) -> u16 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\n{headers}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tokens_metrics_and_the_log_are_for_those_who_have_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens");
    let (old, new) = ("the-old-token-of-16", "the-new-token-of-16");
    std::fs::write(&file, format!("{old}\n{new}\n")).unwrap();
    let config = one_lane();
    let tokens = AdminTokens::read(&file, &config.metrics).unwrap();
    let access = AdminAccess {
        tokens: Some(Arc::new(tokens)),
        ..AdminAccess::default()
    };
    let observed = Observed::start_for(config, access).await;
    let ask = async |method, path, token: &str| {
        let headers = format!("host: {}\r\n{token}", observed.admin);
        status(observed.admin, method, path, &headers).await
    };
    let bearer = |token: &str| format!("authorization: Bearer {token}\r\n");
    for path in ["/livez", "/readyz", "/startedz"] {
        assert_eq!(ask("GET", path, "").await, 200, "{path}");
    }
    for (method, path) in [("GET", "/metrics"), ("GET", "/log"), ("PUT", "/log")] {
        for wrong in [
            String::new(),
            bearer(""),
            bearer("the-wrong-token-of-16"),
            format!("authorization: Basic {old}\r\n"),
            bearer(old) + &bearer(new),
        ] {
            assert_eq!(
                ask(method, path, &wrong).await,
                401,
                "{method} {path} {wrong}"
            );
        }
        for right in [
            bearer(old),
            bearer(new),
            format!("authorization: bearer {new}\r\n"),
        ] {
            let answered = ask(method, path, &right).await;
            // An empty filter is none.
            let expected = if method == "PUT" { 400 } else { 200 };
            assert_eq!(answered, expected, "{method} {path} {right}");
        }
    }
    // The old one is taken away.
    std::fs::write(&file, new).unwrap();
    let gone = async { while ask("GET", "/log", &bearer(old)).await == 200 {} };
    timeout(Duration::from_secs(60), gone).await.unwrap();
    assert_eq!(ask("GET", "/log", &bearer(new)).await, 200);
    observed.server.stop().await;
}

#[test]
fn files_without_tokens_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens");
    let cases: [(&[u8], &str); 5] = [
        (b"\n \n", "holds no token"),
        (b"short", "token 1 is none"),
        (
            b"long-enough-as-it-is\nnot one because of spaces",
            "token 2 is none",
        ),
        (&[0xff; 40], "is no text"),
        (&b"long-enough-as-it-is\n".repeat(17), "more than 16"),
    ];
    for (content, says) in cases {
        std::fs::write(&file, content).unwrap();
        let error = check_admin_tokens(&file).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_strangers_reach_nothing() {
    let observed = Observed::start(one_lane()).await;
    let own = format!("host: {}\r\n", observed.admin);
    let cases = [
        (own.clone(), 200),
        ("host: localhost:1\r\n".to_owned(), 200),
        (
            "host: frostline.models.svc.cluster.local:9464\r\n".to_owned(),
            200,
        ),
        ("host: rebound.example\r\n".to_owned(), 403),
        (format!("{own}host: rebound.example\r\n"), 400),
        (format!("{own}origin: http://evil.example\r\n"), 403),
        (format!("{own}origin: null\r\n"), 403),
    ];
    for (headers, expected) in cases {
        for (method, path) in [
            ("GET", "/log"),
            ("PUT", "/log"),
            ("GET", "/metrics"),
            ("GET", "/readyz"),
        ] {
            let answered = status(observed.admin, method, path, &headers).await;
            // An empty filter is none.
            let expected = match (expected, method) {
                (200, "PUT") => 400,
                (expected, _) => expected,
            };
            let refused = answered == expected || (expected == 400 && answered == 403);
            assert!(refused, "{method} {path} {headers:?}: {answered}");
        }
    }
    // HTTP/2 is not spoken.
    let mut stream = TcpStream::connect(observed.admin).await.unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    // Answered with an error of HTTP/1, or closed.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(&[0, 0]), "{answer:?}");
    observed.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_leave_a_place_for_probes() {
    let observed = Observed::start(one_lane()).await;
    let mut silent = Vec::new();
    for number in 0..200 {
        let mut stream = TcpStream::connect(observed.admin).await.unwrap();
        if number % 2 == 0 {
            stream
                .write_all(b"GET /livez HTTP/1.1\r\nhost: ")
                .await
                .unwrap();
        }
        silent.push(stream);
    }
    let probe = http(observed.admin, "GET", "/readyz", "");
    let (code, _) = timeout(Duration::from_secs(30), probe)
        .await
        .expect("a probe found no place");
    assert_eq!(code, 200);
    // The oldest are closed at once, the others when their time for headers is over.
    for mut stream in silent {
        let mut bytes = Vec::new();
        let closed = timeout(Duration::from_secs(30), stream.read_to_end(&mut bytes)).await;
        match closed.expect("a silent connection stays open") {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
    }
    observed.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_turns_the_log_off_is_seen_doing_so() {
    let mut process = Process::start(&[]).await;
    let (code, _) = http(process.admin, "PUT", "/log", "off").await;
    assert_eq!(code, 200);
    let told = process.says("the log's filter was changed").await;
    assert_eq!(told["filter"], "off");
    let (code, _) = http(process.admin, "PUT", "/log", "info,frostline::audit=off").await;
    assert_eq!(code, 200);
    let told = process.says("the log's filter was changed").await;
    assert_eq!(told["filter"], "info,frostline::audit=off");
}
