//! Files that change while serving: what of them holds is taken, and what does not is told.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use frostline::{
    metrics::Sample,
    server::{AuthConfig, Grant, new_token},
};

use crate::{
    auth::{bearer, kind, unauthenticated, with_auth},
    process::Process,
    support::{Authority, Running, one_lane, png},
    tls::{install, trusting, with_tls},
};

/// Longest that a file may take to be taken over.
const LIMIT: Duration = Duration::from_secs(60);

/// The value of a series that is written exactly so, if there is one.
fn series(server: &Running, name: &str) -> Option<i64> {
    let metrics = &server.engine.config().metrics;
    let text = metrics.render(Sample::default()).unwrap();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Some(value?.parse().unwrap())
}

/// Waits until a series has this value.
async fn becomes(server: &Running, name: &str, wanted: i64) {
    let turn = async {
        while series(server, name) != Some(wanted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let done = tokio::time::timeout(LIMIT, turn).await;
    done.unwrap_or_else(|_| panic!("{name} stays {:?}", series(server, name)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_typo_beside_a_revoked_key_does_not_keep_it_alive() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let [(revoked, first), (stays, second)] = ["a", "b"].map(|name| {
        let (token, entry) = new_token(name, Grant::default()).unwrap();
        (
            token,
            format!("[[key]]\n{}", toml::to_string(&entry).unwrap()),
        )
    });
    fs::write(&file, format!("{first}{second}")).unwrap();
    let auth = AuthConfig {
        keys: Some(file.clone()),
        ..AuthConfig::default()
    };
    let server = with_auth(one_lane(), auth).await;
    let mut revoked = bearer(&server, &revoked).await;
    let mut stays = bearer(&server, &stays).await;
    let image = || png(32, 32, 0);
    revoked.detect(image()).await.unwrap();
    let current = "frostline_files_current{files=\"keys\"}";
    let failed = "frostline_reloads_total{files=\"keys\",result=\"failed\"}";
    let done = "frostline_reloads_total{files=\"keys\",result=\"done\"}";
    assert_eq!(series(&server, current), Some(1));
    assert_eq!(series(&server, failed), Some(0), "there before it happens");

    for typo in [
        "[[key]]\nname = \"c\nsha256 = \"\"\n",
        "[[key]]\nname = \"c\"\nsha256 = \"12\"\n",
    ] {
        fs::write(&file, format!("{first}{second}")).unwrap();
        becomes(&server, current, 1).await;
        revoked.detect(image()).await.unwrap();
        fs::write(&file, format!("{typo}{second}")).unwrap();
        becomes(&server, current, 0).await;
        let status = revoked.detect(image()).await.unwrap_err();
        assert_eq!(kind(&status), unauthenticated());
        stays.detect(image()).await.unwrap();
    }
    assert_eq!(series(&server, failed), Some(2));

    // Nothing of it holds: no revocation, but a mistake.
    fs::write(&file, "[[key]]\nname = \"b\"\n").unwrap();
    becomes(&server, failed, 3).await;
    stays.detect(image()).await.unwrap();
    // Away, and back as it was.
    fs::remove_file(&file).unwrap();
    becomes(&server, failed, 4).await;
    stays.detect(image()).await.unwrap();
    let before = series(&server, done).unwrap();
    fs::write(&file, &second).unwrap();
    becomes(&server, current, 1).await;
    assert_eq!(series(&server, done), Some(before + 1));
    drop((revoked, stays));
    server.stop().await;
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

const DAY: u64 = 86_400;

#[tokio::test(flavor = "multi_thread")]
async fn certificates_tell_until_when_they_hold_and_ended_ones_are_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, clients) = (Authority::new(), Authority::new());
    let config = with_tls(folder.path(), &authority, Some(&clients));
    let (from, until) = (now() - DAY, now() + 30 * DAY);
    install(folder.path(), authority.issue_for("localhost", from, until));
    let server = Running::start_with(one_lane(), config).await;
    // The server says so once it serves.
    let mut credentials = trusting(&authority);
    credentials.identity = Some(clients.issue("camera.example"));
    let mut client = server.client_with(&credentials).await.unwrap();
    client.detect(png(32, 32, 0)).await.unwrap();
    let time = |which: &str, usage: &str, name: &str| {
        let labels = format!("usage=\"{usage}\",name=\"{name}\"");
        series(
            &server,
            &format!("frostline_certificate_{which}_seconds{{{labels}}}"),
        )
    };
    assert_eq!(time("not_after", "server", "localhost"), Some(until as i64));
    assert_eq!(time("not_before", "server", "localhost"), Some(from as i64));
    let parsed = x509_parser::pem::parse_x509_pem(&clients.pem).unwrap().1;
    let ends = parsed
        .parse_x509()
        .unwrap()
        .validity()
        .not_after
        .timestamp();
    assert_eq!(
        time("not_after", "client_ca", "rcgen self signed cert"),
        Some(ends)
    );

    // One that has ended is not taken over, and the one before goes on.
    let current = "frostline_files_current{files=\"certificates\"}";
    install(
        folder.path(),
        authority.issue_for("localhost", from - 9 * DAY, from),
    );
    becomes(&server, current, 0).await;
    assert_eq!(time("not_after", "server", "localhost"), Some(until as i64));
    server.client_with(&credentials).await.unwrap();
    let later = until + DAY;
    install(folder.path(), authority.issue_for("localhost", from, later));
    becomes(&server, current, 1).await;
    assert_eq!(time("not_after", "server", "localhost"), Some(later as i64));
    drop(client);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ends_soon_is_warned_of_and_one_that_has_ended_starts_no_server() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let settings = |from: u64, until: u64| {
        let (cert, key) = install(folder.path(), authority.issue_for("localhost", from, until));
        let (cert, key) = (
            format!("tls.cert={}", cert.display()),
            format!("tls.key={}", key.display()),
        );
        ["--set".to_owned(), cert, "--set".to_owned(), key]
    };
    // Days that it has held and that are left, and whether there is something to say.
    for (held, left, soon) in [(80, 10, true), (1, 80, false), (10, 10, false)] {
        let settings = settings(now() - held * DAY, now() + left * DAY);
        let settings: Vec<_> = settings.iter().map(String::as_str).collect();
        let mut process = Process::start(&settings).await;
        let mut lines = process.take_seen();
        lines.extend(process.stop().await);
        let warned = lines
            .iter()
            .find(|line| line["message"] == "a certificate ends soon");
        assert_eq!(warned.is_some(), soon, "{held} and {left}: {lines:?}");
        if let Some(line) = warned {
            assert_eq!(
                (line["name"].as_str(), line["level"].as_str()),
                (Some("localhost"), Some("WARN"))
            );
            assert_eq!(line["left"], "9 days");
        }
    }
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_frostline"))
        .args(["serve", "--listen", "127.0.0.1:0"])
        .args(settings(now() - 9 * DAY, now() - DAY))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("cert.pem") && said.contains("ended 24 hours ago"),
        "{said}"
    );
}
