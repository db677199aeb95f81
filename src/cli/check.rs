//! `frostline check`: what a repository holds, whether it keeps its contract, how fast it runs here.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    backend::{FeatureRow, Lane, LaneOptions},
    config::Config,
    repository::Graph,
};

const BATCHES: [usize; 4] = [1, 2, 4, 8];

pub(super) fn run(config: &Config) -> anyhow::Result<()> {
    let repository = super::repository(config)?;
    let runtime = super::runtime(config)?;
    let options = LaneOptions {
        threads: config.engine.threads_per_lane,
    };
    let mut lane = Lane::new(&runtime, &repository.backbone, &repository.graph, options)?;
    for entry in &repository.heads {
        lane.load_head(entry)?;
    }

    let manifest = &repository.backbone;
    println!(
        "backbone {} {} ({})",
        manifest.name,
        manifest.version,
        &manifest.sha256[..12]
    );
    let mut table = vec![row([
        "file",
        "input",
        "output",
        "MB",
        "ms per batch of 1, 2, 4, 8",
    ])];
    for &size in &manifest.input.sizes {
        let [height, width] = size;
        let pixels = vec![127; height as usize * width as usize * 3 * BATCHES[3]];
        let length = pixels.len() / BATCHES[3];
        let times = measure(|batch| {
            lane.run_backbone(size, &pixels[..length * batch], batch)
                .map(drop)
        })?;
        let outputs: Vec<_> = manifest
            .features
            .iter()
            .map(|f| format!("{} {:?}", f.name, f.row_shape(size)))
            .collect();
        table.push(row([
            &repository.graph.name,
            &format!("uint8 [N, {height}, {width}, 3]"),
            &outputs.join(", "),
            &megabytes(&repository.graph),
            &times,
        ]));
    }
    for entry in &repository.heads {
        let head = &entry.manifest;
        let size = head.input_size;
        let frames = head.frames();
        let most = BATCHES[3] * frames;
        let pixels = vec![127; size[0] as usize * size[1] as usize * 3 * most];
        let features = Arc::new(lane.run_backbone(size, &pixels, most)?);
        let rows: Vec<_> = (0..most)
            .map(|index| FeatureRow::new(&features, index))
            .collect();
        let outputs = lane.run_head(&head.name, &rows[..frames], 1)?;
        let outputs = crate::backend::HeadRow::new(&Arc::new(outputs), 0);
        let shapes: Vec<_> = outputs
            .tensors()
            .map(|t| format!("{} {:?}", t.name, t.shape))
            .collect();
        let times = measure(|batch| {
            lane.run_head(&head.name, &rows[..batch * frames], batch)
                .map(drop)
        })?;
        table.push(row([
            &entry.graph.name,
            &format!("{} x {frames}", head.features.join(", ")),
            &shapes.join(", "),
            &megabytes(&entry.graph),
            &times,
        ]));
    }
    print(&table);
    println!(
        "{} heads, all as their manifests say",
        repository.heads.len()
    );
    Ok(())
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn megabytes(graph: &Graph) -> String {
    format!("{:.2}", graph.bytes.len() as f64 / 1e6)
}

/// Median milliseconds of a batch, for each batch size.
fn measure<E>(mut run: impl FnMut(usize) -> Result<(), E>) -> Result<String, E> {
    let mut medians = Vec::new();
    for batch in BATCHES {
        let mut times = Vec::new();
        for _ in 0..5 {
            let begun = Instant::now();
            run(batch)?;
            times.push(begun.elapsed());
        }
        times.sort();
        medians.push(format!("{:.1}", millis(times[times.len() / 2])));
    }
    Ok(medians.join("  "))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn print(table: &[Vec<String>]) {
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
        println!("{}", line.join("  ").trim_end());
    }
}
