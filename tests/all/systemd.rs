//! A service of systemd: what its manager is told, sockets that it opens, and several addresses.

use std::{
    net::TcpListener,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    process::{Command, Stdio},
    time::Duration,
};

use frostline::client::Client;

use crate::{process::Process, support::png};

/// Longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What the manager was told, up to `last`.
fn told(manager: &UnixDatagram, last: &str) -> String {
    let (mut all, mut bytes) = (String::new(), [0; 4096]);
    while !all.contains(last) {
        let length = manager
            .recv(&mut bytes)
            .unwrap_or_else(|e| panic!("{e}; {all}"));
        all += std::str::from_utf8(&bytes[..length]).unwrap();
        all.push('\n');
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_is_told_when_it_serves_and_when_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(LIMIT)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_frostline"));
    command.env("NOTIFY_SOCKET", &path);
    let process = Process::start_as(command, &[]).await;
    let said = told(&manager, "READY=1");
    assert!(
        said.contains("STATUS=serves motion, objects, scene"),
        "{said}"
    );
    assert!(
        said.contains(&format!("MAINPID={}", process.child.id())),
        "{said}"
    );
    let mut client = process.client(None).await;
    client.detect(png(32, 32, 0)).await.unwrap();
    drop(client);
    process.stop().await;
    told(&manager, "STOPPING=1");
}

/// As systemd starts it: the socket is its descriptor 3.
fn activated(listener: TcpListener) -> Command {
    let mut shell = Command::new("sh");
    let run = "LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec \"$0\" \"$@\" 3<&0 </dev/null";
    shell.args(["-c", run, env!("CARGO_BIN_EXE_frostline")]);
    shell.stdin(Stdio::from(OwnedFd::from(listener)));
    shell
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_the_manager_opened_is_served() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // A call that comes before the server is there waits for it.
    let early = tokio::spawn(async move {
        let mut client = Client::connect(&format!("http://{address}")).await.unwrap();
        client.detect(png(32, 32, 0)).await.unwrap()
    });
    let process = Process::start_as(activated(listener), &[]).await;
    assert_eq!(process.address, address);
    tokio::time::timeout(LIMIT, early).await.unwrap().unwrap();
    process.stop().await;
}

#[test]
fn a_socket_that_others_reach_needs_what_an_address_needs() {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let mut command = activated(listener);
    let output = command.args(["serve"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("server.listen") && said.contains("without TLS or authorization"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_several_addresses_are_served() {
    // A flag wins over the one that all processes here are started with.
    let mut command = Command::new(env!("CARGO_BIN_EXE_frostline"));
    command.args(["serve", "--listen", r#"["localhost:0", "127.0.0.2:0"]"#]);
    let process = Process::start_with_own(command, &[]).await;
    let addresses = process.ready["addresses"].as_str().unwrap().to_owned();
    assert!(addresses.contains("127.0.0.2:"), "{addresses}");
    assert!(addresses.split(',').count() >= 2, "{addresses}");
    for address in addresses.split(',') {
        let mut client = Client::connect(&format!("http://{address}")).await.unwrap();
        client.detect(png(32, 32, 0)).await.unwrap();
    }
    process.stop().await;
}
