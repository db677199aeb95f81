//! TLS and certificates: who is let in, who that is, and certificates that change while serving.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use frostline::{
    client::Credentials,
    metrics::Sample,
    proto,
    server::{AuthConfig, CertificateName, ServerConfig, TlsConfig, TransportLimits},
};
use rcgen::SanType;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Code;

use crate::support::{Authority, Running, one_lane, png, reason};

/// Writes the server's certificate, as a file that is moved into place.
pub(crate) fn install(folder: &Path, (cert, key): (Vec<u8>, Vec<u8>)) -> (PathBuf, PathBuf) {
    let paths = (folder.join("cert.pem"), folder.join("key.pem"));
    for (path, bytes) in [(&paths.0, cert), (&paths.1, key)] {
        let beside = folder.join("new");
        fs::write(&beside, bytes).unwrap();
        fs::rename(&beside, path).unwrap();
    }
    paths
}

pub(crate) fn trusting(authority: &Authority) -> Credentials {
    Credentials {
        authorities: Some(authority.pem.clone()),
        ..Credentials::default()
    }
}

pub(crate) fn with_tls(
    folder: &Path,
    authority: &Authority,
    clients: Option<&Authority>,
) -> ServerConfig {
    let (cert, key) = install(folder, authority.issue("localhost"));
    let client_ca = clients.map(|authority| {
        let path = folder.join("clients.pem");
        fs::write(&path, &authority.pem).unwrap();
        path
    });
    ServerConfig {
        tls: Some(TlsConfig {
            cert,
            key,
            client_ca,
            client_optional: false,
        }),
        ..ServerConfig::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_taken_over_while_connections_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (Authority::new(), Authority::new());
    let config = with_tls(folder.path(), &first, None);
    let server = Running::start_with(one_lane(), config).await;
    let mut old = server.client_with(&trusting(&first)).await.unwrap();
    old.detect(png(32, 32, 0)).await.unwrap();
    let stranger = server.client_with(&trusting(&second)).await;
    assert!(
        stranger.is_err(),
        "another authority's client must not connect"
    );
    let mut plain = frostline::client::Client::connect(&format!("http://{}", server.address))
        .await
        .unwrap();
    assert!(plain.detect(png(32, 32, 0)).await.is_err());

    // A key that is not the certificate's is not taken over.
    fs::write(folder.path().join("key.pem"), second.issue("localhost").1).unwrap();
    old.detect(png(32, 32, 1)).await.unwrap();
    server.client_with(&trusting(&first)).await.unwrap();

    install(folder.path(), second.issue("localhost"));
    let renewed = async {
        loop {
            if let Ok(client) = server.client_with(&trusting(&second)).await {
                return client;
            }
            tokio::task::yield_now().await;
        }
    };
    let mut new = tokio::time::timeout(Duration::from_secs(30), renewed)
        .await
        .expect("the new certificate was not taken over");
    new.detect(png(32, 32, 2)).await.unwrap();
    old.detect(png(32, 32, 3)).await.unwrap();
    drop((old, new, plain));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_certificate_says_who_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (servers, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let grants = folder.path().join("keys.toml");
    let entry = "[[grant]]\nidentity = \"cert-dns:camera.example\"\nheads = [\"scene\"]\n";
    fs::write(&grants, entry).unwrap();
    let config = ServerConfig {
        auth: Some(AuthConfig {
            keys: Some(grants),
            certificates: true,
            heads: Some(vec!["*".to_owned()]),
            ..AuthConfig::default()
        }),
        ..with_tls(folder.path(), &servers, Some(&clients))
    };
    let server = Running::start_with(one_lane(), config).await;
    let with = |identity| Credentials {
        identity,
        ..trusting(&servers)
    };
    let image = || png(32, 32, 0);

    // With TLS 1.3 a client learns only at its first call that its certificate was refused.
    for identity in [None, Some(others.issue("camera.example"))] {
        let called = match server.client_with(&with(identity)).await {
            Ok(mut client) => client.segment(image()).await.is_ok(),
            Err(_) => false,
        };
        assert!(
            !called,
            "a client without a certificate that holds was let in"
        );
    }
    let known = with(Some(clients.issue("camera.example")));
    let mut camera = server.client_with(&known).await.unwrap();
    camera.segment(image()).await.unwrap();
    let request = proto::DetectRequest {
        image: Some(frostline::client::encoded(image())),
        head: "objects".to_owned(),
        ..Default::default()
    };
    let refused = camera.vision.detect(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(reason(&refused), "PERMISSION_DENIED");
    assert!(
        refused.message().contains("cert-dns:camera.example"),
        "{refused:?}"
    );
    let other = with(Some(clients.issue("other.example")));
    let mut other = server.client_with(&other).await.unwrap();
    other.detect(image()).await.unwrap();
    drop((camera, other));
    server.stop().await;
}

/// An authority that is bounded to one team's DNS names can still write any common name, and a URI's owner any other.
#[tokio::test(flavor = "multi_thread")]
async fn one_kind_of_name_does_not_pass_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let (servers, clients) = (Authority::new(), Authority::new());
    let grants = folder.path().join("keys.toml");
    let entries = "[[grant]]\nidentity = \"cert-uri:boss\"\nheads = [\"*\"]\n\
                   [[grant]]\nidentity = \"cert-cn:boss\"\nheads = [\"*\"]\n";
    fs::write(&grants, entries).unwrap();
    let with = |identity| Credentials {
        identity: Some(identity),
        ..trusting(&servers)
    };
    let server = |names: &[CertificateName]| ServerConfig {
        auth: Some(AuthConfig {
            keys: Some(grants.clone()),
            certificates: true,
            certificate_names: names.to_vec(),
            heads: Some(Vec::new()),
            ..AuthConfig::default()
        }),
        ..with_tls(folder.path(), &servers, Some(&clients))
    };
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let uri = |name: &str| SanType::URI(name.try_into().unwrap());
    // Names, and whom they make where URIs and DNS names count, and where the common name does as well.
    let cases = [
        (vec![], "boss", None, Some("cert-cn:boss")),
        (
            vec![dns("boss")],
            "",
            Some("cert-dns:boss"),
            Some("cert-dns:boss"),
        ),
        (
            vec![dns("team.example")],
            "boss",
            Some("cert-dns:team.example"),
            Some("cert-dns:team.example"),
        ),
        (
            vec![dns("team.example"), uri("boss")],
            "",
            Some("cert-uri:boss"),
            Some("cert-uri:boss"),
        ),
    ];
    let kinds = [
        CertificateName::Uri,
        CertificateName::Dns,
        CertificateName::Cn,
    ];
    for (count, column) in [(2, 0), (3, 1)] {
        let server = Running::start_with(one_lane(), server(&kinds[..count])).await;
        for (names, common, first, second) in cases.clone() {
            let expected = [first, second][column];
            let identity = clients.issue_with(names.clone(), common);
            let mut client = server.client_with(&with(identity)).await.unwrap();
            let called = client.analyze_image(png(32, 32, 0), &["objects"]).await;
            let what = format!("{names:?}, CN {common:?}: {called:?}");
            match expected {
                None => assert_eq!(called.unwrap_err().code(), Code::Unauthenticated, "{what}"),
                Some("cert-uri:boss" | "cert-cn:boss") => assert!(called.is_ok(), "{what}"),
                Some(name) => {
                    let refused = called.unwrap_err();
                    assert_eq!(refused.code(), Code::PermissionDenied, "{what}");
                    assert!(refused.message().contains(&format!("{name:?}")), "{what}");
                }
            }
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_has_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let transport = TransportLimits {
        handshake: Duration::from_millis(200),
        ..TransportLimits::default()
    };
    let secure = ServerConfig {
        transport: transport.clone(),
        ..with_tls(folder.path(), &authority, None)
    };
    let plain = ServerConfig {
        transport,
        ..ServerConfig::default()
    };
    for config in [secure, plain] {
        let server = Running::start_with(one_lane(), config).await;
        let mut silent = TcpStream::connect(server.address).await.unwrap();
        let mut bytes = Vec::new();
        let closed = silent.read_to_end(&mut bytes);
        // Closed or reset; what counts is that it does not stay.
        let _ = tokio::time::timeout(Duration::from_secs(20), closed)
            .await
            .expect("a silent connection stays open");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_and_how_they_end_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let transport = TransportLimits {
        handshake: Duration::from_millis(500),
        connections: 2,
        ..TransportLimits::default()
    };
    let config = ServerConfig {
        transport: transport.clone(),
        ..with_tls(folder.path(), &authority, None)
    };
    let plain = ServerConfig {
        transport,
        ..ServerConfig::default()
    };
    let counted = |server: &Running, series: &str| -> u64 {
        let metrics = &server.engine.config().metrics;
        let text = metrics.render(Sample::default()).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(series));
        let value = value.unwrap_or_else(|| panic!("no {series} in {text}"));
        value.trim().parse().unwrap()
    };
    let ended = |server: &Running, reason: &str| {
        counted(
            server,
            &format!("frostline_connections_ended_total{{reason=\"{reason}\"}}"),
        )
    };
    let until = async |server: &Running, reason: &str, wanted: u64| {
        let turn = async {
            while ended(server, reason) < wanted {
                tokio::task::yield_now().await;
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(20), turn).await;
        assert!(done.is_ok(), "{reason} stays {}", ended(server, reason));
    };
    let server = Running::start_with(one_lane(), config).await;
    // An answer, so that the server is up.
    let client = server.client_with(&trusting(&authority)).await.unwrap();
    assert_eq!(counted(&server, "frostline_connections"), 1);
    assert_eq!(ended(&server, "handshake"), 0, "there before it happens");
    let mut wrong = TcpStream::connect(server.address).await.unwrap();
    wrong
        .write_all(b"this is no TLS at all, nor ever was\r\n")
        .await
        .unwrap();
    until(&server, "handshake", 1).await;
    drop(wrong);
    let silent = TcpStream::connect(server.address).await.unwrap();
    until(&server, "handshake_timeout", 1).await;
    drop((silent, client));
    let gone = async {
        while counted(&server, "frostline_connections") > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone)
        .await
        .unwrap();
    server.stop().await;

    let server = Running::start_with(one_lane(), plain).await;
    let mut old = TcpStream::connect(server.address).await.unwrap();
    old.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    until(&server, "not_grpc", 1).await;
    // One more than there are places: one that is idle makes room.
    let first = server.client().await;
    let second = server.client().await;
    let third = server.client().await;
    until(&server, "evicted", 1).await;
    drop((first, second, third));
    server.stop().await;
}
