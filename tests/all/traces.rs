//! Traces at a real collector: spans that go on from their callers', batches that link to their calls.

use std::time::Duration;

use frostline::{
    engine::EngineConfig,
    proto,
    trace::{Context, TraceConfig, Tracer},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::{Span, span::SpanKind},
};
use tokio::{net::TcpListener, sync::mpsc};

use crate::support::{Authority, Running, one_lane, png};

/// A collector that hands on what it gets.
struct Collector(mpsc::UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        for span in scopes.flat_map(|scope| scope.spans) {
            self.0.send(span).unwrap();
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector on a free port, and what it gets.
pub(crate) async fn collector() -> (String, mpsc::UnboundedReceiver<Span>) {
    collector_on(tonic::transport::Server::builder(), "http://127.0.0.1").await
}

async fn collector_on(
    mut server: tonic::transport::Server,
    address: &str,
) -> (String, mpsc::UnboundedReceiver<Span>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let endpoint = format!("{address}:{}", listener.local_addr().unwrap().port());
    let (sender, spans) = mpsc::unbounded_channel();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let service = TraceServiceServer::new(Collector(sender));
    tokio::spawn(server.add_service(service).serve_with_incoming(incoming));
    (endpoint, spans)
}

pub(crate) fn tracer(endpoint: String, ratio: f64) -> Tracer {
    Tracer::start(&TraceConfig {
        endpoint,
        authorities: None,
        ratio,
        queue: 1000,
        interval: Duration::from_millis(20),
        service: "test".to_owned(),
    })
    .unwrap()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const TRACE: [&str; 2] = [
    "0af7651916cd43dd8448eb211c80319c",
    "4bf92f3577b34da6a3ce929d0e0e4736",
];
const CALLER: &str = "b7ad6b7169203331";

#[tokio::test(flavor = "multi_thread")]
async fn spans_reach_a_collector_over_tls_if_its_authority_is_trusted() {
    let (trusted, other) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    for (authority, arrives) in [(&trusted, true), (&other, false)] {
        let (cert, key) = trusted.issue("localhost");
        let identity = tonic::transport::Identity::from_pem(cert, key);
        let tls = tonic::transport::ServerTlsConfig::new().identity(identity);
        let server = tonic::transport::Server::builder().tls_config(tls).unwrap();
        let (endpoint, mut spans) = collector_on(server, "https://localhost").await;
        let path = folder.path().join("authorities.pem");
        std::fs::write(&path, &authority.pem).unwrap();
        let tracer = Tracer::start(&TraceConfig {
            endpoint,
            authorities: Some(path),
            ratio: 1.0,
            queue: 10,
            interval: Duration::from_millis(20),
            service: "test".to_owned(),
        })
        .unwrap();
        drop(tracer.call("Service/Method", Context::default()));
        tokio::task::spawn_blocking(move || tracer.stop(Duration::from_secs(10)))
            .await
            .unwrap();
        let names = std::iter::from_fn(|| spans.try_recv().ok()).map(|span| span.name);
        let expected: &[&str] = if arrives { &["Service/Method"] } else { &[] };
        assert_eq!(names.collect::<Vec<_>>(), expected);
    }
    let missing = Tracer::start(&TraceConfig {
        endpoint: "https://localhost:1".to_owned(),
        authorities: Some(folder.path().join("none.pem")),
        ratio: 1.0,
        queue: 10,
        interval: Duration::from_secs(1),
        service: "test".to_owned(),
    });
    assert!(missing.unwrap_err().to_string().contains("none.pem"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_continues_its_callers_trace_and_a_batch_links_to_its_calls() {
    let (endpoint, mut spans) = collector().await;
    let tracer = tracer(endpoint, 0.0);
    let mut config = EngineConfig {
        tracer: tracer.clone(),
        ..one_lane()
    };
    // Both calls fit into one batch, which waits for the second.
    config.buckets = Some(vec![2]);
    config.max_queue_delay = Duration::from_secs(5);
    let server = Running::start(config).await;
    let call = |index: usize| {
        let (client, trace) = (server.client(), TRACE[index]);
        async move {
            let mut request = tonic::Request::new(proto::DetectRequest {
                image: Some(proto::Image {
                    content: Some(proto::image::Content::Encoded(png(80, 80, index as u32))),
                }),
                ..Default::default()
            });
            let parent = format!("00-{trace}-{CALLER}-01");
            request
                .metadata_mut()
                .insert("traceparent", parent.parse().unwrap());
            let response = client.await.vision.detect(request).await.unwrap();
            let back = response.metadata().get("traceparent").unwrap();
            back.to_str().unwrap().to_owned()
        }
    };
    let back = tokio::join!(call(0), call(1));
    // Not sampled by its caller, and the ratio is 0.
    server.client().await.detect(png(70, 70, 9)).await.unwrap();
    server.stop().await;
    tokio::task::spawn_blocking(move || tracer.stop(Duration::from_secs(10)))
        .await
        .unwrap();

    let mut got = Vec::new();
    while let Ok(span) = spans.try_recv() {
        got.push(span);
    }
    let named = |name: &str| got.iter().filter(|s| s.name == name).collect::<Vec<_>>();
    let calls = named("frostline.v1.VisionService/Detect");
    assert_eq!(calls.len(), 2, "{got:#?}");
    let batches = named("backbone batch");
    assert_eq!(batches.len(), 1, "both images ran in one batch");
    for (trace, back) in TRACE.iter().zip([&back.0, &back.1]) {
        let call = calls
            .iter()
            .find(|span| hex(&span.trace_id) == *trace)
            .unwrap();
        assert_eq!(call.kind(), SpanKind::Server);
        assert_eq!(hex(&call.parent_span_id), CALLER);
        assert_eq!(*back, format!("00-{trace}-{}-01", hex(&call.span_id)));
        let mut last = call.start_time_unix_nano;
        for stage in ["queue", "decode", "backbone", "head", "postprocess"] {
            let of_call = |span: &&&Span| span.trace_id == call.trace_id;
            let stages = named(stage);
            let span = stages
                .iter()
                .find(of_call)
                .unwrap_or_else(|| panic!("no {stage}"));
            assert_eq!(span.parent_span_id, call.span_id, "{stage}");
            assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
            assert!(
                span.end_time_unix_nano <= call.end_time_unix_nano + 1_000_000,
                "{stage}"
            );
            if stage != "decode" {
                assert!(
                    span.start_time_unix_nano + 1_000_000 >= last,
                    "{stage} begins early"
                );
                last = span.start_time_unix_nano;
            }
        }
        let links = |span: &Span| span.links.iter().any(|link| link.span_id == call.span_id);
        assert!(links(batches[0]), "the batch links to the call");
        let shares = named("backbone");
        let share = shares.iter().find(|s| s.trace_id == call.trace_id).unwrap();
        assert_eq!(share.links[0].span_id, batches[0].span_id);
        assert!(named("head batch").iter().any(|batch| links(batch)));
        let heads = named("head");
        let head = heads.iter().find(|s| s.trace_id == call.trace_id).unwrap();
        let which = head
            .attributes
            .iter()
            .find(|attribute| attribute.key == "head");
        assert!(format!("{which:?}").contains("objects"), "{head:?}");
    }
    assert!(batches[0].parent_span_id.is_empty(), "a trace of its own");
    assert!(!TRACE.contains(&hex(&batches[0].trace_id).as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_no_call() {
    let gone = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let endpoint = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let mut config = EngineConfig {
        tracer: tracer(endpoint, 1.0),
        ..one_lane()
    };
    config.max_batch = 2;
    let server = Running::start(config).await;
    let mut client = server.client().await;
    for seed in 0..20 {
        client.detect(png(50, 50, seed)).await.unwrap();
    }
    server.stop().await;
}
