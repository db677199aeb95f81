//! `frostline check`: what a repository holds, whether it keeps its contract, how fast it runs here.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;

use crate::{
    backend::{HeadRow, Placement, SessionOptions},
    config::Config,
    engine::{Curve, Engine, EngineConfig, Trial},
    metrics,
    repository::{Graph, OnBadHead, Repository},
};

pub(super) fn run(config: &Config) -> anyhow::Result<()> {
    let repository = super::repository(config, OnBadHead::Refuse)?;
    let runtime = super::runtime(config)?;
    let before = metrics::resident();
    let started = Instant::now();
    let engine = EngineConfig {
        on_bad_head: config.repository.on_bad_head.unwrap_or(OnBadHead::Refuse),
        ..config.engine()
    };
    // Why the choice was left to a trial.
    let reason = runtime.device().reason().to_owned();
    let (runtime, trial) = super::placed(config, &runtime, &repository, &engine)?;
    let (before, started) = match trial {
        Some(_) => (metrics::resident(), Instant::now()),
        None => (before, started),
    };
    let engine = Engine::start(&runtime, &repository, engine)?;
    let ready = started.elapsed();
    let manifest = &repository.backbone;
    match &trial {
        None => say!("device {}", runtime.device().describe()),
        Some(trial) => show_trial(trial, &reason)?,
    }
    say!(
        "backbone {} {} ({}), ready on {} lanes in {:.0} ms",
        manifest.name,
        manifest.version,
        &manifest.sha256[..12],
        engine.load().lanes,
        millis(ready)
    );
    show_memory(before, engine.load().lanes)?;
    let mut table = vec![row(["file", "input", "output", "MB", "ms"])];
    table.extend(backbone_rows(&engine, &repository));
    engine.stop();
    let options = SessionOptions {
        lanes: 1,
        threads: config.engine.threads_per_lane,
    };
    let backbone = crate::backend::Backbone::load(&runtime, manifest, &repository.graph, options)?;
    let mut placed = vec![(&repository.graph.name, backbone.placement())];
    let faults = engine.faults();
    let mut good = 0;
    for entry in &repository.heads {
        let head = &entry.manifest;
        if faults.contains_key(&head.name) {
            continue;
        }
        good += 1;
        let model = crate::backend::HeadModel::load(&runtime, entry, &backbone, options)?;
        let run = || model.dry_run(0, &backbone, head.input_size, 1);
        placed.push((&entry.graph.name, model.placement().cloned()));
        let outputs = HeadRow::new(&Arc::new(run()?), 0);
        let shapes: Vec<_> = outputs
            .tensors()
            .map(|t| format!("{} {:?}", t.name, t.shape))
            .collect();
        table.push(row([
            &entry.graph.name,
            &format!("{} x {}", head.features.join(", "), head.frames()),
            &shapes.join(", "),
            &megabytes(&entry.graph),
            &format!("{:.1}", millis(median(run)?)),
        ]));
    }
    print(&table)?;
    show_placement(&placed)?;
    for (curve, buckets) in engine.curves() {
        show(curve, &buckets)?;
    }
    say!("{good} heads, all as their manifests say");
    for (name, reason) in &faults {
        say!("{name} is left out: {reason}");
    }
    Ok(())
}

/// What the process holds, and how much of it each lane took.
fn show_memory(before: Option<u64>, lanes: usize) -> anyhow::Result<()> {
    if let (Some(before), Some(now)) = (before, metrics::resident()) {
        let (lanes, mb) = (lanes.max(1), |bytes: u64| bytes as f64 / 1e6);
        let limit = metrics::memory_limit().map_or(String::new(), |limit| {
            format!(" of {:.0} MB that the process may have", mb(limit))
        });
        say!(
            "memory {:.0} MB at rest{limit}, {:.1} MB of it for each of {lanes} lanes",
            mb(now),
            mb(now.saturating_sub(before)) / lanes as f64
        );
    }
    Ok(())
}

/// The backbone's graph at each input size: what it takes and gives, and milliseconds for one image.
fn backbone_rows(engine: &Engine, repository: &Repository) -> Vec<Vec<String>> {
    let manifest = &repository.backbone;
    let of = |&size: &[u32; 2]| {
        let [height, width] = size;
        let outputs: Vec<_> = manifest
            .features
            .iter()
            .map(|f| format!("{} {:?}", f.name, f.row_shape(size)))
            .collect();
        let alone = engine.curves().find(|(curve, _)| curve.size == size);
        let alone = alone.and_then(|(curve, _)| curve.points.first().copied());
        row([
            &repository.graph.name,
            &format!("uint8 [N, {height}, {width}, 3]"),
            &outputs.join(", "),
            &megabytes(&repository.graph),
            &alone.map_or_else(String::new, |(_, seconds)| format!("{:.1}", seconds * 1e3)),
        ])
    };
    manifest.input.sizes.iter().map(of).collect()
}

/// The ways that were tried to run the backbone, and which of them is taken.
fn show_trial(trial: &Trial, reason: &str) -> anyhow::Result<()> {
    let chosen = trial.chosen().context("nothing was chosen")?;
    say!(
        "device {}: {reason}; {} in {:.1} s",
        chosen.name(),
        match trial.remembered {
            true => "by an earlier trial, read",
            false => "by trial",
        },
        trial.took.as_secs_f64()
    );
    let mut table = vec![row(["tried", "images/s", "batch", "times", ""])];
    for one in &trial.tried {
        let (rate, batch, ratio) = match one.rate {
            Some((rate, batch)) => (
                format!("{rate:.0}"),
                batch.to_string(),
                format!("{:.2}", one.ratio),
            ),
            None => Default::default(),
        };
        table.push(row([&one.name(), &rate, &batch, &ratio, &one.verdict]));
    }
    Ok(print(&table)?)
}

/// Where each graph's nodes run, if the device leaves a choice, and which of them fell back to the CPU.
fn show_placement(placed: &[(&String, Option<Placement>)]) -> io::Result<()> {
    for (graph, placement) in placed {
        let Some(placement) = placement else { continue };
        say!("{graph}: {}", placement.summary());
        let fallen_back = placement.fallen_back();
        if !fallen_back.is_empty() {
            say!("  fell back: {fallen_back}");
        }
    }
    Ok(())
}

/// The batch curve: what each batch size costs with every lane busy, and which sizes are used.
fn show(curve: &Curve, buckets: &[usize]) -> io::Result<()> {
    let [height, width] = curve.size;
    say!("\nbackbone batches at {height} x {width}, every lane busy");
    let mut table = vec![row(["batch", "ms", "images/s per lane", ""])];
    let best = curve.rates().map(|(_, rate)| rate).fold(0.0, f64::max);
    for ((rows, seconds), (_, rate)) in curve.points.iter().zip(curve.rates()) {
        let bar = "#".repeat((rate / best * 30.0).round() as usize);
        let used = if buckets.contains(rows) { "used" } else { "" };
        table.push(row([
            &rows.to_string(),
            &format!("{:.1}", seconds * 1e3),
            &format!("{rate:6.0} {bar:30}"),
            used,
        ]));
    }
    print(&table)?;
    say!("");
    Ok(())
}

/// Median time of a run.
fn median<T, E>(mut run: impl FnMut() -> Result<T, E>) -> Result<Duration, E> {
    let mut times = Vec::with_capacity(5);
    for _ in 0..5 {
        let begun = Instant::now();
        run()?;
        times.push(begun.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn megabytes(graph: &Graph) -> String {
    format!("{:.2}", graph.bytes.len() as f64 / 1e6)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn print(table: &[Vec<String>]) -> io::Result<()> {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            table
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    for row in table {
        let line: Vec<_> = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}"))
            .collect();
        say!("{}", line.join("  ").trim_end());
    }
    Ok(())
}
