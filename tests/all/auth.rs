//! Keys and JSON Web Tokens: who may call what, how often, and what identities do not share.

use std::{fs, process::Command, time::Duration};

use frostline::{
    client::{Client, Credentials, encoded},
    engine::EngineConfig,
    metrics::Sample,
    proto,
    server::{AuthConfig, Grant, ServerConfig, new_token},
};
use jsonwebtoken::{
    Algorithm, EncodingKey, Header, encode,
    jwk::{Jwk, JwkSet},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, Status, transport::Channel};
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

async fn with_auth(engine: EngineConfig, auth: AuthConfig) -> Running {
    let config = ServerConfig {
        auth: Some(auth),
        ..ServerConfig::default()
    };
    Running::start_with(engine, config).await
}

async fn bearer(server: &Running, token: &str) -> Client {
    let credentials = Credentials {
        token: Some(token.to_owned()),
        ..Credentials::default()
    };
    server.client_with(&credentials).await.unwrap()
}

fn kind(status: &Status) -> (Code, String) {
    (status.code(), reason(status))
}

fn unauthenticated() -> (Code, String) {
    (Code::Unauthenticated, "UNAUTHENTICATED".to_owned())
}

fn denied() -> (Code, String) {
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
        .list_heads(proto::ListHeadsRequest {})
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
        sources.push(answer.provenance.unwrap().features());
    }
    use proto::FeatureSource::{Cached, Computed};
    assert_eq!(sources, [Computed, Cached, Computed]);
    server.stop().await;
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
    assert_eq!(
        kind(&status),
        (Code::ResourceExhausted, "RATE_LIMITED".to_owned())
    );
    let details = status.get_error_details();
    let delay = details.retry_info().unwrap().retry_delay.unwrap();
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
    let channel = Channel::from_shared(format!("http://{}", server.address)).unwrap();
    let channel = channel.connect().await.unwrap();
    let watched = HealthClient::new(channel).watch(request).await;
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

// === JSON Web Tokens ===

struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    id: &'static str,
}

impl Signer {
    fn es256(id: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate().unwrap();
        Self {
            algorithm: Algorithm::ES256,
            key: EncodingKey::from_ec_der(&pair.serialize_der()),
            id,
        }
    }

    fn rs256(id: &'static str) -> Self {
        let (kind, size) = (&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048);
        let pair = rcgen::KeyPair::generate_rsa_for(kind, size).unwrap();
        Self {
            algorithm: Algorithm::RS256,
            // PKCS #1 lies in PKCS #8 behind 26 bytes, for 2048 bits.
            key: EncodingKey::from_rsa_der(&pair.serialize_der()[26..]),
            id,
        }
    }

    fn eddsa(id: &'static str) -> Self {
        let mut der = hex::decode("302e020100300506032b657004220420").unwrap();
        der.extend([7; 32]);
        Self {
            algorithm: Algorithm::EdDSA,
            key: EncodingKey::from_ed_der(&der),
            id,
        }
    }

    fn jwk(&self) -> Jwk {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.id.to_owned());
        jwk
    }

    fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.to_owned());
        encode(&header, claims, &self.key).unwrap()
    }
}

fn now() -> i64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    since.as_secs() as i64
}

/// Claims that hold, changed by `changes`; a null takes a claim away.
fn claims(changes: &[(&str, Value)]) -> Value {
    let mut claims = json!({
        "iss": "https://issuer.example", "aud": "frostline", "sub": "alice", "exp": now() + 600,
    });
    let object = claims.as_object_mut().unwrap();
    for (name, value) in changes {
        match value {
            Value::Null => drop(object.remove(*name)),
            value => drop(object.insert((*name).to_owned(), value.clone())),
        }
    }
    claims
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_token_holds_for_its_time_its_audience_and_its_claims() {
    let signers = [
        Signer::es256("ec"),
        Signer::rs256("rsa"),
        Signer::eddsa("ed"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jwks.json");
    let keys = signers.iter().map(Signer::jwk).collect();
    fs::write(&file, serde_json::to_string(&JwkSet { keys }).unwrap()).unwrap();
    let auth = AuthConfig {
        jwks: Some(file),
        issuer: "https://issuer.example".to_owned(),
        audience: "frostline".to_owned(),
        ..AuthConfig::default()
    };
    let server = with_auth(one_lane(), auth).await;
    let image = || png(32, 32, 0);
    for signer in &signers {
        let mut alice = bearer(&server, &signer.sign(&claims(&[]))).await;
        alice
            .detect(image())
            .await
            .unwrap_or_else(|status| panic!("{}: {status:?}", signer.id));
    }

    let ec = &signers[0];
    let good = ec.sign(&claims(&[]));
    // One token's claims under another's signature.
    let (signed, _) = good.rsplit_once('.').unwrap();
    let mallory = ec.sign(&claims(&[("sub", "mallory".into())]));
    let (_, signature) = mallory.rsplit_once('.').unwrap();
    let forged = format!("{signed}.{signature}");
    // The public key as a shared secret, and no signature at all.
    let public = serde_json::to_vec(&ec.jwk()).unwrap();
    let mut confused = Header::new(Algorithm::HS256);
    confused.kid = Some("ec".to_owned());
    let confused = encode(&confused, &claims(&[]), &EncodingKey::from_secret(&public)).unwrap();
    let body = good.split('.').nth(1).unwrap();
    // {"alg":"none","typ":"JWT"}
    let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{body}.");
    let cases = [
        (
            "expired",
            ec.sign(&claims(&[("exp", (now() - 3600).into())])),
            "expired",
        ),
        (
            "not yet",
            ec.sign(&claims(&[("nbf", (now() + 3600).into())])),
            "not hold yet",
        ),
        (
            "for others",
            ec.sign(&claims(&[("aud", "elsewhere".into())])),
            "audience",
        ),
        (
            "by others",
            ec.sign(&claims(&[("iss", "https://evil.example".into())])),
            "issuer",
        ),
        (
            "for ever",
            ec.sign(&claims(&[("exp", Value::Null)])),
            "lacks",
        ),
        (
            "for all",
            ec.sign(&claims(&[("aud", Value::Null)])),
            "lacks",
        ),
        ("nobody's", ec.sign(&claims(&[("sub", Value::Null)])), ""),
        (
            "unknown key",
            Signer::es256("other").sign(&claims(&[])),
            "no known key",
        ),
        (
            "same id",
            Signer::es256("ec").sign(&claims(&[])),
            "no known key",
        ),
        ("forged", forged, "no known key"),
        ("confused", confused, "no known key"),
        ("unsigned", unsigned, "not well formed"),
        ("dots", "..".to_owned(), "not well formed"),
    ];
    for (name, token, part) in cases {
        let status = bearer(&server, &token)
            .await
            .detect(image())
            .await
            .unwrap_err();
        assert_eq!(kind(&status), unauthenticated(), "{name}: {status:?}");
        assert!(status.message().contains(part), "{name}: {status:?}");
    }

    let narrow = claims(&[("frostline_heads", json!(["scene"]))]);
    let mut narrow = bearer(&server, &ec.sign(&narrow)).await;
    narrow.segment(image()).await.unwrap();
    let status = narrow
        .analyze_image(image(), &["objects"])
        .await
        .unwrap_err();
    assert_eq!(kind(&status), denied());
    assert!(status.message().contains("jwt:alice"), "{status:?}");
    let words = claims(&[(
        "frostline_methods",
        "Health/Check VisionService/Segment".into(),
    )]);
    let mut words = bearer(&server, &ec.sign(&words)).await;
    words.segment(image()).await.unwrap();
    let status = words.detect(image()).await.unwrap_err();
    assert_eq!(kind(&status), denied());
    drop((narrow, words));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_set_is_taken_over_while_serving() {
    let (old, new) = (Signer::es256("old"), Signer::es256("new"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jwks.json");
    let set = |signers: &[&Signer]| {
        let keys = signers.iter().map(|signer| signer.jwk()).collect();
        serde_json::to_string(&JwkSet { keys }).unwrap()
    };
    fs::write(&file, set(&[&old])).unwrap();
    let auth = AuthConfig {
        jwks: Some(file.clone()),
        issuer: "https://issuer.example".to_owned(),
        audience: "frostline".to_owned(),
        ..AuthConfig::default()
    };
    let server = with_auth(one_lane(), auth).await;
    let mut before = bearer(&server, &old.sign(&claims(&[]))).await;
    let mut after = bearer(&server, &new.sign(&claims(&[]))).await;
    before.detect(png(32, 32, 0)).await.unwrap();
    let early = after.detect(png(32, 32, 0)).await.unwrap_err();
    assert_eq!(kind(&early), unauthenticated());

    // What cannot be read changes nothing; then both keys, as an issuer that rotates shows them; then the new one alone.
    fs::write(&file, "{").unwrap();
    before.detect(png(32, 32, 0)).await.unwrap();
    let changed = async {
        fs::write(&file, set(&[&old, &new])).unwrap();
        while after.serving("frostline.head.scene").await.is_err() {
            tokio::task::yield_now().await;
        }
        before.detect(png(32, 32, 0)).await.unwrap();
        fs::write(&file, set(&[&new])).unwrap();
        while before.serving("frostline.head.scene").await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), changed)
        .await
        .expect("the new key set was not taken over");
    let late = before.detect(png(32, 32, 0)).await.unwrap_err();
    assert_eq!(kind(&late), unauthenticated());
    after.detect(png(32, 32, 0)).await.unwrap();
    drop((before, after));
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
