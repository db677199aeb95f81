//! What a request costs where the graphs cost next to nothing, and how fast the backbone is through gRPC.

use std::time::Duration;

use frostline::{client::raw, proto};
use tempfile::TempDir;

use crate::{
    common::{
        graphs::{ECHO, HeadGraph, write_head},
        process::Process,
    },
    load::{SIDE, closed, millis, pixels, quantile},
    report::{Bar, Report},
    wire::Wire,
};

const TURN: Duration = Duration::from_secs(4);

/// A repository whose graphs cost next to nothing: 48 KB in, 16 KB out.
pub(crate) fn echo() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let backbone = ECHO.write(folder.path());
    let size = [SIDE, SIDE];
    write_head(
        folder.path(),
        "echo",
        "1",
        &backbone,
        size,
        &HeadGraph::Echo,
    );
    folder
}

/// CPU time per request and requests per second of the echo repository.
pub(crate) async fn overhead(report: &mut Report) -> anyhow::Result<()> {
    let folder = echo();
    let server = Process::start(Some(folder.path()), &[])?;
    let client = Wire::connect(&server.address).await?;
    // Triton's requests/s on a comparable machine, and the bars on CPU time.
    for (concurrency, rate_bar, cpu_bar) in [
        (1, 1407.0, Some(0.25)),
        (8, 3237.0, None),
        (32, 4704.0, Some(0.12)),
    ] {
        let turn = |turn| {
            let client = client.clone();
            closed(concurrency, turn, move || {
                let client = client.clone();
                let image = raw(SIDE, SIDE, pixels());
                async move { Ok(client.analyze("echo", image, None).await?) }
            })
        };
        turn(TURN / 8).await?;
        let before = server.cpu()?;
        let done = turn(TURN).await?;
        let cpu = millis(server.cpu()?.saturating_sub(before)) / done.times.len() as f64;
        let name = format!("echo, concurrency {concurrency}: server CPU time per request");
        match cpu_bar {
            Some(bar) => report.held(name, cpu, "ms", Bar::AtMost(bar)),
            None => report.note(name, cpu, "ms"),
        }
        let name = format!("echo, concurrency {concurrency}: requests per second");
        report.held(name, done.rate, "requests/s", Bar::AtLeast(rate_bar));
        let name = format!("echo, concurrency {concurrency}: median");
        report.note(name, quantile(&done.times, 0.5), "ms");
    }
    Ok(())
}

/// Raw pixels in, the last feature map (16 KB) out: what Triton and mosec were measured with.
pub(crate) async fn backbone(report: &mut Report) -> anyhow::Result<()> {
    let server = Process::start(None, &[])?;
    let client = Wire::connect(&server.address).await?;
    // The better of Triton's and mosec's images/s.
    for (concurrency, bar) in [(1, 70.0), (8, 172.0), (32, 199.0)] {
        let client = client.clone();
        let done = closed(concurrency, TURN, move || {
            let client = client.clone();
            async move {
                let request = proto::ExtractFeaturesRequest {
                    image: Some(raw(SIDE, SIDE, pixels())),
                    map_names: vec!["stride32".to_owned()],
                    ..Default::default()
                };
                Ok(client.extract_features(&request).await?)
            }
        })
        .await?;
        let name = format!("backbone over gRPC, concurrency {concurrency}");
        report.held(name, done.rate, "images/s", Bar::AtLeast(bar));
        let name = format!("backbone over gRPC, concurrency {concurrency}: median and p99");
        report.note(name.clone(), quantile(&done.times, 0.5), "ms");
        report.note(
            name.replace("median and ", ""),
            quantile(&done.times, 0.99),
            "ms",
        );
    }
    Ok(())
}
