//! The measuring half of the GPU kit: a bare ONNX Runtime loop, Frostline in process and over gRPC, a soak, failures and
//! parity, on one device. `kit.py` runs it; each result is a line of JSON on standard output.
//!
//! usage: gpu PART REPOSITORY DEVICE BATCH SECONDS HEADS      HEADS: names joined by commas; none: the backbone alone
//!
//! A server has no call that runs the backbone and gives nothing: where the backbone alone is measured, Frostline's parts
//! run the head `pooled`, which averages the last map. The bare loop then runs no head at all.

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
    backend::{CopiedBytes, DeviceChoice, DeviceOptions, Runtime},
    client::{self, Client},
    engine::{Engine, EngineConfig, Head, Request, Source},
    proto,
    repository::Repository,
    server::{self, ServerConfig},
};
use serde_json::json;
use tokio::{net::TcpListener, sync::oneshot};

mod bare;

/// The server's allocator: what is measured here is what it does.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Turns that a median and its spread are of.
const TURNS: usize = 5;

/// The head that stands for none.
const POOLED: &str = "pooled";

/// What was asked for.
#[derive(Clone)]
struct Arguments {
    part: String,
    repository: String,
    device: String,
    batch: usize,
    seconds: f64,
    heads: Vec<String>,
}

impl Arguments {
    fn read() -> anyhow::Result<Self> {
        let given: Vec<String> = std::env::args()
            .skip(1)
            .filter(|a| a != "--bench")
            .collect();
        let [part, repository, device, batch, seconds, heads] = &given[..] else {
            anyhow::bail!("usage: gpu PART REPOSITORY DEVICE BATCH SECONDS HEADS");
        };
        let heads = heads.split(',').filter(|head| !head.is_empty());
        Ok(Self {
            part: part.clone(),
            repository: repository.clone(),
            device: device.clone(),
            batch: batch.parse()?,
            seconds: seconds.parse()?,
            heads: heads.map(str::to_owned).collect(),
        })
    }

    /// The number of the CUDA device; `None` for the CPU.
    fn gpu(&self) -> anyhow::Result<Option<usize>> {
        match self.device.parse().map_err(anyhow::Error::msg)? {
            DeviceChoice::Cpu => Ok(None),
            DeviceChoice::Cuda(number) => Ok(Some(number as usize)),
            other => anyhow::bail!("{other}: the kit measures \"cpu\" and \"cuda:N\""),
        }
    }

    fn runs(&self, head: &str) -> bool {
        self.heads.iter().any(|name| name == head)
    }

    /// A result for the table.
    fn say(&self, device: &str, values: serde_json::Value) {
        let line = json!({
            "part": self.part, "device": device, "batch": self.batch, "heads": self.heads.len(),
        });
        println!("{}", merge(line, values));
    }
}

struct Kit {
    runtime: Runtime,
    repository: Repository,
    size: [u32; 2],
    arguments: Arguments,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    if arguments.part == "bare" {
        return bare::run(&arguments);
    }
    let options = DeviceOptions {
        device: arguments.device.parse().map_err(anyhow::Error::msg)?,
        cuda_graphs: std::env::var_os("KIT_CUDA_GRAPHS").is_some(),
        ..DeviceOptions::default()
    };
    let runtime = Runtime::load(None)?.on(&options)?;
    let repository = Repository::open(Path::new(&arguments.repository))?;
    let kit = Kit {
        size: repository.backbone.input.sizes[0],
        runtime,
        repository,
        arguments,
    };
    let executor = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    match kit.arguments.part.as_str() {
        "engine" => executor.block_on(kit.engine(false)),
        "grpc" => executor.block_on(kit.engine(true)),
        "soak" => executor.block_on(kit.soak()),
        "oom" => executor.block_on(kit.out_of_memory()),
        "parity" => executor.block_on(kit.parity()),
        other => anyhow::bail!("there is no part {other:?}"),
    }
}

/// Raw images of `[height, width]` that differ, so that nothing is shared.
fn images([height, width]: [u32; 2], count: usize) -> Vec<Bytes> {
    let bytes = height as usize * width as usize * 3;
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

impl Kit {
    fn say(&self, values: serde_json::Value) {
        self.arguments
            .say(&self.runtime.device().describe(), values);
    }

    /// The heads that Frostline runs: one that costs nothing where there should be none.
    fn heads(&self) -> Vec<String> {
        match self.arguments.heads.is_empty() {
            true => vec![POOLED.to_owned()],
            false => self.arguments.heads.clone(),
        }
    }

    fn config(&self) -> EngineConfig {
        EngineConfig {
            max_batch: self.arguments.batch,
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
        self.heads()
            .iter()
            .filter_map(|name| engine.head(name))
            .collect()
    }

    async fn engine(&self, grpc: bool) -> anyhow::Result<()> {
        let (engine, ready) = self.start(self.config())?;
        let heads = self.chosen(&engine);
        let images = Arc::new(images(self.size, self.arguments.batch * 4));
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
            let names = self.heads();
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
            let (rate, mut took) = load(
                self.arguments.batch * 3,
                &images,
                self.arguments.seconds,
                call,
            )
            .await?;
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
        let images = Arc::new(images(self.size, self.arguments.batch * 4));
        let until = Instant::now() + Duration::from_secs_f64(self.arguments.seconds);
        let (mut memory, mut calls, mut reloads) = (Vec::new(), 0, 0);
        let mut turn = 0;
        while Instant::now() < until {
            // Bursts of other sizes, so that every bucket is used.
            turn += 1;
            let width = 1 + turn * 7 % (self.arguments.batch * 3);
            let (own, heads, size) = (Arc::clone(&engine), self.chosen(&engine), self.size);
            let call = move |image: Bytes| {
                let (engine, heads) = (Arc::clone(&own), heads.clone());
                async move { in_process(&engine, size, image, heads).await }
            };
            let seconds = (self.arguments.seconds / 40.0).max(0.2);
            let reloader = Arc::clone(&engine);
            let heads = self.heads();
            let name = heads[turn % heads.len()].clone();
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
            buckets: Some(vec![self.arguments.batch]),
            ..self.config()
        })?;
        let faults = engine.device().faults();
        let most = (self.arguments.batch / 2).max(1);
        faults.out_of_memory_above.store(most, Ordering::Relaxed);
        let images = Arc::new(images(self.size, self.arguments.batch * 4));
        let (heads, own, size) = (self.chosen(&engine), Arc::clone(&engine), self.size);
        let call = move |image: Bytes| {
            let (engine, heads) = (Arc::clone(&own), heads.clone());
            async move { in_process(&engine, size, image, heads).await }
        };
        // A call that fails ends the part with its error.
        let answered = load(
            self.arguments.batch * 3,
            &images,
            self.arguments.seconds,
            call,
        )
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
            for image in images(self.size, 3) {
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
