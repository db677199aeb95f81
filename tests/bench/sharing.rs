//! One image, several heads, several callers: one backbone run.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use frostline::{
    backend::{FeatureRow, Runtime},
    engine::{Engine, EngineConfig, Request, Source},
    repository::Repository,
};

use crate::{
    bare::Bare,
    load::{SIDE, median, millis, pixels},
    report::{Bar, Report},
};

const CALLERS: usize = 32;
const FRAMES: usize = 8;

fn source(rgb: Bytes) -> Source {
    Source::Raw {
        width: SIDE,
        height: SIDE,
        rgb,
    }
}

pub(crate) async fn sharing(
    report: &mut Report,
    runtime: &Runtime,
    repository: &Repository,
) -> anyhow::Result<()> {
    three_heads(report, runtime, repository).await?;
    equal_frames(report, runtime, repository).await
}

/// One clip, three heads: against the backbone and the three heads run one after another.
async fn three_heads(
    report: &mut Report,
    runtime: &Runtime,
    repository: &Repository,
) -> anyhow::Result<()> {
    const ROUNDS: usize = 40;
    let bare = Bare::load(runtime, repository, 1, 1, &[1, 8])?;
    let config = EngineConfig {
        lanes: 1,
        ..EngineConfig::default()
    };
    let engine = Engine::start(runtime, repository, config)?;
    let (mut own, mut served, mut rows) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        let frames: Vec<Bytes> = (0..FRAMES).map(|_| pixels()).collect();
        let input = frames.concat();
        let started = Instant::now();
        let features = Arc::new(bare.backbone.run(0, [SIDE, SIDE], &input, FRAMES)?);
        let all: Vec<_> = (0..FRAMES)
            .map(|index| FeatureRow::new(&features, index))
            .collect();
        bare.head("motion").run(0, &all, 1)?;
        bare.head("objects").run(0, &all[FRAMES - 1..], 1)?;
        bare.head("scene").run(0, &all[FRAMES - 1..], 1)?;
        own.push(millis(started.elapsed()));
        let images = frames.into_iter().map(|f| (source(f), "clip".to_owned()));
        let request = Request {
            images: images.collect(),
            heads: engine.heads(),
            ..Request::default()
        };
        let started = Instant::now();
        let answer = engine.run(request).await?;
        served.push(millis(started.elapsed()));
        rows += answer.provenance.backbone_rows;
    }
    engine.stop();
    let name = "three heads on a clip of 8: backbone runs per frame";
    let runs = rows as f64 / (ROUNDS * FRAMES) as f64;
    report.held(name, runs, "runs", Bar::AtMost(1.0));
    let name = "three heads on a clip of 8: served / (backbone + heads)";
    let ratio = median(served) / median(own);
    report.held(name, ratio, "ratio", Bar::AtMost(1.1));
    Ok(())
}

/// 32 callers ask different heads for the same 100 frames at once.
async fn equal_frames(
    report: &mut Report,
    runtime: &Runtime,
    repository: &Repository,
) -> anyhow::Result<()> {
    let config = EngineConfig {
        cache_bytes: 256 << 20,
        ..EngineConfig::default()
    };
    let engine = Arc::new(Engine::start(runtime, repository, config)?);
    let frames: Vec<Bytes> = (0..100).map(|_| pixels()).collect();
    let calls: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (engine, frames) = (Arc::clone(&engine), frames.clone());
            tokio::spawn(async move {
                let name = ["objects", "scene", "motion"][caller % 3];
                for frame in frames {
                    let count = if name == "motion" { FRAMES } else { 1 };
                    let images = (0..count)
                        .map(|_| (source(frame.clone()), "image".to_owned()))
                        .collect();
                    let heads = engine.head(name).into_iter().collect();
                    let request = Request {
                        images,
                        heads,
                        ..Request::default()
                    };
                    engine.run(request).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for call in calls {
        call.await??;
    }
    let rows = engine.counters().backbone_rows as f64;
    engine.stop();
    let name = "32 callers, three heads, the same 100 frames";
    report.held(name, rows, "runs", Bar::Exactly(100.0));
    Ok(())
}
