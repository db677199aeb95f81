//! Sockets of the file system.

use std::{
    fs,
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Output},
    sync::Arc,
};

use frostline::{
    backend::Runtime,
    client::{Client, Credentials},
    engine::{Engine, EngineConfig},
    repository::Repository,
    server::{self, Listener, ServerConfig},
};
use tokio::sync::oneshot;

use crate::{process::Process, support::png};

fn address(path: &Path) -> String {
    format!("unix:{}", path.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_of_the_file_system_is_served_and_gone_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("frostline.sock");
    // What a process left behind that was killed.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let runtime = Runtime::load(None).unwrap();
    let repository = Repository::embedded().unwrap();
    let engine = Engine::start(&runtime, &repository, EngineConfig::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        let _ = stopped.await;
    };
    let listener = Listener::bind_unix(&path).unwrap();
    let serving = tokio::spawn(server::serve(
        listener,
        Arc::new(engine.unwrap()),
        ServerConfig::default(),
        shutdown,
    ));
    let taken = Listener::bind_unix(&path).unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    // A token may go there in plain text: nobody can read it on its way.
    let credentials = Credentials {
        token: Some("secret".to_owned()),
        ..Credentials::default()
    };
    for way in [address(&path), format!("unix://{}", path.display())] {
        let client = Client::connect_with(&way, &credentials).await;
        let answer = client.unwrap().detect(png(32, 32, 0)).await.unwrap();
        assert!(answer.result.is_some(), "{way}");
    }
    drop(stop);
    serving.await.unwrap().unwrap();
    // The task that took connections ends by itself.
    let gone = async {
        while path.exists() {
            tokio::task::yield_now().await;
        }
    };
    let limit = std::time::Duration::from_secs(60);
    tokio::time::timeout(limit, gone).await.unwrap();
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes");
    fs::write(&path, "dear diary").unwrap();
    let error = Listener::bind_unix(&path).unwrap_err().to_string();
    assert!(error.contains("no socket"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "dear diary");
    let long = folder.path().join("x".repeat(200));
    let error = Listener::bind_unix(&long).unwrap_err().to_string();
    assert!(error.contains("107 bytes"), "{error}");
}

fn frostline(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_frostline"));
    command.args(arguments).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_serves_and_asks_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("frostline.sock");
    let own = address(&path);
    let listen = format!("server.listen={own}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_frostline"));
    let both = format!(r#"["127.0.0.1:0", "{own}"]"#);
    command.args(["serve", "--listen", &both]);
    let process = Process::start_with_own(command, &[]).await;
    let addresses = process.ready["addresses"].as_str().unwrap();
    assert!(addresses.ends_with(&own), "{addresses}");
    let asked = tokio::task::spawn_blocking(move || {
        let health = frostline(&["health", "--set", &listen]);
        let heads = frostline(&["heads", "--addr", &own]);
        let taken = frostline(&["config", "--check", "--set", &listen]);
        [health, heads, taken]
    });
    let [health, heads, taken] = asked.await.unwrap();
    assert!(health.status.success(), "{health:?}");
    let heads = String::from_utf8_lossy(&heads.stdout).into_owned();
    assert!(heads.contains("objects"), "{heads}");
    let said = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert_eq!(taken.status.code(), Some(2), "{said}");
    assert!(
        said.contains("server.listen") && said.contains("cannot listen on unix:"),
        "{said}"
    );
    process.stop().await;
}
