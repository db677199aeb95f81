//! What serving costs beyond ONNX Runtime itself, how it holds up under more load than it can carry, and whether
//! anything is lost or leaks.
//!
//! ```text
//! cargo bench --bench serving                       everything but the soak
//! cargo bench --bench serving -- overhead overload  these sections
//! cargo bench --bench serving -- soak               a million requests
//! ```
//!
//! Prints a table and writes `target/bench/summary.json`, an entry for each line. Where the server's CPU time or memory
//! is measured, or gRPC's part of the cost, the server is a process of its own; the load generator shares its cores.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bare;
#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "the tests take other parts of it")]
mod common;
mod load;
mod overhead;
mod overload;
mod report;
mod sharing;
mod soak;
mod throughput;
mod wire;

use std::path::Path;

use frostline::{backend::Runtime, repository::Repository};

/// The server's: what runs in this process is to be as quick as there, and the load generator to take little.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// In the order they run; the soak only when asked for.
const SECTIONS: [&str; 9] = [
    "throughput",
    "sharing",
    "overhead",
    "backbone",
    "tail",
    "overload",
    "conservation",
    "lifecycle",
    "soak",
];

fn main() -> anyhow::Result<()> {
    // Cargo adds flags of its own.
    let asked: Vec<_> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    if let Some(unknown) = asked.iter().find(|a| !SECTIONS.contains(&a.as_str())) {
        anyhow::bail!("there is no section {unknown:?}, only {SECTIONS:?}");
    }
    let runtime = Runtime::load(None)?;
    let repository = Repository::embedded()?;
    let executor = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    // Callers on one thread take half of what threads take that wake each other.
    let alone = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut report = report::Report::default();
    for section in SECTIONS {
        let wanted = match asked.is_empty() {
            true => section != "soak",
            false => asked.iter().any(|a| a == section),
        };
        if !wanted {
            continue;
        }
        let report = &mut report;
        if matches!(section, "tail" | "overload") {
            // On a thread of its own: what it asks of the kernel must not reach the next section's server.
            let run = || {
                alone.block_on(async {
                    match section {
                        "tail" => overload::tail(report).await,
                        _ => overload::overload(report).await,
                    }
                })
            };
            std::thread::scope(|scope| scope.spawn(run).join().unwrap())?;
            continue;
        }
        let run = async {
            match section {
                "throughput" => throughput::throughput(report, &runtime, &repository).await?,
                "sharing" => sharing::sharing(report, &runtime, &repository).await?,
                "overhead" => overhead::overhead(report).await?,
                "backbone" => overhead::backbone(report).await?,
                "conservation" => soak::conservation(report).await?,
                "lifecycle" => soak::lifecycle(report).await?,
                _ => soak::million(report).await?,
            }
            anyhow::Ok(())
        };
        match section {
            "throughput" => alone.block_on(run)?,
            _ => executor.block_on(run)?,
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench/summary.json");
    report.write(Path::new(path))
}
