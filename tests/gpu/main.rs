//! The measuring half of the GPU kit: a bare ONNX Runtime loop, Frostline in process and over gRPC, a soak, failures and
//! parity, on one device. `kit.py` runs it; each result is a line of JSON on standard output.
//!
//! usage: gpu PART REPOSITORY DEVICE BATCH SECONDS HEADS      HEADS: names joined by commas

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use frostline::{
    backend::{
        Backbone, CopiedBytes, DeviceOptions, FeatureRow, HeadModel, Runtime, SessionOptions,
    },
    client::{self, Client},
    engine::{Engine, EngineConfig, Head, Request, Source},
    proto,
    repository::Repository,
    server::{self, ServerConfig},
};
use serde_json::json;
use tokio::{net::TcpListener, sync::oneshot};

/// Turns that a median and its spread are of.
const TURNS: usize = 5;

struct Kit {
    runtime: Runtime,
    repository: Repository,
    size: [u32; 2],
    batch: usize,
    seconds: f64,
    heads: Vec<String>,
    part: String,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let [part, repository, device, batch, seconds, heads] = &arguments[..] else {
        anyhow::bail!("usage: gpu PART REPOSITORY DEVICE BATCH SECONDS HEADS");
    };
    let options = DeviceOptions {
        device: device.parse().map_err(anyhow::Error::msg)?,
        cuda_graphs: std::env::var_os("KIT_CUDA_GRAPHS").is_some(),
        ..DeviceOptions::default()
    };
    let runtime = Runtime::load(None)?.on(&options)?;
    let repository = Repository::open(Path::new(repository))?;
    let kit = Kit {
        size: repository.backbone.input.sizes[0],
        runtime,
        repository,
        batch: batch.parse()?,
        seconds: seconds.parse()?,
        heads: heads
            .split(',')
            .filter(|h| !h.is_empty())
            .map(str::to_owned)
            .collect(),
        part: part.clone(),
    };
    let executor = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    match part.as_str() {
        "bare" => kit.bare(),
        "engine" => executor.block_on(kit.engine(false)),
        "grpc" => executor.block_on(kit.engine(true)),
        "soak" => executor.block_on(kit.soak()),
        "oom" => executor.block_on(kit.out_of_memory()),
        "parity" => executor.block_on(kit.parity()),
        other => anyhow::bail!("there is no part {other:?}"),
    }
}

impl Kit {
    fn say(&self, values: serde_json::Value) {
        let mut line = json!({
            "part": self.part, "device": self.runtime.device().describe(), "batch": self.batch,
            "model": self.repository.backbone.name, "heads": self.heads.len(),
        });
        if let (Some(line), Some(values)) = (line.as_object_mut(), values.as_object()) {
            line.extend(values.clone());
        }
        println!("{line}");
    }

    /// Images that differ, so that nothing is shared.
    fn images(&self, count: usize) -> Vec<Bytes> {
        let bytes = self.size[0] as usize * self.size[1] as usize * 3;
        let pixel = |seed: usize, i: usize| (i * 7 + i / 1009 * 31 + seed * 101) as u8;
        (0..count)
            .map(|seed| {
                (0..bytes)
                    .map(|i| pixel(seed, i))
                    .collect::<Vec<u8>>()
                    .into()
            })
            .collect()
    }

    /// The graphs alone, in a loop: bound memory on a device, no queue, no server, one batch after another.
    fn bare(&self) -> anyhow::Result<()> {
        let options = SessionOptions {
            lanes: 1,
            threads: 1,
        };
        let (manifest, graph) = (&self.repository.backbone, &self.repository.graph);
        let backbone = Backbone::load(&self.runtime, manifest, graph, options)?;
        let entries = self.repository.heads.iter();
        let heads: Vec<_> = entries
            .filter(|entry| self.heads.contains(&entry.manifest.name))
            .map(|entry| HeadModel::load(&self.runtime, entry, &backbone, options))
            .collect::<Result<_, _>>()?;
        let images = self.images(self.batch);
        let images: Vec<&[u8]> = images.iter().map(|image| &image[..]).collect();
        let step = || -> anyhow::Result<()> {
            let batch = Arc::new(backbone.run_images(0, self.size, &images, self.batch)?);
            let rows: Vec<_> = (0..self.batch)
                .map(|i| FeatureRow::new(&batch, i))
                .collect();
            let answers: Result<Vec<_>, _> = heads
                .iter()
                .map(|head| head.run(0, &rows, self.batch))
                .collect();
            answers?;
            backbone.device().synchronize()?;
            Ok(())
        };
        (0..3).try_for_each(|_| step())?;
        let before = backbone.device().copied();
        let mut rates = Vec::new();
        let mut done = 0;
        for _ in 0..TURNS {
            let (begun, mut rows) = (Instant::now(), 0);
            while begun.elapsed().as_secs_f64() < self.seconds {
                step()?;
                rows += self.batch;
            }
            rates.push(rows as f64 / begun.elapsed().as_secs_f64());
            done += rows;
        }
        self.say(merge(
            rate(rates),
            copied(before, backbone.device().copied(), done),
        ));
        Ok(())
    }

    fn config(&self) -> EngineConfig {
        EngineConfig {
            max_batch: self.batch,
            buckets: None,
            ..EngineConfig::default()
        }
    }

    fn start(&self, config: EngineConfig) -> anyhow::Result<(Arc<Engine>, f64)> {
        let begun = Instant::now();
        let engine = Engine::start(&self.runtime, &self.repository, config)?;
        Ok((Arc::new(engine), begun.elapsed().as_secs_f64()))
    }

    fn chosen(&self, engine: &Engine) -> Vec<Arc<Head>> {
        self.heads
            .iter()
            .filter_map(|name| engine.head(name))
            .collect()
    }

    async fn engine(&self, grpc: bool) -> anyhow::Result<()> {
        let (engine, ready) = self.start(self.config())?;
        let heads = self.chosen(&engine);
        let images = Arc::new(self.images(self.batch * 4));
        let mut served = None;
        if grpc {
            served = Some(Served::start(&engine).await?);
        }
        let before = engine.device().copied();
        let (mut rates, mut times) = (Vec::new(), Vec::new());
        let mut done = 0;
        for turn in 0..=TURNS {
            let (engine, heads) = (Arc::clone(&engine), heads.clone());
            let (client, size) = (served.as_ref().map(|s| s.client.clone()), self.size);
            let names = self.heads.clone();
            let call = move |image: Bytes| {
                let (engine, heads) = (Arc::clone(&engine), heads.clone());
                let (client, names) = (client.clone(), names.clone());
                async move {
                    match client {
                        Some(client) => over_grpc(client, size, image, names).await,
                        None => in_process(&engine, size, image, heads).await,
                    }
                }
            };
            let (rate, mut took) = load(self.batch * 3, &images, self.seconds, call).await?;
            done += took.len();
            if turn > 0 {
                rates.push(rate);
                times.append(&mut took);
            }
        }
        let counters = engine.counters();
        let rows = counters.backbone_rows.max(1);
        let more = json!({
            "p50_ms": quantile(&mut times, 0.5), "p99_ms": quantile(&mut times, 0.99),
            "ready_s": ready, "padding": counters.backbone_padding as f64 / rows as f64,
            "device_bytes_used": used(&engine), "resident_bytes": resident(),
        });
        let copies = copied(before, engine.device().copied(), done);
        self.say(merge(merge(rate(rates), copies), more));
        if let Some(served) = served {
            served.stop().await?;
        }
        Ok(())
    }

    /// Mixed load while heads are loaded anew; memory before and after.
    async fn soak(&self) -> anyhow::Result<()> {
        let (engine, _) = self.start(self.config())?;
        let images = Arc::new(self.images(self.batch * 4));
        let until = Instant::now() + Duration::from_secs_f64(self.seconds);
        let (mut memory, mut calls, mut reloads) = (Vec::new(), 0, 0);
        let mut turn = 0;
        while Instant::now() < until {
            // Bursts of other sizes, so that every bucket is used.
            turn += 1;
            let width = 1 + turn * 7 % (self.batch * 3);
            let (own, heads, size) = (Arc::clone(&engine), self.chosen(&engine), self.size);
            let call = move |image: Bytes| {
                let (engine, heads) = (Arc::clone(&own), heads.clone());
                async move { in_process(&engine, size, image, heads).await }
            };
            let seconds = (self.seconds / 40.0).max(0.2);
            let reloader = Arc::clone(&engine);
            let name = self.heads[turn % self.heads.len()].clone();
            let reload = tokio::task::spawn_blocking(move || reloader.load_head(&name));
            calls += load(width, &images, seconds, call).await?.1.len();
            reload.await??;
            reloads += 1;
            memory.push((used(&engine), resident()));
        }
        // The first turns fill what is kept for later.
        let settled = memory.len() / 4;
        let (from, to) = (memory[settled], memory[memory.len() - 1]);
        self.say(json!({
            "calls": calls, "reloads": reloads, "turns": memory.len(),
            "device_bytes": [from.0, to.0], "resident_bytes_from_to": [from.1, to.1],
        }));
        Ok(())
    }

    /// Every batch of more than half the rows finds no memory: every request is still answered.
    async fn out_of_memory(&self) -> anyhow::Result<()> {
        let (engine, _) = self.start(EngineConfig {
            buckets: Some(vec![self.batch]),
            ..self.config()
        })?;
        let faults = engine.device().faults();
        let most = (self.batch / 2).max(1);
        faults.out_of_memory_above.store(most, Ordering::Relaxed);
        let images = Arc::new(self.images(self.batch * 4));
        let (heads, own, size) = (self.chosen(&engine), Arc::clone(&engine), self.size);
        let call = move |image: Bytes| {
            let (engine, heads) = (Arc::clone(&own), heads.clone());
            async move { in_process(&engine, size, image, heads).await }
        };
        // A call that fails ends the part with its error.
        let answered = load(self.batch * 3, &images, self.seconds, call)
            .await?
            .1
            .len();
        let struck = faults.struck.load(Ordering::Relaxed);
        self.say(json!({ "answered": answered, "lost": 0, "batches_without_memory": struck }));
        anyhow::ensure!(struck > 0, "no batch was struck");
        Ok(())
    }

    /// Features here against the CPU's, least cosine over images and maps.
    async fn parity(&self) -> anyhow::Result<()> {
        let cpu = Runtime::load(None)?;
        let config = EngineConfig {
            max_batch: 1,
            ..EngineConfig::default()
        };
        let mut repository = self.repository.clone();
        repository.heads.clear();
        let (mut least, mut both) = (1.0_f64, Vec::new());
        for runtime in [&cpu, &self.runtime] {
            let engine = Engine::start(runtime, &repository, config.clone())?;
            let mut all = Vec::new();
            for image in self.images(3) {
                let [height, width] = self.size;
                let source = Source::Raw {
                    width,
                    height,
                    rgb: image,
                };
                let request = Request {
                    images: vec![(source, "image".to_owned())],
                    features: Some(self.size),
                    ..Request::default()
                };
                let row = engine.run(request).await?.features.expect("asked for");
                let floats = row
                    .maps()
                    .filter_map(|m| Some(m.f32()?.iter().copied().collect()));
                all.extend(floats.collect::<Vec<Vec<f32>>>());
            }
            both.push(all);
        }
        for (a, b) in both[0].iter().zip(&both[1]) {
            let dot = |x: &[f32], y: &[f32]| {
                x.iter()
                    .zip(y)
                    .map(|(x, y)| f64::from(*x) * f64::from(*y))
                    .sum::<f64>()
            };
            least = least.min(dot(a, b) / (dot(a, a) * dot(b, b)).sqrt());
        }
        anyhow::ensure!(!both[0].is_empty(), "the backbone has no float32 features");
        self.say(json!({ "cosine_to_cpu": least, "maps": both[0].len() }));
        Ok(())
    }
}

/// A server on loopback with a client.
struct Served {
    client: Client,
    stop: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Served {
    async fn start(engine: &Arc<Engine>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = format!("http://{}", listener.local_addr()?);
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let config = ServerConfig {
            lame_duck: Duration::ZERO,
            ..ServerConfig::default()
        };
        let serving = tokio::spawn(server::serve(
            listener,
            Arc::clone(engine),
            config,
            shutdown,
        ));
        let client = Client::connect(&address).await?;
        Ok(Self {
            client,
            stop,
            serving,
        })
    }

    async fn stop(self) -> anyhow::Result<()> {
        drop((self.stop, self.client));
        self.serving.await?
    }
}

async fn in_process(
    engine: &Engine,
    [height, width]: [u32; 2],
    rgb: Bytes,
    heads: Vec<Arc<Head>>,
) -> anyhow::Result<()> {
    let source = Source::Raw { width, height, rgb };
    let request = Request {
        images: vec![(source, "image".to_owned())],
        heads,
        ..Request::default()
    };
    let answers = engine.run(request).await?.heads;
    answers
        .into_iter()
        .try_for_each(|(_, answer)| answer.map(|_| ()))?;
    Ok(())
}

async fn over_grpc(
    mut client: Client,
    [height, width]: [u32; 2],
    rgb: Bytes,
    heads: Vec<String>,
) -> anyhow::Result<()> {
    let image = client::raw(width, height, rgb);
    let input = Some(proto::analyze_request::Input::Image(image));
    let request = proto::AnalyzeRequest {
        input,
        heads,
        ..Default::default()
    };
    client.vision.analyze(request).await?;
    Ok(())
}

/// A closed loop of `width` callers: calls per second, and each call's milliseconds.
async fn load<F: Future<Output = anyhow::Result<()>> + Send + 'static>(
    width: usize,
    images: &Arc<Vec<Bytes>>,
    seconds: f64,
    call: impl Fn(Bytes) -> F + Clone + Send + 'static,
) -> anyhow::Result<(f64, Vec<f64>)> {
    let (next, begun) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..width {
        let (next, images, call) = (Arc::clone(&next), Arc::clone(images), call.clone());
        callers.spawn(async move {
            let mut times = Vec::new();
            while begun.elapsed().as_secs_f64() < seconds {
                let at = next.fetch_add(1, Ordering::Relaxed) as usize % images.len();
                let sent = Instant::now();
                call(images[at].clone()).await?;
                times.push(sent.elapsed().as_secs_f64() * 1e3);
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = callers.join_next().await {
        times.extend(done??);
    }
    Ok((times.len() as f64 / begun.elapsed().as_secs_f64(), times))
}

fn rate(mut rates: Vec<f64>) -> serde_json::Value {
    let (low, high) = (quantile(&mut rates, 0.0), quantile(&mut rates, 1.0));
    json!({ "images_per_s": quantile(&mut rates, 0.5), "low": low, "high": high })
}

fn copied(before: CopiedBytes, after: CopiedBytes, images: usize) -> serde_json::Value {
    let each = |bytes: u64| bytes as f64 / images.max(1) as f64;
    json!({
        "to_device_per_image": each(after.to_device - before.to_device),
        "to_host_per_image": each(after.to_host - before.to_host),
    })
}

fn merge(mut a: serde_json::Value, b: serde_json::Value) -> serde_json::Value {
    if let (Some(a), Some(b)) = (a.as_object_mut(), b.as_object()) {
        a.extend(b.clone());
    }
    a
}

fn quantile(values: &mut [f64], at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (values.len().saturating_sub(1) as f64 * at).round() as usize;
    values.get(index).copied().unwrap_or(f64::NAN)
}

/// Bytes of the device's memory in use; 0 where it is the host's.
fn used(engine: &Engine) -> usize {
    engine
        .device()
        .memory()
        .map_or(0, |(free, total)| total - free)
}

/// Bytes of this process in host memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kib.unwrap_or(0) * 1024
}
