//! What a running server tells: metrics, probes, the log's filter, numbers of requests.

use std::{net::SocketAddr, sync::Arc};

use frostline::{
    engine::EngineConfig,
    metrics::{CertificateTimes, DEFINITIONS},
    proto,
    server::{Admin, AdminAccess, Life, Phase, ServerConfig},
    telemetry::LogFilter,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::support::{Running, one_lane, png};

/// A server with its admin port.
pub(crate) struct Observed {
    pub(crate) server: Running,
    pub(crate) admin: SocketAddr,
    life: Life,
    filter: LogFilter,
}

impl Observed {
    pub(crate) async fn start(config: EngineConfig) -> Self {
        Self::start_for(config, AdminAccess::default()).await
    }

    /// As [`Observed::start`], for these alone.
    pub(crate) async fn start_for(config: EngineConfig, access: AdminAccess) -> Self {
        let (life, filter) = (Life::default(), LogFilter::default());
        let metrics = Arc::clone(&config.metrics);
        let open = access.tokens.is_none();
        let admin = Admin::new(life.clone(), metrics, filter.clone(), access);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(admin.clone().serve(listener));
        assert_eq!(http(address, "GET", "/readyz", "").await.0, 503, "starting");
        assert_eq!(http(address, "GET", "/livez", "").await.0, 200);
        if open {
            assert!(scrape(address).await.contains("frostline_ready 0"));
        }
        let server = ServerConfig {
            life: life.clone(),
            ..ServerConfig::default()
        };
        let server = Running::start_with(config, server).await;
        admin.attach(Arc::clone(&server.engine));
        // An answer: the listener may be open before the server is up.
        let request = proto::GetBackboneRequest {};
        server
            .client()
            .await
            .model
            .get_backbone(request)
            .await
            .unwrap();
        Self {
            server,
            admin: address,
            life,
            filter,
        }
    }
}

/// One request over HTTP/1.1; its status and body.
pub(crate) async fn http(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    (status, body.to_owned())
}

pub(crate) async fn scrape(address: SocketAddr) -> String {
    let accept = "accept: application/openmetrics-text; version=1.0.0\r\n";
    let (head, text) = scrape_as(address, accept).await;
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    String::from_utf8(text).unwrap()
}

/// A scrape with these headers more; the answer's head in lower case, and its body.
async fn scrape_as(address: SocketAddr, headers: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request =
        format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let head = String::from_utf8(answer[..end].to_vec())
        .unwrap()
        .to_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    (head, answer[end + 4..].to_vec())
}

/// The value of the series that is written exactly so.
pub(crate) fn value(text: &str, series: &str) -> f64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}"))
        .parse()
        .unwrap()
}

/// Traffic of every kind: answered, shared, cached, refused, failed; a head loaded anew.
pub(crate) async fn traffic(server: &Running) {
    let mut client = server.client().await;
    for seed in [1, 1, 2] {
        client.analyze_image(png(90, 70, seed), &[]).await.unwrap();
    }
    let same = (0..8).map(|_| {
        let mut client = client.clone();
        tokio::spawn(async move { client.detect(png(64, 64, 7)).await })
    });
    for call in same.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    assert!(client.detect(vec![1, 2, 3].into()).await.is_err());
    let many = (0..20).map(|seed| png(40, 40, seed)).collect();
    assert!(
        client.recognize(many).await.is_err(),
        "over the door's limit"
    );
    let request = proto::LoadHeadRequest {
        name: "scene".to_owned(),
    };
    client.model.load_head(request).await.unwrap();
    server.settled().await;
    // As of a server with keys and TLS.
    let metrics = &server.engine.config().metrics;
    metrics.files_read("keys");
    metrics.files_current("keys", true);
    metrics.certificates(vec![CertificateTimes {
        usage: "server",
        name: "localhost".to_owned(),
        not_before: 1_700_000_000,
        not_after: 4_000_000_000,
    }]);
}

/// Few places and a small cache, so that [`traffic`] meets both bounds.
pub(crate) fn tight() -> EngineConfig {
    let mut config = EngineConfig {
        cache_bytes: 1 << 20,
        ..one_lane()
    };
    config.admission.images = 16;
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_scraped_is_what_happened() {
    let observed = Observed::start(tight()).await;
    traffic(&observed.server).await;
    let text = scrape(observed.admin).await;
    let series = |text: &str, name: &str| value(text, name);
    let detect = r#"method="frostline.v1.VisionService/Detect",code="#;
    let calls = |code: &str| {
        series(
            &text,
            &format!("frostline_call_duration_seconds_count{{{detect}\"{code}\"}}"),
        )
    };
    assert_eq!(calls("OK"), 8.0);
    assert_eq!(calls("INVALID_ARGUMENT"), 1.0);
    let stage = |stage: &str, head: &str, code: &str| {
        let labels = format!(r#"stage="{stage}",head="{head}",code="{code}""#);
        series(
            &text,
            &format!("frostline_stage_duration_seconds_count{{{labels}}}"),
        )
    };
    assert_eq!(stage("total", "objects", "OK"), 8.0 + 3.0);
    assert_eq!(stage("postprocess", "scene", "OK"), 3.0);
    assert_eq!(stage("total", "objects", "INVALID_IMAGE"), 1.0);
    assert_eq!(
        series(&text, r#"frostline_refused_total{reason="too_large"}"#),
        1.0
    );
    assert_eq!(
        series(&text, "frostline_batch_images_sum"),
        3.0,
        "three images that differ"
    );
    assert_eq!(series(&text, "frostline_backbone_images_total"), 3.0);
    let saved = |reason: &str| {
        series(
            &text,
            &format!("frostline_backbone_runs_saved_total{{reason=\"{reason}\"}}"),
        )
    };
    assert_eq!(saved("multi_head"), 3.0);
    assert_eq!(saved("in_flight") + saved("cache"), 1.0 + 7.0);
    assert_eq!(series(&text, "frostline_cache_hits_total"), saved("cache"));
    let loaded = r#"frostline_head_loads_total{head="scene",result="loaded"}"#;
    assert_eq!(series(&text, loaded), 1.0);
    let failed = r#"frostline_head_loads_total{head="scene",result="failed"}"#;
    assert_eq!(series(&text, failed), 0.0, "there before it happens");
    assert_eq!(
        series(&text, r#"frostline_head_current{head="scene"}"#),
        1.0
    );
    assert_eq!(
        series(
            &text,
            r#"frostline_calls_total{service="frostline.v1.VisionService",code="INVALID_ARGUMENT"}"#
        ),
        2.0,
        "an image that is none, and a clip over the limit"
    );
    assert_eq!(series(&text, "frostline_calls_in_flight"), 0.0);
    assert_eq!(series(&text, "frostline_ready"), 1.0);
    let resident = series(&text, "process_resident_memory_bytes");
    assert!(resident > 1e7);
    assert!(series(&text, "frostline_memory_limit_bytes") > resident);
    let device: f64 = text
        .lines()
        .filter(|line| line.starts_with("frostline_device_seconds_total{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    let busy = |work: &str| {
        let name = format!("frostline_lane_busy_seconds_total{{work=\"{work}\"}}");
        series(&text, &name)
    };
    assert!(busy("decode") > 0.0 && busy("results") > 0.0);
    let busy = busy("graphs");
    assert!(
        device > 0.0 && device <= busy * 1.001,
        "{device} s of {busy} s"
    );
    observed.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_definitions_are_what_is_scraped_name_by_name_and_label_by_label() {
    let observed = Observed::start(tight()).await;
    traffic(&observed.server).await;
    let text = scrape(observed.admin).await;
    for definition in DEFINITIONS {
        let name = definition.name;
        let family = name.strip_suffix("_total").unwrap_or(name);
        let kind = format!("# TYPE {family} {}\n", definition.kind.name());
        assert!(text.contains(&kind), "{name} was not scraped:\n{text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let known = DEFINITIONS.iter().find(|definition| {
            let suffixes = ["", "_bucket", "_sum", "_count"];
            suffixes
                .iter()
                .any(|suffix| name.strip_suffix(suffix) == Some(definition.name))
        });
        let definition = known.unwrap_or_else(|| panic!("{name} has no definition"));
        let found: Vec<_> = labels
            .split("\",")
            .filter_map(|label| Some(label.split_once("=\"")?.0))
            .filter(|label| *label != "le")
            .collect();
        assert_eq!(found, definition.labels, "{line}");
    }
    observed.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_comes_in_the_format_and_packing_that_it_asks_for() {
    let (endpoint, _spans) = crate::traces::collector().await;
    let config = EngineConfig {
        tracer: crate::traces::tracer(endpoint, 1.0),
        ..tight()
    };
    let observed = Observed::start(config).await;
    traffic(&observed.server).await;
    // What comes from callers stands in labels and must break neither format.
    let hostile = std::sync::Arc::from("jwt:a\"} 1 # {b=\"c\"} 2\n");
    let metrics = &observed.server.engine.config().metrics;
    metrics.device(
        frostline::metrics::Stage::Head,
        &"h".into(),
        &hostile,
        std::time::Duration::from_secs(1),
    );
    let open = scrape(observed.admin).await;
    assert!(open.ends_with("# EOF\n"));
    assert!(
        open.contains("\n# UNIT frostline_call_duration_seconds seconds\n"),
        "{open}"
    );
    assert!(
        open.contains("\n# UNIT process_resident_memory_bytes bytes\n"),
        "{open}"
    );
    let exemplar = open.lines().find(|line| line.contains(" # {trace_id=\""));
    assert!(
        exemplar.is_some_and(|line| line.starts_with("frostline_call_duration_seconds_bucket{"))
    );
    for definition in DEFINITIONS {
        let family = definition
            .name
            .strip_suffix("_total")
            .unwrap_or(definition.name);
        assert!(
            open.contains(&format!("# HELP {family} {}.\n", definition.help)),
            "{family}"
        );
    }
    // Nothing in particular, as curl and a browser ask.
    for accept in [
        "",
        "accept: */*\r\n",
        "accept: application/openmetrics-text;q=0, text/plain\r\n",
    ] {
        let (head, text) = scrape_as(observed.admin, accept).await;
        assert!(
            head.contains("content-type: text/plain; version=0.0.4"),
            "{head}"
        );
        let text = String::from_utf8(text).unwrap();
        assert!(
            !text.contains("# EOF") && !text.contains("# UNIT") && !text.contains("trace_id"),
            "{text}"
        );
        assert!(
            text.contains("\n# TYPE frostline_calls_total counter\n"),
            "{text}"
        );
        assert!(text.contains("\n# HELP frostline_calls_total "), "{text}");
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(
            series,
            open.lines().filter(|line| !line.starts_with('#')).count()
        );
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(
                line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(),
                "{line}"
            );
        }
        let label = r#"identity="jwt:a\"} 1 # {b=\"c\"} 2\n""#;
        assert!(text.contains(label), "{text}");
    }
    let (head, packed) = scrape_as(observed.admin, "accept-encoding: deflate, gzip\r\n").await;
    assert!(head.contains("content-encoding: gzip"), "{head}");
    let mut text = String::new();
    std::io::Read::read_to_string(
        &mut flate2::read::GzDecoder::new(packed.as_slice()),
        &mut text,
    )
    .unwrap();
    assert!(text.contains("\nfrostline_ready 1"), "{text}");
    assert!(packed.len() * 4 < text.len());
    observed.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_can_be_asked_of_an_admin_port_by_name() {
    let observed = Observed::start(one_lane()).await;
    let port = observed.admin.port();
    let ask = |phase: Phase| {
        observed.life.enter(phase);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_frostline"));
        command.args(["health", "--admin", &format!("localhost:{port}")]);
        tokio::task::spawn_blocking(move || command.output().unwrap().status.code())
    };
    assert_eq!(ask(Phase::Ready).await.unwrap(), Some(0));
    assert_eq!(ask(Phase::Draining).await.unwrap(), Some(1));
    observed.server.stop().await;
    let nobody = std::process::Command::new(env!("CARGO_BIN_EXE_frostline"))
        .args(["health", "--admin", "host.invalid:1"])
        .output();
    assert_eq!(nobody.unwrap().status.code(), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_do_not_exist_become_no_labels() {
    let observed = Observed::start(one_lane()).await;
    let mut raw = tonic::client::Grpc::new(observed.server.channel().await);
    for path in ["/a.b/C", "/frostline.v1.VisionService/Nothing"] {
        raw.ready().await.unwrap();
        let codec =
            tonic_prost::ProstCodec::<proto::GetHeadRequest, proto::GetHeadResponse>::default();
        let request = tonic::Request::new(proto::GetHeadRequest::default());
        let answer = raw.unary(request, path.parse().unwrap(), codec).await;
        assert_eq!(answer.unwrap_err().code(), tonic::Code::Unimplemented);
    }
    let text = scrape(observed.admin).await;
    let count = r#"frostline_call_duration_seconds_count{method="unknown",code="UNIMPLEMENTED"}"#;
    assert_eq!(value(&text, count), 2.0);
    assert!(!text.contains("Nothing"));
    observed.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_follow_the_server_and_the_filter_can_be_changed() {
    let observed = Observed::start(one_lane()).await;
    let admin = observed.admin;
    assert_eq!(
        http(admin, "GET", "/readyz", "").await,
        (200, "ready".to_owned())
    );
    let set = http(admin, "PUT", "/log", "warn,frostline=trace").await;
    assert_eq!(set, (200, "warn,frostline=trace".to_owned()));
    assert_eq!(http(admin, "PUT", "/log", "frostline=loud").await.0, 400);
    assert_eq!(http(admin, "PUT", "/log", &"x".repeat(5000)).await.0, 413);
    assert_eq!(
        http(admin, "GET", "/log", "").await.1,
        observed.filter.get()
    );
    assert_eq!(http(admin, "GET", "/nothing", "").await.0, 404);
    observed.server.stop().await;
    assert_eq!(
        http(admin, "GET", "/readyz", "").await,
        (503, "draining".to_owned())
    );
    assert_eq!(http(admin, "GET", "/livez", "").await.0, 200);
    observed.life.enter(Phase::Failed);
    assert_eq!(http(admin, "GET", "/livez", "").await.0, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_keeps_its_number_or_gets_one() {
    let server = Running::start(one_lane()).await;
    let mut client = server.client().await.vision;
    let mut numbers = Vec::new();
    for given in [Some("order-17"), Some("two words"), None, None] {
        let mut request = tonic::Request::new(proto::DetectRequest::default());
        if let Some(given) = given {
            request
                .metadata_mut()
                .insert("x-request-id", given.parse().unwrap());
        }
        // An empty request fails, and is told its number all the same.
        let status = client.detect(request).await.unwrap_err();
        let number = status.metadata().get("x-request-id").unwrap();
        numbers.push(number.to_str().unwrap().to_owned());
    }
    assert_eq!(numbers[0], "order-17");
    assert!(!numbers[1].contains(' '), "{numbers:?}");
    numbers.dedup();
    assert_eq!(numbers.len(), 4, "{numbers:?}");
    server.stop().await;
}
