//! What a configuration names is tried before anything costs time: by `frostline config --check` and by a start.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Output},
};

use frostline::server::{Grant, new_token};
use serde_json::Value;

use crate::{repository, support::Authority, tls::install};

/// Everything that a server may name, all of it good.
fn settings(folder: &Path) -> Vec<(&'static str, String)> {
    let authority = Authority::new();
    let (cert, key) = install(folder, authority.issue("localhost"));
    let clients = folder.join("clients.pem");
    fs::write(&clients, &authority.pem).unwrap();
    let (_, entry) = new_token("a", Grant::default()).unwrap();
    let keys = folder.join("keys.toml");
    fs::write(
        &keys,
        format!("[[key]]\n{}", toml::to_string(&entry).unwrap()),
    )
    .unwrap();
    // The example key of RFC 7517, appendix A.1.
    let jwks = folder.join("jwks.json");
    let set = serde_json::json!({"keys": [{
        "kty": "EC", "crv": "P-256",
        "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
        "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
    }]});
    fs::write(&jwks, set.to_string()).unwrap();
    let models = folder.join("models");
    fs::create_dir(&models).unwrap();
    repository::copy(&models);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    vec![
        ("tls.cert", path(&cert)),
        ("tls.key", path(&key)),
        ("tls.client_ca", path(&clients)),
        ("auth.keys", path(&keys)),
        ("auth.jwks", path(&jwks)),
        ("auth.issuer", "https://issuer.example".to_owned()),
        ("auth.audience", "frostline".to_owned()),
        ("server.listen", "127.0.0.1:0".to_owned()),
        ("telemetry.admin", "127.0.0.1:0".to_owned()),
        ("telemetry.audit", path(&folder.join("audit"))),
        ("repository.path", path(&models)),
    ]
}

fn run(command: &[&str], settings: &[(&str, String)], more: &[&str]) -> Output {
    let settings = settings
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    let settings = settings.flat_map(|setting| ["--set".to_owned(), setting]);
    let mut frostline = Command::new(env!("CARGO_BIN_EXE_frostline"));
    frostline.args(command).args(settings).args(more);
    frostline.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What is done to good files, or which setting gets which value; and what is then said.
type Case<'a> = (&'a str, Box<dyn Fn(&Path) -> Option<String> + 'a>, &'a str);

#[test]
fn every_setting_that_cannot_be_used_is_named_before_a_model_is_loaded() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = busy.local_addr().unwrap().to_string();
    let write = |folder: &Path, file: &str, bytes: &[u8]| {
        fs::write(folder.join(file), bytes).unwrap();
        None
    };
    let gone = |_: &Path| Some("/nowhere/file".to_owned());
    let cases: [Case; 12] = [
        ("tls.cert", Box::new(gone), "/nowhere/file"),
        (
            "tls.cert",
            Box::new(|f| write(f, "cert.pem", b"nothing")),
            "has no certificate",
        ),
        (
            "tls.cert",
            Box::new(|f| {
                install(f, Authority::new().issue_for("localhost", 0, 86_400));
                None
            }),
            "ended",
        ),
        (
            "tls.key",
            Box::new(|f| write(f, "key.pem", &Authority::new().issue("localhost").1)),
            "is not the key of tls.cert",
        ),
        (
            "tls.client_ca",
            Box::new(|f| write(f, "clients.pem", b"nothing")),
            "has no certificate",
        ),
        (
            "auth.keys",
            Box::new(|f| write(f, "keys.toml", b"[[key]]\nname = \"b\"\n")),
            "key[0]: sha256",
        ),
        (
            "auth.jwks",
            Box::new(|f| write(f, "jwks.json", b"{}")),
            "not a JSON Web Key Set",
        ),
        (
            "server.listen",
            Box::new(|_| Some(busy.clone())),
            "cannot listen on",
        ),
        (
            "telemetry.admin",
            Box::new(|_| Some(busy.clone())),
            "cannot listen on",
        ),
        ("telemetry.audit", Box::new(gone), "cannot be written"),
        (
            "telemetry.log",
            Box::new(|_| Some("frostline=loud".to_owned())),
            "not a log filter",
        ),
        (
            "repository.path",
            Box::new(gone),
            "/nowhere/file/backbone.toml",
        ),
    ];
    for (setting, spoil, why) in cases {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings(folder.path());
        if let Some(value) = spoil(folder.path()) {
            settings.retain(|(name, _)| *name != setting);
            settings.push((setting, value));
        }
        let checked = run(&["config", "--check"], &settings, &[]);
        let text = said(&checked);
        assert_eq!(checked.status.code(), Some(2), "{setting}: {text}");
        assert!(
            text.contains(&format!("{setting}: ")) && text.contains(why),
            "{setting}: {text}"
        );
        if setting == "repository.path" {
            continue;
        }
        let served = run(&["serve"], &settings, &[]);
        let text = said(&served);
        assert_eq!(served.status.code(), Some(2), "{setting}: {text}");
        assert!(
            text.contains(&format!("{setting}: ")) && text.contains(why),
            "{setting}: {text}"
        );
        assert!(
            !text.contains("runs on"),
            "the library was loaded first: {text}"
        );
    }
}

#[test]
fn what_can_be_used_passes_and_several_mistakes_are_all_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path());
    let output = run(&["config", "--check"], &settings, &[]);
    assert!(output.status.success(), "{}", said(&output));
    // An entry that a running server would leave out is a mistake all the same.
    let keys = folder.path().join("keys.toml");
    let text = fs::read_to_string(&keys).unwrap();
    fs::write(&keys, format!("{text}[[key]]\nname = \"b\n")).unwrap();
    settings.retain(|(name, _)| *name != "telemetry.audit");
    settings.push(("telemetry.audit", "/nowhere/audit".to_owned()));
    let output = run(&["config", "--check"], &settings, &[]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("auth.keys: ") && text.contains("telemetry.audit: "),
        "{text}"
    );
}

#[test]
fn the_last_words_are_in_the_logs_format() {
    let json = ["--set", "telemetry.format=json"];
    let typo = [("server.listn", "1".to_owned())];
    let absent = [
        ("tls.cert", "/nowhere/a".to_owned()),
        ("tls.key", "/nowhere/b".to_owned()),
    ];
    let repository = [
        ("repository.path", "/nowhere".to_owned()),
        ("server.listen", "127.0.0.1:0".to_owned()),
    ];
    for (settings, code, named) in [
        (&typo[..], 2, "listn"),
        (&absent, 2, "tls.cert"),
        (&repository, 4, "/nowhere"),
    ] {
        let output = run(&["serve"], settings, &json);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let last = lines.last().unwrap();
        assert_eq!(
            (last["level"].as_str(), last["code"].as_i64()),
            (Some("ERROR"), Some(i64::from(code)))
        );
        assert!(last["error"].as_str().unwrap().contains(named), "{last}");
    }
}
