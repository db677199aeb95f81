//! Features on a device. Host memory stands in for a GPU's: every step of the resident path runs (bound slots, views,
//! gathering, downloads, the cache's two shelves, one synchronization a batch), and failures are made on demand.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use frostline::{
    backend::{
        BackendError, CachePolicy, DeviceChoice, DeviceOptions, Element, Fault, FeatureRow,
        Runtime, TensorRow,
    },
    engine::{Engine, EngineConfig, FeatureSource, Outcome, Request, Source},
    proto,
    repository::Repository,
};
use tokio::task::JoinSet;
use tonic::Code;

use crate::{
    process::check,
    support::{Running, one_lane, png},
};

fn emulated() -> DeviceOptions {
    DeviceOptions {
        emulate: true,
        ..DeviceOptions::default()
    }
}

fn on(options: &DeviceOptions) -> Runtime {
    Runtime::load(None).unwrap().on(options).unwrap()
}

fn engine(runtime: &Runtime, config: EngineConfig) -> Arc<Engine> {
    let repository = Repository::embedded().unwrap();
    Arc::new(Engine::start(runtime, &repository, config).unwrap())
}

/// A request for the features and every head that reads one image.
fn request(engine: &Engine, image: Bytes) -> Request {
    let heads = engine.heads();
    let heads = heads.into_iter().filter(|head| head.manifest.frames() == 1);
    Request {
        images: vec![(Source::Encoded(image), "image".to_owned())],
        heads: heads.collect(),
        features: Some([128, 128]),
        ..Request::default()
    }
}

fn values(row: &FeatureRow) -> BTreeMap<String, Vec<u8>> {
    let own = |map: TensorRow<'_>| (map.name.to_owned(), map.bytes().to_vec());
    row.maps().map(own).collect()
}

/// What the heads found, for comparing exactly.
fn found(heads: &[Outcome]) -> Vec<String> {
    heads.iter().map(|outcome| format!("{outcome:?}")).collect()
}

async fn answer(engine: &Engine, image: Bytes) -> (BTreeMap<String, Vec<u8>>, Vec<String>) {
    let analysis = engine.run(request(engine, image)).await.unwrap();
    let outcomes: Vec<_> = analysis
        .heads
        .into_iter()
        .map(|(_, r)| r.unwrap())
        .collect();
    (values(&analysis.features.unwrap()), found(&outcomes))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_gives_what_the_cpu_gives_to_the_last_bit() {
    let cpu = engine(&Runtime::load(None).unwrap(), one_lane());
    let device = engine(&on(&emulated()), one_lane());
    assert!(device.device().is_resident());
    for seed in 0..6 {
        let image = png(150, 130, seed);
        let (want, got) = (
            answer(&cpu, image.clone()).await,
            answer(&device, image).await,
        );
        assert_eq!(got, want);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clip_whose_frames_come_from_several_batches_is_put_together_on_the_device() {
    let answers = |runtime: Runtime| async move {
        // Batches of 3: a clip of 8 frames lies in several.
        let config = EngineConfig {
            max_batch: 3,
            buckets: Some(vec![3]),
            ..one_lane()
        };
        let server = Running::start_on(runtime, config).await;
        let mut client = server.client().await;
        let frames: Vec<_> = (0..8).map(|frame| png(96, 96, 50 + frame)).collect();
        let mut answer = client.analyze_clip(frames, &[]).await.unwrap();
        answer.provenance = None;
        server.stop().await;
        answer
    };
    let strip = |answer: proto::AnalyzeResponse| -> Vec<_> {
        answer
            .results
            .into_iter()
            .map(|r| (r.head, r.outcome))
            .collect()
    };
    let want = strip(answers(Runtime::load(None).unwrap()).await);
    let got = strip(answers(on(&emulated())).await);
    assert_eq!(got.len(), 3);
    assert_eq!(got, want);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_go_up_once_and_only_what_the_heads_found_comes_down() {
    let engine = engine(
        &on(&emulated()),
        EngineConfig {
            buckets: Some(vec![1]),
            ..one_lane()
        },
    );
    let head = engine.head("objects").unwrap();
    let only = |image| Request {
        heads: vec![Arc::clone(&head)],
        features: None,
        ..request(&engine, image)
    };
    let before = engine.device().copied();
    for seed in 0..5 {
        engine.run(only(png(90, 90, seed))).await.unwrap();
    }
    let after = engine.device().copied();
    assert_eq!(after.to_device - before.to_device, 5 * 128 * 128 * 3);
    // The head's outputs, from its graph's shapes.
    let outputs = outputs_of("objects");
    assert_eq!(after.to_host - before.to_host, 5 * outputs);

    // Features come down only for those who ask for them.
    let analysis = engine.run(request(&engine, png(90, 90, 9))).await.unwrap();
    let features: usize = analysis.features.unwrap().bytes();
    let all: u64 = ["objects", "scene"].map(outputs_of).iter().sum();
    let copied = engine.device().copied().to_host - after.to_host;
    assert_eq!(copied, all + features as u64);
}

/// Bytes of a head's outputs for one call, as the CPU gives them.
fn outputs_of(name: &str) -> u64 {
    use frostline::backend::{Backbone, HeadModel, HeadRow, SessionOptions};
    let (runtime, repository) = (
        Runtime::load(None).unwrap(),
        Repository::embedded().unwrap(),
    );
    let options = SessionOptions {
        lanes: 1,
        threads: 1,
    };
    let backbone =
        Backbone::load(&runtime, &repository.backbone, &repository.graph, options).unwrap();
    let entry = repository
        .heads
        .iter()
        .find(|entry| entry.manifest.name == name)
        .unwrap();
    let model = HeadModel::load(&runtime, entry, &backbone, options).unwrap();
    let outputs = model
        .dry_run(0, &backbone, entry.manifest.input_size, 1)
        .unwrap();
    let row = HeadRow::new(&Arc::new(outputs), 0);
    let bytes = |t: TensorRow<'_>| t.shape.iter().product::<usize>() * Element::size(t.element);
    row.tensors().map(bytes).sum::<usize>() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_rows_stay_on_the_device_then_move_to_the_host_then_go() {
    let row = {
        let engine = engine(&on(&emulated()), one_lane());
        let analysis = engine.run(request(&engine, png(64, 64, 0))).await.unwrap();
        analysis.features.unwrap().bytes()
    };
    for (policy, kept) in [(CachePolicy::Spill, 5), (CachePolicy::Drop, 2)] {
        let options = DeviceOptions {
            cache_bytes: 2 * row,
            cache_policy: policy,
            ..emulated()
        };
        let config = EngineConfig {
            cache_bytes: 3 * row,
            ..one_lane()
        };
        let engine = engine(&on(&options), config);
        let mut first = Vec::new();
        for seed in 0..8 {
            first.push(answer(&engine, png(64, 64, seed)).await);
        }
        assert_eq!(engine.load().cache_bytes, kept * row, "{policy:?}");
        // The newest are there, on the device or off it, and their heads find the same.
        let newest = 8 - kept..8;
        for seed in newest.clone().rev() {
            let image = png(64, 64, seed as u32);
            let analysis = engine.run(request(&engine, image.clone())).await.unwrap();
            assert_eq!(
                analysis.provenance.source,
                FeatureSource::Cached,
                "{policy:?} {seed}"
            );
            assert_eq!(
                answer(&engine, image).await,
                first[seed],
                "{policy:?} {seed}"
            );
        }
        assert_eq!(engine.counters().backbone_rows, 8, "{policy:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_memory_halves_batches_and_loses_no_request() {
    let runtime = on(&emulated());
    let config = EngineConfig {
        max_batch: 8,
        // Every batch is padded to 8 rows, which is more than there is memory for.
        buckets: Some(vec![8]),
        ..one_lane()
    };
    let server = Running::start_on(runtime.clone(), config).await;
    let faults = runtime.device().faults();
    faults.out_of_memory_above.store(2, Ordering::Relaxed);
    let mut calls = JoinSet::new();
    for seed in 0..24 {
        let mut client = server.client().await;
        calls.spawn(async move {
            let image = png(80, 80, seed);
            client.analyze_image(image, &["objects", "scene"]).await
        });
    }
    while let Some(answer) = calls.join_next().await {
        let results = answer.unwrap().unwrap().results;
        assert_eq!(results.len(), 2);
        let answered = |result: &proto::HeadResult| {
            !matches!(
                result.outcome,
                None | Some(proto::head_result::Outcome::Error(_))
            )
        };
        assert!(results.iter().all(answered), "{results:?}");
    }
    assert_eq!(server.engine.counters().backbone_rows, 24);
    assert!(
        faults.struck.load(Ordering::Relaxed) > 0,
        "no batch was halved"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_device_fails_its_calls_flips_health_and_ends_the_server() {
    let runtime = on(&emulated());
    let server = Running::start_on(runtime.clone(), one_lane()).await;
    let mut client = server.client().await;
    assert!(client.serving("").await.unwrap());
    client.detect(png(80, 80, 1)).await.unwrap();
    runtime
        .device()
        .faults()
        .lost
        .store(true, Ordering::Relaxed);
    let refused = client.detect(png(80, 80, 2)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    // The server ends with an error, which the process turns into its exit code.
    let error = server.ended().await.unwrap_err();
    assert!(error.to_string().contains("device"), "{error}");
}

#[test]
fn strict_refuses_a_graph_whose_nodes_fell_back_and_names_them() {
    let strict = DeviceOptions {
        strict: true,
        ..emulated()
    };
    let repository = Repository::embedded().unwrap();
    let refused = Engine::start(&on(&strict), &repository, one_lane());
    let error = refused.err().unwrap();
    assert!(matches!(error, BackendError::Contract { .. }));
    let error = error.to_string();
    // The stand-in has no provider of its own, so that every node has fallen back.
    for part in [
        "backbone.onnx: device.strict",
        "nodes do not run on",
        "MatMul (",
        "Softmax (",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_batch_without_memory_is_told_from_one_that_cannot_run() {
    let runtime = on(&emulated());
    let repository = Repository::embedded().unwrap();
    let options = frostline::backend::SessionOptions {
        lanes: 1,
        threads: 1,
    };
    let backbone = frostline::backend::Backbone::load(
        &runtime,
        &repository.backbone,
        &repository.graph,
        options,
    )
    .unwrap();
    runtime
        .device()
        .faults()
        .out_of_memory_above
        .store(1, Ordering::Relaxed);
    let error = backbone.run_images(0, [128, 128], &[], 2).unwrap_err();
    assert_eq!(error.fault(), Fault::OutOfMemory);
    assert!(backbone.run_images(0, [128, 128], &[], 1).is_ok());
    let too_many = vec![0; 128 * 128 * 3 + 1];
    let error = backbone.run(0, [128, 128], &too_many, 1).unwrap_err();
    assert_eq!(error.fault(), Fault::Graph);
}

// === what a machine without a GPU says ===

/// The library of this test run in a folder of its own, beside the given files.
fn library_beside(files: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let own = Runtime::load(None)
        .unwrap()
        .library()
        .canonicalize()
        .unwrap();
    let library = folder.path().join("libonnxruntime.so");
    std::os::unix::fs::symlink(own, &library).unwrap();
    for file in files {
        std::fs::write(folder.path().join(file), b"").unwrap();
    }
    (folder, library)
}

#[test]
fn a_device_that_the_library_cannot_use_is_one_sentence() {
    let (_folder, library) = library_beside(&[]);
    let library = format!("device.library={}", library.display());
    for (device, provider) in [("cuda:0", "cuda"), ("tensorrt:1", "cuda")] {
        let (code, said) = check(&[&library, &format!("device.device={device}")]);
        assert_eq!(code, Some(1), "{said}");
        let wanted = format!(
            "the device {device} cannot be used: libonnxruntime_providers_{provider}.so is not beside"
        );
        assert!(said.contains(&wanted), "{said}");
        assert!(said.contains("the GPU build is needed"), "{said}");
    }
    let (code, said) = check(&["device.device=gpu"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("\"cuda:N\" or \"tensorrt:N\""), "{said}");
}

#[test]
fn tensorrt_does_not_build_engines_unasked() {
    let providers = [
        "libonnxruntime_providers_cuda.so",
        "libonnxruntime_providers_tensorrt.so",
    ];
    let (folder, library) = library_beside(&providers);
    let library = format!("device.library={}", library.display());
    let (_, said) = check(&[&library, "device.device=tensorrt:0"]);
    assert!(said.contains("set device.tensorrt_engine_cache"), "{said}");
    let cache = format!("device.tensorrt_engine_cache={}", folder.path().display());
    let (_, said) = check(&[&library, "device.device=tensorrt:0", &cache]);
    assert!(said.contains("holds no built engine"), "{said}");
}

#[test]
fn auto_without_a_gpu_is_the_cpu_and_says_why() {
    let (_folder, library) = library_beside(&[]);
    let options = DeviceOptions::default();
    assert_eq!(options.device, DeviceChoice::Auto);
    let library = format!("device.library={}", library.display());
    let (code, said) = check(&[&library]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("device cpu: "), "{said}");
    assert!(said.contains("CPU build"), "{said}");
}
