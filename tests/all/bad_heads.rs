//! One bad head stops nobody, and says what it is; heads come by link, by rename and in place.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use frostline::{
    client::Client,
    engine::{Engine, EngineConfig},
    metrics::Sample,
    proto::{
        self,
        inference::{
            ModelReadyRequest, RepositoryIndexRequest, ServerReadyRequest,
            grpc_inference_service_client::GrpcInferenceServiceClient,
        },
    },
    repository::{OnBadHead, Repository},
    server::{Admin, AdminAccess, Readiness, ServerConfig},
    telemetry::LogFilter,
};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    common::{
        graphs::TOUCHY,
        onnx::{FLOAT, Onnx},
    },
    lifecycle::{Site, ask, current_of, until, write},
    observe::http,
    process::Process,
    support::{Running, one_lane, reason},
};

/// Longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(60);

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

async fn serve(root: &Path, required: &[&str]) -> Running {
    let repository = Repository::open_on(root, OnBadHead::ServeOthers).unwrap();
    let config = EngineConfig {
        on_bad_head: OnBadHead::ServeOthers,
        required_heads: required.iter().map(|name| (*name).to_owned()).collect(),
        ..one_lane()
    };
    Running::start_of(&repository, config).await
}

async fn channel(server: &Running) -> Channel {
    let address = format!("http://{}", server.address);
    Channel::from_shared(address)
        .unwrap()
        .connect()
        .await
        .unwrap()
}

async fn health(server: &Running, service: &str) -> ServingStatus {
    let service = service.to_owned();
    let mut client = HealthClient::new(channel(server).await);
    let answer = client.check(HealthCheckRequest { service }).await;
    answer.unwrap().into_inner().status()
}

async fn failed(client: &mut Client) -> Vec<proto::FailedHead> {
    let answer = client.model.list_heads(proto::ListHeadsRequest {}).await;
    answer.unwrap().into_inner().failed
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_head_stops_nobody_and_says_why() {
    let ways: [(fn(&Path), &str); 4] = [
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
            (listed[0].name.as_str(), listed[0].serving_version.as_str()),
            ("bad", "")
        );
        assert!(listed[0].reason.contains(why), "{listed:?}");
        assert_eq!(current_of(&server, "bad"), Some(false));
        assert_eq!(current_of(&server, "good"), Some(true));

        let mut oip = GrpcInferenceServiceClient::new(channel(&server).await);
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
    let (readiness, metrics) = (Readiness::default(), Arc::clone(&config.metrics));
    let admin = Admin::new(
        readiness.clone(),
        metrics,
        LogFilter::default(),
        AdminAccess::default(),
    );
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(admin.clone().serve(listener));
    let server = ServerConfig {
        readiness,
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
    let mut oip = GrpcInferenceServiceClient::new(channel(&server).await);
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
    assert_eq!(failed(client).await[0].serving_version, "2");
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

// === how heads come ===

/// Lets `link` lead to `target` from one moment to the next.
fn flip(link: &Path, target: &str) {
    let new = link.with_file_name(format!(".new-{target}"));
    symlink(target, &new).unwrap();
    fs::rename(new, link).unwrap();
}

/// How often the head was loaded while serving.
fn loads(engine: &Engine, head: &str) -> String {
    let text = engine.config().metrics.render(Sample::default()).unwrap();
    let series = format!("frostline_head_loads_total{{head=\"{head}\",result=\"loaded\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    value
        .unwrap_or_else(|| panic!("no {series}in {text}"))
        .to_owned()
}

/// As git-sync leaves a repository: a link to a tree of its own for each commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_repository_behind_a_link_is_followed_when_the_link_flips() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("current");
    let tree = |name: &str, version| {
        let root = folder.path().join(name);
        fs::create_dir(&root).unwrap();
        let backbone = TOUCHY.write(&root);
        write(&root, &backbone, "mean", version);
        write(&root, &backbone, "same", 7);
        root
    };
    let first = tree("tree-1", 1);
    flip(&link, "tree-1");
    let server = serve(&link, &[]).await;
    let client = &mut server.client().await;
    server.engine.watch(Duration::from_millis(10)).unwrap();
    assert_eq!(ask(client, "mean", 10).await.unwrap(), 1);
    tree("tree-2", 2);
    flip(&link, "tree-2");
    fs::remove_dir_all(first).unwrap();
    until(client, "mean", Some(2)).await;
    assert_eq!(ask(client, "same", 10).await.unwrap(), 7);
    assert_eq!(loads(&server.engine, "same"), "0", "it is the same head");
    // By call as well.
    tree("tree-3", 3);
    flip(&link, "tree-3");
    until(client, "mean", Some(3)).await;

    // Where the link leads nowhere nothing was taken away.
    fs::remove_file(&link).unwrap();
    let request = proto::LoadHeadRequest {
        name: "mean".to_owned(),
    };
    client.model.load_head(request).await.unwrap_err();
    for _ in 0..100 {
        assert_eq!(ask(client, "mean", 10).await.unwrap(), 3);
    }
    flip(&link, "tree-2");
    until(client, "mean", Some(2)).await;
    server.stop().await;
}

/// As Kubernetes mounts a ConfigMap or a Secret: files that are links through `..data`.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_whose_files_are_links_is_followed() {
    let site = Site::new().await;
    let head = site.folder.path().join("heads/mounted");
    fs::create_dir(&head).unwrap();
    let version = |number: u32| {
        let made = tempfile::tempdir().unwrap();
        let backbone = TOUCHY.write(made.path());
        write(made.path(), &backbone, "mounted", number);
        let folder = format!("..{number}");
        fs::create_dir(head.join(&folder)).unwrap();
        for file in ["head.toml", "head.onnx"] {
            let from = made.path().join("heads/mounted").join(file);
            fs::copy(from, head.join(&folder).join(file)).unwrap();
        }
        flip(&head.join("..data"), &folder);
    };
    version(1);
    for file in ["head.toml", "head.onnx"] {
        symlink(format!("..data/{file}"), head.join(file)).unwrap();
    }
    let client = &mut site.server.client().await;
    site.server.engine.watch(Duration::from_millis(10)).unwrap();
    until(client, "mounted", Some(1)).await;
    version(2);
    fs::remove_dir_all(head.join("..1")).unwrap();
    until(client, "mounted", Some(2)).await;
    site.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_in_place_is_taken_when_it_is_whole() {
    let site = Site::new().await;
    let head = site.folder.path().join("heads/mean");
    let made = tempfile::tempdir().unwrap();
    let backbone = TOUCHY.write(made.path());
    let client = &mut site.server.client().await;
    site.server.engine.watch(Duration::from_millis(10)).unwrap();
    for (version, order) in [
        (2, ["head.toml", "head.onnx"]),
        (3, ["head.onnx", "head.toml"]),
    ] {
        write(made.path(), &backbone, "mean", version);
        for file in order {
            // Half of it is there until the server has looked at it.
            let whole = fs::read(made.path().join("heads/mean").join(file)).unwrap();
            fs::write(head.join(file), &whole[..whole.len() / 2]).unwrap();
            let looked = async {
                while site.server.engine.fault("mean").is_none() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(LIMIT, looked)
                .await
                .expect("half a file is a head");
            assert_eq!(ask(client, "mean", 10).await.unwrap(), version - 1);
            fs::write(head.join(file), whole).unwrap();
        }
        until(client, "mean", Some(version)).await;
    }
    site.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_was_put_aside_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let backbone = TOUCHY.write(root);
    write(root, &backbone, "mean", 1);
    let aside = |name: &str| {
        let (from, to) = (root.join("heads/mean"), root.join("heads").join(name));
        fs::create_dir(&to).unwrap();
        for file in ["head.toml", "head.onnx"] {
            fs::copy(from.join(file), to.join(file)).unwrap();
        }
    };
    aside("mean.old");
    let names = |repository: &Repository| -> Vec<String> {
        let heads = repository.heads.iter();
        heads.map(|head| head.manifest.name.clone()).collect()
    };
    assert_eq!(
        names(&Repository::open(root).unwrap()),
        ["mean"],
        "even where bad heads are refused"
    );
    let server = serve(root, &[]).await;
    let client = &mut server.client().await;
    server.engine.watch(Duration::from_millis(10)).unwrap();
    aside("mean.older");
    write(root, &backbone, "mean", 2);
    until(client, "mean", Some(2)).await;
    assert!(failed(client).await.is_empty());
    assert_eq!(server.engine.repository_heads().unwrap(), ["mean"]);
    for name in ["mean.old", "mean.older"] {
        assert_eq!(current_of(&server, name), None);
        let name = name.to_owned();
        let status = client
            .model
            .load_head(proto::LoadHeadRequest { name })
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
        assert!(status.message().contains("\"mean\""), "{status:?}");
    }
    // Of a head that serves another name is a mistake.
    let manifest: PathBuf = root.join("heads/mean/head.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(
        &manifest,
        text.replace("name = \"mean\"", "name = \"maen\""),
    )
    .unwrap();
    let told = async {
        while server.engine.fault("mean").is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, told).await.unwrap();
    assert_eq!(ask(client, "mean", 10).await.unwrap(), 2);
    server.stop().await;
}
