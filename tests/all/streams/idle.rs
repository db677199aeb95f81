//! What a stream costs of which no frame is under way.

use frostline::{client::Client, proto::StreamSettings, server::STREAM_BYTES};

use super::camera::{Camera, head, settings};
use crate::common::process::Process;

/// Streams that are opened; the variable `IDLE_STREAMS` may say another number.
const STREAMS: usize = 1500;
/// Those of one connection.
const PER_CONNECTION: usize = 500;

/// The process grows by no more than what `frostline config` counts for each stream.
#[tokio::test(flavor = "multi_thread")]
async fn idle_streams_cost_what_is_said() {
    let asked = std::env::var("IDLE_STREAMS");
    let streams = asked.map_or(STREAMS, |count| count.parse().unwrap());
    let settings_ = [
        format!("stream.streams={}", 2 * streams),
        format!("stream.streams_per_caller={}", 2 * streams),
        format!("limits.calls_in_flight={}", 4 * streams),
        "limits.overcommit=true".to_owned(),
    ];
    let server = Process::start(None, &settings_.each_ref().map(String::as_str)).unwrap();
    let quiet = || StreamSettings {
        status_interval: Some(prost_types::Duration {
            seconds: 60,
            nanos: 0,
        }),
        ..settings(vec![head("objects"), head("scene"), head("motion")])
    };
    let mut cameras = Vec::with_capacity(streams);
    let mut first = 0.0;
    let warm = PER_CONNECTION / 2;
    let mut client = Client::connect(&server.address).await.unwrap();
    for count in 0..streams + warm {
        if count == warm {
            first = server.resident().unwrap();
        }
        if count % PER_CONNECTION == PER_CONNECTION - 1 {
            client = Client::connect(&server.address).await.unwrap();
        }
        cameras.push(Camera::open(&client, quiet()).await.unwrap());
    }
    let grown = (server.resident().unwrap() - first) * f64::from(1 << 20);
    let each = grown / streams as f64;
    eprintln!("{streams} idle streams: {each:.0} bytes each");
    assert!(each <= STREAM_BYTES as f64, "{each} bytes each");
}
