//! One bad head stops nobody, and says what it is.

use std::{fs, path::Path, sync::Arc, time::Duration};

use frostline::{
    client::Client,
    engine::EngineConfig,
    proto::{
        self,
        inference::{
            ModelReadyRequest, RepositoryIndexRequest, ServerReadyRequest,
            grpc_inference_service_client::GrpcInferenceServiceClient,
        },
    },
    repository::{OnBadHead, Repository},
    server::{Admin, AdminAccess, Life, ServerConfig},
    telemetry::LogFilter,
};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    common::{
        graphs::TOUCHY,
        onnx::{FLOAT, Onnx},
    },
    lifecycle::{ask, current_of, until, write},
    observe::http,
    process::Process,
    support::{Running, one_lane, reason},
};

/// Longest that anything here may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A repository with the head `good` and a head `bad` that `spoil` has spoilt.
fn repository(root: &Path, spoil: fn(&Path)) -> String {
    let backbone = TOUCHY.write(root);
    write(root, &backbone, "good", 1);
    write(root, &backbone, "bad", 1);
    spoil(&root.join("heads/bad"));
    backbone
}

/// An upload that ended early.
fn truncated(head: &Path) {
    let graph = fs::read(head.join("head.onnx")).unwrap();
    fs::write(head.join("head.onnx"), &graph[..graph.len() / 2]).unwrap();
}

/// A sound file whose graph does not read what the manifest says.
fn of_another_input(head: &Path) {
    let before = hash(head);
    let graph = Onnx::default().input("g", FLOAT, &["N", "h", "w", "c"]);
    let graph = graph.output("out", FLOAT, &["N", "h", "w", "c"]);
    let graph = graph.node("Identity", &["g"], "out", &[]).bytes();
    fs::write(head.join("head.onnx"), graph).unwrap();
    let manifest = fs::read_to_string(head.join("head.toml")).unwrap();
    fs::write(
        head.join("head.toml"),
        manifest.replace(&before, &hash(head)),
    )
    .unwrap();
}

fn hash(head: &Path) -> String {
    hex::encode(Sha256::digest(fs::read(head.join("head.onnx")).unwrap()))
}

pub(crate) async fn serve(root: &Path, required: &[&str]) -> Running {
    let repository = Repository::open_on(root, OnBadHead::ServeOthers).unwrap();
    let config = EngineConfig {
        on_bad_head: OnBadHead::ServeOthers,
        required_heads: required.iter().map(|name| (*name).to_owned()).collect(),
        ..one_lane()
    };
    Running::start_of(&repository, config).await
}

async fn health(server: &Running, service: &str) -> ServingStatus {
    let service = service.to_owned();
    let mut client = HealthClient::new(server.channel().await);
    let answer = client.check(HealthCheckRequest { service }).await;
    answer.unwrap().into_inner().status()
}

pub(crate) async fn failed(client: &mut Client) -> Vec<proto::FailedHead> {
    let answer = client
        .model
        .list_heads(proto::ListHeadsRequest::default())
        .await;
    answer.unwrap().into_inner().failed
}

/// How a head is spoilt, and what is said of it.
type Way = (fn(&Path), &'static str);

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_head_stops_nobody_and_says_why() {
    let ways: [Way; 4] = [
        (truncated, "heads/bad/head.toml: sha256"),
        (of_another_input, "heads/bad/head.onnx: "),
        (
            |head| fs::write(head.join("head.toml"), "name =").unwrap(),
            "heads/bad/head.toml: line 1",
        ),
        (
            |head| fs::remove_file(head.join("head.onnx")).unwrap(),
            "heads/bad/head.onnx: cannot be read: No such file",
        ),
    ];
    for (spoil, why) in ways {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let backbone = repository(root, spoil);
        let server = serve(root, &[]).await;
        let client = &mut server.client().await;
        assert_eq!(ask(client, "good", 10).await.unwrap(), 1, "{why}");
        let status = ask(client, "bad", 10).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        assert_eq!(reason(&status), "LOAD_FAILED");
        assert!(status.message().contains(why), "no {why:?} in {status:?}");

        assert_eq!(health(&server, "").await, ServingStatus::Serving);
        assert_eq!(
            health(&server, "frostline.head.good").await,
            ServingStatus::Serving
        );
        assert_eq!(
            health(&server, "frostline.head.bad").await,
            ServingStatus::NotServing
        );
        let listed = failed(client).await;
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert_eq!(
            (listed[0].name.as_str(), &listed[0].serving_version),
            ("bad", &None)
        );
        let error = listed[0].error.clone().unwrap();
        assert_eq!(frostline::client::reason(&error), "LOAD_FAILED");
        assert!(error.message.contains(why), "{listed:?}");
        assert_eq!(current_of(&server, "bad"), Some(false));
        assert_eq!(current_of(&server, "good"), Some(true));

        let mut oip = GrpcInferenceServiceClient::new(server.channel().await);
        let index = oip
            .repository_index(RepositoryIndexRequest::default())
            .await;
        let models = index.unwrap().into_inner().models;
        let bad = models.iter().find(|model| model.name == "bad").unwrap();
        assert!(
            bad.state == "UNAVAILABLE" && bad.reason.contains(why),
            "{bad:?}"
        );
        let name = "bad".to_owned();
        let ready = oip
            .model_ready(ModelReadyRequest {
                name,
                ..Default::default()
            })
            .await;
        assert!(!ready.unwrap().into_inner().ready);
        assert!(
            oip.server_ready(ServerReadyRequest {})
                .await
                .unwrap()
                .into_inner()
                .ready
        );

        // It is taken when it is whole.
        server.engine.watch(Duration::from_millis(10)).unwrap();
        write(root, &backbone, "bad", 2);
        until(client, "bad", Some(2)).await;
        assert_eq!(
            health(&server, "frostline.head.bad").await,
            ServingStatus::Serving
        );
        assert!(failed(client).await.is_empty());
        server.stop().await;
    }
}

/// What the admin port's probe says, and whether a scrape says that requests are taken.
async fn ready(admin: &Admin, address: std::net::SocketAddr) -> ((u16, String), bool) {
    let scraped = admin.metrics().unwrap().contains("\nfrostline_ready 1");
    (http(address, "GET", "/readyz", "").await, scraped)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_ready_once_the_heads_that_must_serve_do() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let backbone = repository(root, truncated);
    let repository = Repository::open_on(root, OnBadHead::ServeOthers).unwrap();
    let config = EngineConfig {
        on_bad_head: OnBadHead::ServeOthers,
        required_heads: vec!["good".to_owned(), "bad".to_owned()],
        ..one_lane()
    };
    let (life, metrics) = (Life::default(), Arc::clone(&config.metrics));
    let admin = Admin::new(
        life.clone(),
        metrics,
        LogFilter::default(),
        AdminAccess::default(),
    );
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(admin.clone().serve(listener));
    let server = ServerConfig {
        life,
        ..ServerConfig::default()
    };
    let server = Running::start_from(&repository, config, server).await;
    admin.attach(Arc::clone(&server.engine));
    let client = &mut server.client().await;
    assert_eq!(
        ask(client, "good", 10).await.unwrap(),
        1,
        "it answers all the same"
    );
    assert_eq!(health(&server, "").await, ServingStatus::NotServing);
    assert_eq!(
        health(&server, "frostline.v1.VisionService").await,
        ServingStatus::NotServing
    );
    assert_eq!(
        health(&server, "frostline.head.good").await,
        ServingStatus::Serving
    );
    let ((code, text), scraped) = ready(&admin, address).await;
    assert!(
        code == 503 && text.contains("bad") && !text.contains("good"),
        "{text}"
    );
    assert!(!scraped);
    let started = http(address, "GET", "/startedz", "").await;
    assert_eq!(started.0, 200, "a restart would bring no head");
    let mut oip = GrpcInferenceServiceClient::new(server.channel().await);
    assert!(
        !oip.server_ready(ServerReadyRequest {})
            .await
            .unwrap()
            .into_inner()
            .ready
    );

    server.engine.watch(Duration::from_millis(10)).unwrap();
    write(root, &backbone, "bad", 2);
    until(client, "bad", Some(2)).await;
    assert_eq!(health(&server, "").await, ServingStatus::Serving);
    let (answer, scraped) = ready(&admin, address).await;
    assert_eq!((answer, scraped), ((200, "ready".to_owned()), true));
    // One that does not load later leaves the one before, and that one serves.
    write(root, &backbone, "bad", 3);
    truncated(&root.join("heads/bad"));
    let told = async {
        while server.engine.fault("bad").is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, told).await.unwrap();
    let serving = failed(client).await[0].serving_version.clone();
    assert_eq!(serving.as_deref(), Some("2"));
    assert_eq!(health(&server, "").await, ServingStatus::Serving);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_goes_on_unless_bad_heads_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    repository(root, of_another_input);
    let path = root.to_str().unwrap();
    let mut process = Process::start(&["--repository", path]).await;
    let seen = process.take_seen();
    let line = seen.iter().find(|line| line["message"] == "does not load");
    let line = line.unwrap_or_else(|| panic!("{seen:?}"));
    assert_eq!(
        (line["head"].as_str(), line["level"].as_str()),
        (Some("bad"), Some("ERROR"))
    );
    let mut client = process.client(None).await;
    assert_eq!(ask(&mut client, "good", 10).await.unwrap(), 1);
    drop(client);
    process.stop().await;
    let frostline = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_frostline"));
        let ran = command.args(arguments).output().unwrap();
        let said = [ran.stdout, ran.stderr].concat();
        (
            ran.status.code(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    let refuse = "repository.on_bad_head=refuse";
    let serve = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--repository",
        path,
        "--set",
        refuse,
    ];
    for refused in [&serve[..], &["check", path]] {
        let (code, said) = frostline(refused);
        assert!(
            code == Some(4) && said.contains("heads/bad/head.onnx"),
            "{code:?}: {said}"
        );
    }
    let others = [
        "check",
        path,
        "--set",
        "repository.on_bad_head=serve-others",
    ];
    let (code, said) = frostline(&others);
    assert!(
        code == Some(0) && said.contains("1 heads") && said.contains("bad is left out"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_without_a_head_that_serves_is_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    repository(root, truncated);
    truncated(&root.join("heads/good"));
    let server = serve(root, &[]).await;
    assert_eq!(health(&server, "").await, ServingStatus::NotServing);
    server.stop().await;
    // One that has none yet is waiting for some.
    fs::remove_dir_all(root.join("heads")).unwrap();
    let server = serve(root, &[]).await;
    assert_eq!(health(&server, "").await, ServingStatus::Serving);
    server.stop().await;
}
