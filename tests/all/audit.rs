//! Who did what: refusals by reason and caller, and changes with who made them and what they made.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use frostline::{
    client::{Client, encoded},
    proto,
    server::{Grant, new_token},
};
use serde_json::Value;
use tonic::{Code, Request};

use crate::{
    common::graphs::TOUCHY,
    lifecycle::{until, write},
    observe::http,
    process::Process,
    support::png,
};

/// Longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A key file with these names; their tokens.
fn keys(file: &Path, entries: &[(&str, Grant)]) -> Vec<String> {
    let mut text = String::new();
    let mut tokens = Vec::new();
    for (name, grant) in entries {
        let (token, entry) = new_token(name, grant.clone()).unwrap();
        text += &format!("[[key]]\n{}", toml::to_string(&entry).unwrap());
        tokens.push(token);
    }
    fs::write(file, text).unwrap();
    tokens
}

fn only(heads: &[&str], methods: &[&str]) -> Grant {
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Grant {
        heads: Some(list(heads)),
        methods: Some(list(methods)),
        ..Grant::default()
    }
}

fn numbered<T>(message: T, number: &str) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("x-request-id", number.parse().unwrap());
    request
}

fn load(name: &str, number: &str) -> Request<proto::LoadHeadRequest> {
    let name = name.to_owned();
    numbered(proto::LoadHeadRequest { name }, number)
}

async fn detect(client: &mut Client, head: &str) -> Code {
    let request = proto::DetectRequest {
        image: Some(encoded(png(32, 32, 0))),
        head: head.to_owned(),
        ..Default::default()
    };
    let answer = client.vision.detect(request).await;
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_is_on_record_by_reason_and_caller() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let tokens = keys(
        &file,
        &[
            ("scenes", only(&["scene"], &["VisionService/*"])),
            (
                "slow",
                Grant {
                    rate: Some(0.001),
                    burst: Some(1),
                    ..Grant::default()
                },
            ),
        ],
    );
    let setting = format!("auth.keys={}", file.display());
    let mut process = Process::start(&["--set", &setting]).await;
    let mut nobody = process.client(None).await;
    let mut scenes = process.client(Some(tokens[0].clone())).await;
    let mut slow = process.client(Some(tokens[1].clone())).await;
    assert_eq!(detect(&mut slow, "objects").await, Code::Ok);
    for _ in 0..40 {
        assert_eq!(detect(&mut nobody, "objects").await, Code::Unauthenticated);
        // The method it may call, the head it may not use.
        assert_eq!(detect(&mut scenes, "objects").await, Code::PermissionDenied);
        assert_eq!(detect(&mut slow, "objects").await, Code::ResourceExhausted);
    }
    for number in ["change-1", "change-2", "change-3"] {
        let status = scenes
            .model
            .load_head(load("scene", number))
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
    }
    let expected = BTreeMap::from([
        (("PERMISSION_DENIED".to_owned(), "scenes".to_owned()), 40),
        (("RESOURCE_EXHAUSTED".to_owned(), "slow".to_owned()), 40),
        (("UNAUTHENTICATED".to_owned(), "127.0.0.1".to_owned()), 40),
    ]);
    let mut lines = Vec::new();
    let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let all = async {
        // What a line stands for, by reason and caller; it says so when its second is over, whether or not more comes.
        let told = |lines: &[Value]| {
            let mut told = BTreeMap::new();
            for line in lines
                .iter()
                .filter(|line| line["target"] != "frostline::audit")
            {
                let (caller, count) = match line["message"].as_str() {
                    Some("refused a call") if text(line, "identity").is_empty() => {
                        (text(line, "from"), 1)
                    }
                    Some("refused a call") => (text(line, "identity"), 1),
                    Some("refused further calls") => {
                        (text(line, "caller"), line["left_out"].as_u64().unwrap())
                    }
                    _ => continue,
                };
                *told.entry((text(line, "reason"), caller)).or_insert(0) += count;
            }
            told
        };
        while told(&lines) != expected {
            lines.push(process.says("refused further calls").await);
            lines.extend(process.take_seen());
        }
    };
    tokio::time::timeout(LIMIT, all)
        .await
        .expect("some refusals are on no record");
    let first = lines
        .iter()
        .find(|line| line["message"] == "refused a call" && line["identity"] == "scenes");
    let first = first.unwrap();
    assert_eq!(first["method"], "frostline.v1.VisionService/Detect");
    assert!(
        text(first, "error").contains("may not use a head"),
        "{first}"
    );
    assert!(!text(first, "request_id").is_empty(), "{first}");
    assert!(
        lines
            .iter()
            .filter(|line| line["message"] == "refused a call")
            .count()
            < 60,
        "{lines:?}"
    );
    // Who wanted to change something is told each time.
    let changes = lines
        .iter()
        .filter(|line| line["target"] == "frostline::audit");
    let numbers: Vec<_> = changes.map(|line| text(line, "request_id")).collect();
    assert_eq!(numbers, ["change-1", "change-2", "change-3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_on_record_in_a_file_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("models");
    fs::create_dir(&root).unwrap();
    let backbone = TOUCHY.write(&root);
    write(&root, &backbone, "mean", 1);
    write(&root, &backbone, "other", 1);
    let (file, audit) = (
        folder.path().join("keys.toml"),
        folder.path().join("audit.jsonl"),
    );
    let tokens = keys(&file, &[("ops", only(&["*"], &["*"]))]);
    let settings = [
        format!("auth.keys={}", file.display()),
        format!("telemetry.audit={}", audit.display()),
        format!("repository.path={}", root.display()),
        "repository.watch_seconds=1".to_owned(),
        // No filter leaves it out.
        "telemetry.log=off,frostline=info".to_owned(),
    ];
    let settings: Vec<_> = settings
        .iter()
        .flat_map(|setting| ["--set", setting])
        .collect();
    let mut process = Process::start(&settings).await;
    let mut ops = process.client(Some(tokens[0].clone())).await;
    let fingerprint = |name: &str| {
        let manifest = fs::read_to_string(root.join("heads").join(name).join("head.toml")).unwrap();
        let table: toml::Table = manifest.parse().unwrap();
        table["sha256"].as_str().unwrap().to_owned()
    };
    let first = fingerprint("mean");
    write(&root, &backbone, "mean", 2);
    let second = fingerprint("mean");
    // The folder is followed: this one is its own.
    until(&mut ops, "mean", Some(2)).await;
    ops.model.load_head(load("mean", "change-1")).await.unwrap();
    let missing = ops
        .model
        .load_head(load("nobody", "change-2"))
        .await
        .unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let name = "other".to_owned();
    let unload = numbered(proto::UnloadHeadRequest { name }, "change-3");
    ops.model.unload_head(unload).await.unwrap();
    assert_eq!(http(process.admin, "PUT", "/log", "warn").await.0, 200);
    // A revoked key.
    keys(&file, &[("others", Grant::default())]);
    let revoked = async {
        while detect(&mut ops, "mean").await != Code::Unauthenticated {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, revoked).await.unwrap();
    drop(ops);
    let mut log = process.take_seen();
    log.extend(process.stop().await);
    assert!(
        log.iter().all(|line| line["target"] != "frostline::audit"),
        "{log:?}"
    );

    let text = fs::read_to_string(&audit).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let find = |key: &str, value: &str| {
        let found = lines.iter().find(|line| line[key] == value);
        found.unwrap_or_else(|| panic!("no {key} {value} in {text}"))
    };
    let has = |line: &Value, fields: &[(&str, &str)]| {
        for (key, value) in fields {
            assert_eq!(line[*key], *value, "{key} of {line}");
        }
    };
    let followed = find("by", "repository");
    has(
        followed,
        &[
            ("action", "load"),
            ("head", "mean"),
            ("old", &first),
            ("new", &second),
            ("outcome", "done"),
        ],
    );
    let by_call = find("request_id", "change-1");
    has(
        by_call,
        &[
            ("action", "load"),
            ("head", "mean"),
            ("identity", "ops"),
            ("old", &second),
            ("new", &second),
        ],
    );
    has(by_call, &[("new_version", "2"), ("outcome", "done")]);
    assert!(
        by_call["from"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{by_call}"
    );
    let failed = find("request_id", "change-2");
    has(
        failed,
        &[
            ("action", "load"),
            ("head", "nobody"),
            ("outcome", "failed"),
        ],
    );
    assert!(
        failed["error"].as_str().unwrap().contains("no such head"),
        "{failed}"
    );
    let unloaded = find("request_id", "change-3");
    has(
        unloaded,
        &[("action", "unload"), ("head", "other"), ("outcome", "done")],
    );
    assert!(
        unloaded["old"].is_string() && unloaded["new"].is_null(),
        "{unloaded}"
    );
    has(
        find("action", "log"),
        &[
            ("filter", "warn"),
            ("old", "off,frostline=info"),
            ("outcome", "done"),
        ],
    );
    let reload = find("action", "reload");
    has(reload, &[("what", "keys"), ("outcome", "done")]);
    assert_ne!(reload["old"], reload["new"]);
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(&audit).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_file_of_the_audit_that_cannot_be_written_starts_no_server() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_frostline"))
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--set",
            "telemetry.audit=/nowhere/audit",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("telemetry.audit") && said.contains("/nowhere/audit"),
        "{said}"
    );
    assert!(!output.status.success());
}
