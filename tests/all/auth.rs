//! Keys: who may call what, how often, and what identities do not share.

use std::{fs, process::Command, time::Duration};

use frostline::{
    client::{Client, Credentials, encoded},
    engine::EngineConfig,
    metrics::Sample,
    proto,
    server::{AuthConfig, Grant, ServerConfig, new_token},
};
use tempfile::TempDir;
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;

use crate::support::{Running, one_lane, png, reason};

/// A server that knows the keys of `entries`: names and what they may do.
async fn with_keys(
    engine: EngineConfig,
    entries: Vec<(&str, Grant)>,
) -> (Running, Vec<String>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let mut text = String::new();
    let mut tokens = Vec::new();
    for (name, grant) in entries {
        let (token, entry) = new_token(name, grant).unwrap();
        text += &format!("[[key]]\n{}", toml::to_string(&entry).unwrap());
        tokens.push(token);
    }
    fs::write(&file, text).unwrap();
    let auth = AuthConfig {
        keys: Some(file),
        ..AuthConfig::default()
    };
    (with_auth(engine, auth).await, tokens, folder)
}

pub(crate) async fn with_auth(engine: EngineConfig, auth: AuthConfig) -> Running {
    let config = ServerConfig {
        auth: Some(auth),
        ..ServerConfig::default()
    };
    Running::start_with(engine, config).await
}

pub(crate) async fn bearer(server: &Running, token: &str) -> Client {
    let credentials = Credentials {
        token: Some(token.to_owned()),
        ..Credentials::default()
    };
    server.client_with(&credentials).await.unwrap()
}

pub(crate) fn kind(status: &Status) -> (Code, String) {
    (status.code(), reason(status))
}

pub(crate) fn unauthenticated() -> (Code, String) {
    (Code::Unauthenticated, "UNAUTHENTICATED".to_owned())
}

pub(crate) fn denied() -> (Code, String) {
    (Code::PermissionDenied, "PERMISSION_DENIED".to_owned())
}

fn only(heads: &[&str]) -> Grant {
    Grant {
        heads: Some(heads.iter().map(|head| (*head).to_owned()).collect()),
        ..Grant::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_opens_what_it_was_made_for_and_nothing_else() {
    let entries = vec![("scenes", only(&["scene"])), ("all", Grant::default())];
    let (server, tokens, _folder) = with_keys(one_lane(), entries).await;
    let image = || png(32, 32, 0);

    let nobody = server.client().await.detect(image()).await.unwrap_err();
    assert_eq!(kind(&nobody), unauthenticated());
    for wrong in ["frl_0000", "", "a b", &tokens[0][1..]] {
        let status = bearer(&server, wrong)
            .await
            .detect(image())
            .await
            .unwrap_err();
        assert_eq!(kind(&status), unauthenticated(), "{wrong:?}");
    }

    let mut scenes = bearer(&server, &tokens[0]).await;
    scenes.segment(image()).await.unwrap();
    let another = |head: &str| proto::DetectRequest {
        image: Some(encoded(image())),
        head: head.to_owned(),
        ..Default::default()
    };
    // One that exists and one that does not: the answers do not tell which is which.
    for head in ["objects", "nobody"] {
        let status = scenes.vision.detect(another(head)).await.unwrap_err();
        assert_eq!(kind(&status), denied(), "{head}");
    }
    let status = scenes
        .analyze_image(image(), &["scene", "objects"])
        .await
        .unwrap_err();
    assert_eq!(kind(&status), denied());
    let fitting = scenes.analyze_image(image(), &[]).await.unwrap();
    let heads: Vec<_> = fitting
        .results
        .iter()
        .map(|result| result.head.as_str())
        .collect();
    assert_eq!(
        heads,
        ["scene"],
        "no name means all that the caller may use"
    );
    let listed = scenes
        .model
        .list_heads(proto::ListHeadsRequest::default())
        .await
        .unwrap();
    let listed: Vec<_> = listed
        .into_inner()
        .heads
        .into_iter()
        .map(|h| h.name)
        .collect();
    assert_eq!(listed, ["scene"]);
    let name = || "objects".to_owned();
    let status = scenes
        .model
        .get_head(proto::GetHeadRequest { name: name() })
        .await
        .unwrap_err();
    assert_eq!(kind(&status), denied());
    assert!(scenes.serving("frostline.head.scene").await.unwrap());
    let hidden = scenes.serving("frostline.head.objects").await.unwrap_err();
    assert_eq!(hidden.code(), Code::NotFound);

    // Changes need to be granted by name, even where every head is.
    let mut all = bearer(&server, &tokens[1]).await;
    all.detect(image()).await.unwrap();
    let status = all
        .model
        .unload_head(proto::UnloadHeadRequest { name: name() })
        .await
        .unwrap_err();
    assert_eq!(kind(&status), denied());
    assert!(server.engine.head("objects").is_some());

    // Health is open, but tells nobody about heads.
    let mut anybody = server.client().await;
    assert!(anybody.serving("").await.unwrap());
    let hidden = anybody.serving("frostline.head.scene").await.unwrap_err();
    assert_eq!(hidden.code(), Code::NotFound);
    drop((scenes, all, anybody));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_to_change_heads_is_for_its_heads_alone() {
    let grant = Grant {
        methods: Some(vec!["ModelService/*".to_owned()]),
        ..only(&["scene"])
    };
    let (server, tokens, _folder) = with_keys(one_lane(), vec![("ops", grant)]).await;
    let mut ops = bearer(&server, &tokens[0]).await;
    let load = |name: &str| proto::LoadHeadRequest {
        name: name.to_owned(),
    };
    ops.model.load_head(load("scene")).await.unwrap();
    let status = ops.model.load_head(load("objects")).await.unwrap_err();
    assert_eq!(kind(&status), denied());
    let status = ops.segment(png(32, 32, 0)).await.unwrap_err();
    assert_eq!(kind(&status), denied(), "it may not call VisionService");
    drop(ops);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_taken_from_the_file_stops_to_hold() {
    let entries = vec![("a", Grant::default()), ("b", Grant::default())];
    let (server, tokens, folder) = with_keys(one_lane(), entries).await;
    let mut gone = bearer(&server, &tokens[0]).await;
    gone.detect(png(32, 32, 0)).await.unwrap();
    let file = folder.path().join("keys.toml");
    let text = fs::read_to_string(&file).unwrap();
    let second = text.rfind("[[key]]").unwrap();
    // What cannot be read changes nothing.
    fs::write(&file, "[[key]]\nname = 1\n").unwrap();
    gone.detect(png(32, 32, 0)).await.unwrap();
    fs::write(&file, &text[second..]).unwrap();
    let revoked = async {
        while gone.serving("frostline.head.scene").await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), revoked)
        .await
        .expect("the key still holds");
    let status = gone.detect(png(32, 32, 0)).await.unwrap_err();
    assert_eq!(kind(&status), unauthenticated());
    let mut stays = bearer(&server, &tokens[1]).await;
    stays.detect(png(32, 32, 0)).await.unwrap();
    drop((gone, stays));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn identities_do_not_share_what_was_computed_for_one_of_them() {
    let entries = vec![("a", Grant::default()), ("b", Grant::default())];
    let engine = EngineConfig {
        cache_bytes: 64 << 20,
        ..one_lane()
    };
    let (server, tokens, _folder) = with_keys(engine, entries).await;
    let mut sources = Vec::new();
    for token in [&tokens[0], &tokens[0], &tokens[1]] {
        let mut client = bearer(&server, token).await;
        let answer = client.detect(png(40, 40, 9)).await.unwrap();
        sources.push(answer.provenance.unwrap().feature_source());
    }
    use proto::FeatureSource::{Cached, Computed};
    assert_eq!(sources, [Computed, Cached, Computed]);
    server.stop().await;
}

/// The time after which a call that was over its caller's quota may be made.
fn wait_of(status: &Status) -> Duration {
    assert_eq!(
        kind(status),
        (Code::ResourceExhausted, "RATE_LIMITED".to_owned())
    );
    let details = status.get_error_details();
    details.retry_info().unwrap().retry_delay.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_identity_has_its_own_rate() {
    let slow = Grant {
        rate: Some(0.01),
        burst: Some(2),
        ..Grant::default()
    };
    let entries = vec![("slow", slow), ("free", Grant::default())];
    let (server, tokens, _folder) = with_keys(one_lane(), entries).await;
    let mut slow = bearer(&server, &tokens[0]).await;
    slow.detect(png(32, 32, 0)).await.unwrap();
    slow.detect(png(32, 32, 0)).await.unwrap();
    let status = slow.detect(png(32, 32, 0)).await.unwrap_err();
    let delay = wait_of(&status);
    assert!(
        delay > Duration::from_secs(50) && delay <= Duration::from_secs(100),
        "{delay:?}"
    );
    let mut free = bearer(&server, &tokens[1]).await;
    for _ in 0..5 {
        free.detect(png(32, 32, 0)).await.unwrap();
    }
    assert_eq!(refused(&server, "rate"), Some(1));
    drop((slow, free));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_identity_pays_for_its_pixels() {
    let camera = Grant {
        pixels: Some(1000.0),
        ..Grant::default()
    };
    let entries = vec![("camera", camera), ("free", Grant::default())];
    let (server, tokens, _folder) = with_keys(one_lane(), entries).await;
    let mut camera = bearer(&server, &tokens[0]).await;
    // A second's worth and more: 192,000 pixels, and what a PNG costs beyond a JPEG.
    camera.detect(png(480, 400, 0)).await.unwrap();
    let status = camera.detect(png(8, 8, 0)).await.unwrap_err();
    let delay = wait_of(&status);
    assert!(
        delay > Duration::from_secs(150) && delay < Duration::from_secs(500),
        "{delay:?}"
    );
    let mut free = bearer(&server, &tokens[1]).await;
    free.detect(png(480, 400, 0)).await.unwrap();
    free.detect(png(480, 400, 1)).await.unwrap();
    assert_eq!(refused(&server, "pixels"), Some(1));
    drop((camera, free));
    server.settled().await;
    assert_eq!(server.engine.load().result_bytes, 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn features_are_for_those_who_may_use_the_backbone() {
    let heads = only(&["scene"]);
    let backbone = only(&["scene", "swin*"]);
    let all = Grant::default();
    let entries = vec![("heads", heads), ("backbone", backbone), ("all", all)];
    let (server, tokens, _folder) = with_keys(one_lane(), entries).await;
    let name = server.engine.backbone().name.clone();
    assert!(name.starts_with("swin"), "{name}");
    let extract = || proto::ExtractFeaturesRequest {
        image: Some(encoded(png(32, 32, 0))),
        ..Default::default()
    };
    let mut heads = bearer(&server, &tokens[0]).await;
    heads.segment(png(32, 32, 0)).await.unwrap();
    let status = heads.vision.extract_features(extract()).await.unwrap_err();
    assert_eq!(kind(&status), denied());
    for token in &tokens[1..] {
        let mut client = bearer(&server, token).await;
        client.vision.extract_features(extract()).await.unwrap();
    }
    drop(heads);
    server.stop().await;
}

/// How many calls the server says that it refused for `reason`.
fn refused(server: &Running, reason: &str) -> Option<u64> {
    let text = server.engine.config().metrics.render(Sample::default());
    let series = format!("frostline_refused_total{{reason=\"{reason}\"}} ");
    let text = text.unwrap();
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix(&series)?.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_identity_has_its_own_number_of_calls_at_once() {
    let one = Grant {
        concurrency: Some(1),
        ..Grant::default()
    };
    let entries = vec![("one", one), ("free", Grant::default())];
    let (server, tokens, _folder) = with_keys(one_lane(), entries).await;
    let mut one = bearer(&server, &tokens[0]).await;
    // A call that is surely under way: its first answer has come.
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    let value = format!("Bearer {}", tokens[0]).parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    let watched = HealthClient::new(server.channel().await)
        .watch(request)
        .await;
    let mut watched = watched.unwrap().into_inner();
    watched.message().await.unwrap().unwrap();
    let status = one.detect(png(32, 32, 0)).await.unwrap_err();
    let limited = (Code::ResourceExhausted, "RATE_LIMITED".to_owned());
    assert_eq!(kind(&status), limited);
    assert!(status.message().contains("under way"), "{status:?}");
    assert!(status.get_error_details().retry_info().is_some());
    bearer(&server, &tokens[1])
        .await
        .detect(png(32, 32, 0))
        .await
        .unwrap();
    assert_eq!(refused(&server, "concurrency"), Some(1));
    drop(watched);
    let free = async { while one.detect(png(32, 32, 0)).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(30), free)
        .await
        .expect("the place was not given back");
    drop(one);
    server.stop().await;
}

// === the command line ===

#[tokio::test(flavor = "multi_thread")]
async fn commands_make_tokens_and_bring_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_frostline"))
            .args(arguments)
            .output()
            .unwrap()
    };
    let path = file.to_str().unwrap();
    let made = run(&["token", "camera", "--file", path, "--heads", "scene"]);
    assert!(made.status.success(), "{made:?}");
    let again = run(&["token", "other", "--file", path]);
    assert!(again.status.success(), "{again:?}");
    assert!(!run(&["token", "a:b", "--file", path]).status.success());
    let token = folder.path().join("token");
    fs::write(&token, &made.stdout).unwrap();
    let auth = AuthConfig {
        keys: Some(file),
        ..AuthConfig::default()
    };
    let server = with_auth(one_lane(), auth).await;
    let address = format!("http://{}", server.address);
    let token = token.to_str().unwrap();
    let listed = run(&["heads", "--addr", &address, "--token", token]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains("scene") && !listed.contains("objects"),
        "{listed}"
    );
    let refused = run(&["heads", "--addr", &address]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("token"));
    // A token is not sent where others could read it.
    let readable = run(&["heads", "--addr", "http://192.0.2.1:1", "--token", token]);
    assert!(
        String::from_utf8_lossy(&readable.stderr).contains("readable"),
        "{readable:?}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_have_no_rate_and_what_there_is_not_is_told_to_those_let_in() {
    let slow = Grant {
        rate: Some(0.001),
        burst: Some(1),
        concurrency: Some(1),
        methods: Some(vec!["VisionService/*".to_owned()]),
        ..Grant::default()
    };
    let (server, tokens, _folder) = with_keys(one_lane(), vec![("slow", slow)]).await;
    let mut client = bearer(&server, &tokens[0]).await;
    client.detect(png(32, 32, 0)).await.unwrap();
    let status = client.detect(png(32, 32, 0)).await.unwrap_err();
    assert_eq!(
        kind(&status),
        (Code::ResourceExhausted, "RATE_LIMITED".to_owned())
    );
    // As gRPC's own retry policies read it.
    let wait: u64 = status
        .metadata()
        .get("grpc-retry-pushback-ms")
        .unwrap()
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let told = status
        .get_error_details()
        .retry_info()
        .unwrap()
        .retry_delay
        .unwrap();
    assert_eq!(u128::from(wait), told.as_millis());
    for _ in 0..20 {
        client.serving("").await.unwrap();
    }
    drop(client);
    server.stop().await;

    let only = Grant {
        methods: Some(vec!["VisionService/*".to_owned()]),
        ..Grant::default()
    };
    let (server, tokens, _folder) = with_keys(one_lane(), vec![("only", only)]).await;
    for (token, code) in [
        // Strangers are told nothing.
        (None, Code::Unauthenticated),
        (Some(&tokens[0]), Code::Unimplemented),
    ] {
        let mut raw = tonic::client::Grpc::new(server.channel().await);
        raw.ready().await.unwrap();
        let mut request = tonic::Request::new(proto::GetHeadRequest::default());
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        let codec =
            tonic_prost::ProstCodec::<proto::GetHeadRequest, proto::GetHeadResponse>::default();
        let path = "/frostline.v1.NoService/NoMethod".parse().unwrap();
        let status = raw.unary(request, path, codec).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
    }
    server.stop().await;
}
