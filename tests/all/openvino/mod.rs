//! The backbone through OpenVINO's plugin, beside ONNX Runtime's own provider.

use std::{
    collections::BTreeMap, fs, os::unix::fs::symlink, path::Path, sync::Arc, time::Duration,
};

use frostline::{
    backend::{
        Backbone, DeviceChoice, DeviceOptions, FeatureBatch, FeatureRow, Precision, Runtime,
        SessionOptions,
    },
    engine::{self, Engine, EngineConfig, Outcome, Request, Source, TrialOptions},
    proto,
    repository::Repository,
};

use crate::{
    common::openvino::{FILES, PLUGIN, is_intel, plugin},
    support::{Running, one_lane, png},
};

mod told;
mod trial;

const SIZE: [u32; 2] = [128, 128];
const IMAGE: usize = 128 * 128 * 3;

/// The runtime with OpenVINO; `None` where there is none to test.
fn openvino(precision: Precision) -> Option<Runtime> {
    let options = DeviceOptions {
        device: DeviceChoice::OpenVino,
        precision,
        openvino_plugin: Some(plugin()?.to_path_buf()),
        ..DeviceOptions::default()
    };
    Some(Runtime::load(None).unwrap().on(&options).unwrap())
}

fn backbone(runtime: &Runtime, lanes: usize) -> Backbone {
    let repository = Repository::embedded().unwrap();
    let options = SessionOptions { lanes, threads: 1 };
    Backbone::load(runtime, &repository.backbone, &repository.graph, options).unwrap()
}

/// Images that differ.
fn images(count: usize) -> Vec<u8> {
    let level = |i: usize| ((i / 3 % 128) * 2 + i / 384 + (i / IMAGE) * 31 + i % 3 * 70) as u8;
    (0..count * IMAGE).map(level).collect()
}

fn floats(batch: &Arc<FeatureBatch>, index: usize) -> BTreeMap<String, Vec<f32>> {
    let row = FeatureRow::new(batch, index);
    let map = |map: frostline::backend::TensorRow<'_>| {
        let values = map.f32().unwrap().iter().copied().collect();
        (map.name.to_owned(), values)
    };
    row.maps().map(map).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The least cosine of a level's features, and the largest distance in standard deviations.
fn distance(a: &BTreeMap<String, Vec<f32>>, b: &BTreeMap<String, Vec<f32>>) -> (f64, f64) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let (mut least, mut furthest) = (1.0_f64, 0.0_f64);
    for (name, a) in a {
        let b = &b[name];
        assert_eq!(a.len(), b.len());
        least = least.min(cosine(a, b));
        let mean = a.iter().sum::<f32>() / a.len() as f32;
        let spread = (a.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / a.len() as f32).sqrt();
        let most = a
            .iter()
            .zip(b)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        furthest = furthest.max(f64::from(most / spread));
    }
    (least, furthest)
}

#[test]
fn every_batch_size_and_lane_gives_the_features_of_onnx_runtimes_own_provider() {
    let Some(runtime) = openvino(Precision::Fp32) else {
        return;
    };
    assert_eq!(runtime.device().name(), "openvino:cpu");
    assert_eq!(runtime.device().precision(), None);
    let own = backbone(&Runtime::load(None).unwrap(), 1);
    let compiled = backbone(&runtime, 2);
    let placed = compiled.placement().unwrap();
    assert_eq!(placed.fallen_back, [], "{}", placed.summary());
    assert!(
        placed.nodes["OpenVINOExecutionProvider"] > 100,
        "{}",
        placed.summary()
    );
    let all = images(6);
    let expected = Arc::new(own.run(0, SIZE, &all, 6).unwrap());
    let same = |lane: usize, rows: usize, compiled: &Backbone| {
        let batch = compiled
            .run(lane, SIZE, &all[..rows * IMAGE], rows)
            .unwrap();
        assert!(batch.rows() >= rows);
        let batch = Arc::new(batch);
        for row in 0..rows {
            let (least, furthest) = distance(&floats(&expected, row), &floats(&batch, row));
            assert!(
                least > 0.999_999 && furthest < 1e-3,
                "{rows} rows, row {row}: {least} {furthest}"
            );
        }
    };
    // Only single images are compiled so far: more are run in parts.
    same(0, 3, &compiled);
    compiled.prepare(SIZE, 4).unwrap();
    // In one run, with a blank row, in two runs.
    for rows in [4, 3, 5] {
        same(1, rows, &compiled);
    }
    // What is let go of is run in parts again.
    compiled.settle(|_| vec![1]);
    std::thread::scope(|scope| {
        for lane in 0..2 {
            let (same, compiled) = (&same, &compiled);
            scope.spawn(move || (0..4).for_each(|_| same(lane, 4, compiled)));
        }
    });
}

#[test]
fn a_registered_plugin_takes_no_part_in_other_sessions() {
    if openvino(Precision::Fp32).is_none() {
        return;
    }
    // A device that notes where nodes go and names no provider of its own.
    let options = DeviceOptions {
        emulate: true,
        ..DeviceOptions::default()
    };
    let emulated = Runtime::load(None).unwrap().on(&options).unwrap();
    let placed = backbone(&emulated, 1).placement().unwrap();
    let providers: Vec<_> = placed.nodes.keys().map(String::as_str).collect();
    assert_eq!(providers, ["CPUExecutionProvider"]);
}

fn engine(runtime: &Runtime) -> Arc<Engine> {
    let repository = Repository::embedded().unwrap();
    let config = EngineConfig {
        lanes: 2,
        ..EngineConfig::default()
    };
    Arc::new(Engine::start(runtime, &repository, config).unwrap())
}

/// What every head that reads one image finds.
async fn outcomes(engine: &Engine, seed: u32) -> Vec<Outcome> {
    let heads = engine.heads().into_iter();
    let request = Request {
        images: vec![(Source::Encoded(png(200, 150, seed)), "image".to_owned())],
        heads: heads.filter(|head| head.manifest.frames() == 1).collect(),
        ..Request::default()
    };
    let analysis = engine.run(request).await.unwrap();
    analysis
        .heads
        .into_iter()
        .map(|(_, found)| found.unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_find_the_same_on_openvinos_features() {
    let Some(runtime) = openvino(Precision::Fp32) else {
        return;
    };
    let (own, compiled) = (engine(&Runtime::load(None).unwrap()), engine(&runtime));
    let mut objects = 0;
    for seed in 0..6 {
        let found = outcomes(&own, seed).await.into_iter();
        for pair in found.zip(outcomes(&compiled, seed).await) {
            match pair {
                (Outcome::Detection(a), Outcome::Detection(b)) => {
                    assert_eq!(a.len(), b.len(), "{seed}");
                    for (a, b) in a.iter().zip(&b) {
                        let apart = a.bbox.iter().zip(b.bbox).map(|(a, b)| (a - b).abs());
                        assert!(
                            apart.fold(0.0, f32::max) < 0.05 && (a.score - b.score).abs() < 1e-3
                        );
                    }
                    objects += a.len();
                }
                (Outcome::Segmentation(a), Outcome::Segmentation(b)) => {
                    let (a, b) = (a.counts, b.counts);
                    let total: u64 = a.iter().map(|(_, pixels)| pixels).sum();
                    let of = |all: &[(u32, u64)], label| {
                        all.iter()
                            .find(|(l, _)| *l == label)
                            .map_or(0, |(_, pixels)| *pixels)
                    };
                    let moved: u64 = a.iter().map(|(l, n)| n.abs_diff(of(&b, *l))).sum();
                    assert!(moved * 1000 <= total, "{moved} of {total} pixels");
                }
                (a, b) => panic!("{a:?} and {b:?}"),
            }
        }
    }
    assert!(objects > 0, "nothing was compared");
    own.stop();
    compiled.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_precision_is_part_of_the_served_identity() {
    let Some(folder) = plugin() else {
        return;
    };
    let sha256 = Repository::embedded().unwrap().backbone.sha256;
    let bf16 = DeviceOptions {
        device: DeviceChoice::OpenVino,
        precision: Precision::Bf16,
        openvino_plugin: Some(folder.to_path_buf()),
        ..DeviceOptions::default()
    };
    let (runtime, fingerprint, precision) = match Runtime::load(None).unwrap().on(&bf16) {
        Ok(runtime) => (runtime, format!("{sha256}+bf16"), proto::Precision::Bf16),
        Err(error) => {
            let said = error.to_string();
            assert!(
                said.contains("does not compute in bf16") && said.contains("FP32"),
                "{said}"
            );
            (
                openvino(Precision::Auto).unwrap(),
                sha256,
                proto::Precision::Fp32,
            )
        }
    };
    let running = Running::start_on(runtime.clone(), one_lane()).await;
    let channel = running.channel().await;
    let mut models = proto::model_service_client::ModelServiceClient::new(channel.clone());
    let asked = models.get_backbone(proto::GetBackboneRequest {}).await;
    let told = asked.unwrap().into_inner().backbone.unwrap();
    assert_eq!(
        (told.fingerprint.as_str(), told.precision()),
        (&*fingerprint, precision)
    );
    let mut vision = proto::vision_service_client::VisionServiceClient::new(channel);
    let image = frostline::client::encoded(png(64, 64, 1));
    let request = proto::ExtractFeaturesRequest {
        image: Some(image),
        ..Default::default()
    };
    let answer = vision.extract_features(request).await.unwrap().into_inner();
    assert_eq!(answer.provenance.unwrap().backbone, fingerprint);
    running.stop().await;
    if precision == proto::Precision::Bf16 {
        let own = backbone(&Runtime::load(None).unwrap(), 1);
        let all = images(2);
        let expected = Arc::new(own.run(0, SIZE, &all, 2).unwrap());
        let found = Arc::new(backbone(&runtime, 1).run(0, SIZE, &all, 2).unwrap());
        for row in 0..2 {
            let (least, furthest) = distance(&floats(&expected, row), &floats(&found, row));
            assert!(least >= 0.999 && furthest > 1e-4, "{least} {furthest}");
        }
    }
}
