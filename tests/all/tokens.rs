//! JSON Web Tokens: whose hold, for how long, and for what.

use std::{fs, time::Duration};

use frostline::server::AuthConfig;
use jsonwebtoken::{
    Algorithm, EncodingKey, Header, encode,
    jwk::{Jwk, JwkSet},
};
use serde_json::{Value, json};

use crate::{
    auth::{bearer, denied, kind, unauthenticated, with_auth},
    process::Process,
    support::{one_lane, png},
};

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
        heads: Some(vec!["*".to_owned()]),
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
    // RFC 7797: signed as it is said, by a header that has to be understood.
    let unencoded = |critical: bool| {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some("ec".to_owned());
        match critical {
            true => header.crit = Some(vec!["exp".to_owned()]),
            false => header.extras.insert("b64", false),
        }
        encode(&header, &claims(&[]), &ec.key).unwrap()
    };
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
        (
            "by several",
            ec.sign(&claims(&[("iss", json!(["https://issuer.example"]))])),
            "not a string",
        ),
        ("critical", unencoded(true), "crit"),
        ("unencoded", unencoded(false), "b64"),
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
        heads: Some(vec!["*".to_owned()]),
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

#[tokio::test(flavor = "multi_thread")]
async fn claims_narrow_what_is_granted_and_never_widen_it() {
    let signer = Signer::es256("ec");
    let folder = tempfile::tempdir().unwrap();
    let (jwks, grants) = (
        folder.path().join("jwks.json"),
        folder.path().join("keys.toml"),
    );
    let keys = vec![signer.jwk()];
    fs::write(&jwks, serde_json::to_string(&JwkSet { keys }).unwrap()).unwrap();
    let granted = "[[grant]]\nidentity = \"jwt:alice\"\nheads = [\"scene\", \"motion\"]\n\
                   methods = [\"VisionService/*\"]\n";
    fs::write(&grants, granted).unwrap();
    let auth = AuthConfig {
        keys: Some(grants),
        jwks: Some(jwks),
        issuer: "https://issuer.example".to_owned(),
        audience: "frostline".to_owned(),
        heads: Some(vec!["*".to_owned()]),
        ..AuthConfig::default()
    };
    let server = with_auth(one_lane(), auth).await;
    let wide = claims(&[
        ("frostline_heads", json!(["*"])),
        ("frostline_methods", json!(["*"])),
    ]);
    let mut wide = bearer(&server, &signer.sign(&wide)).await;
    wide.segment(png(32, 32, 0)).await.unwrap();
    let other = wide.analyze_image(png(32, 32, 0), &["objects"]).await;
    assert_eq!(kind(&other.unwrap_err()), denied());
    let request = frostline::proto::UnloadHeadRequest {
        name: "scene".to_owned(),
    };
    let unloaded = wide.model.unload_head(request).await;
    assert_eq!(kind(&unloaded.unwrap_err()), denied());

    let narrow = claims(&[("frostline_heads", "scene objects".into())]);
    let mut narrow = bearer(&server, &signer.sign(&narrow)).await;
    narrow.segment(png(32, 32, 0)).await.unwrap();
    let other = narrow.analyze_image(png(32, 32, 0), &["objects"]).await;
    assert_eq!(kind(&other.unwrap_err()), denied());
    drop((wide, narrow));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_weak_key_is_left_out_and_alone_starts_no_server() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jwks.json");
    let good = Signer::es256("good");
    let weak = json!({"kty": "RSA", "n": "_".repeat(170) + "w", "e": "AQAB", "kid": "weak"});
    let set = json!({"keys": [serde_json::to_value(good.jwk()).unwrap(), weak]});
    fs::write(&file, set.to_string()).unwrap();
    let settings = [
        format!("auth.jwks={}", file.display()),
        "auth.issuer=https://issuer.example".to_owned(),
        "auth.audience=frostline".to_owned(),
        "auth.heads=[\"*\"]".to_owned(),
    ];
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    let settings: Vec<_> = settings.collect();
    let mut process = Process::start(&settings).await;
    let mut client = process.client(Some(good.sign(&claims(&[])))).await;
    client.detect(png(32, 32, 0)).await.unwrap();
    drop(client);
    let mut seen = process.take_seen();
    seen.extend(process.stop().await);
    let named = |line: &Value| {
        let entry = line["entry"].as_str();
        entry.is_some_and(|entry| entry.starts_with("keys[1]: n: has"))
    };
    assert!(seen.iter().any(named), "{seen:?}");

    fs::write(&file, json!({"keys": [weak]}).to_string()).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_frostline"))
        .args(["serve", "--listen", "127.0.0.1:0"])
        .args(&settings)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("keys[0]") && said.contains("n: has"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_without_a_grant_may_use_no_head_unless_the_setting_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (jwks, grants) = (
        folder.path().join("jwks.json"),
        folder.path().join("keys.toml"),
    );
    let signer = Signer::es256("ec");
    let keys = vec![signer.jwk()];
    fs::write(&jwks, serde_json::to_string(&JwkSet { keys }).unwrap()).unwrap();
    // One grant bounds heads, the other something else alone.
    let entries = "[[grant]]\nidentity = \"jwt:granted\"\nheads = [\"scene\"]\n\
                   [[grant]]\nidentity = \"jwt:counted\"\nconcurrency = 4\n";
    fs::write(&grants, entries).unwrap();
    for (heads, everybody) in [(None, false), (Some(vec!["*".to_owned()]), true)] {
        let auth = AuthConfig {
            keys: Some(grants.clone()),
            jwks: Some(jwks.clone()),
            issuer: "https://issuer.example".to_owned(),
            audience: "frostline".to_owned(),
            heads,
            ..AuthConfig::default()
        };
        let server = with_auth(one_lane(), auth).await;
        for subject in ["anybody", "counted", "granted"] {
            // A claim widens nothing.
            let claims = claims(&[("sub", subject.into()), ("frostline_heads", json!(["*"]))]);
            let mut client = bearer(&server, &signer.sign(&claims)).await;
            let scene = client.segment(png(32, 32, 0)).await;
            let may = everybody || subject == "granted";
            assert_eq!(scene.is_ok(), may, "{subject}: {scene:?}");
            let listed = client
                .model
                .list_heads(frostline::proto::ListHeadsRequest::default())
                .await;
            assert_eq!(
                listed.unwrap().into_inner().heads.is_empty(),
                !may,
                "{subject}"
            );
        }
        server.stop().await;
    }
}
