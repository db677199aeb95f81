//! What serving costs beyond ONNX Runtime itself, compared in one run, the contenders taking turns.
//!
//! - *bare*: threads that run the backbone and one head in a loop, at the best of lanes x threads x batch
//! - *engine*: the same images through [`Engine::run`] in this process
//! - *gRPC*: the same images through the server on loopback, the load generator on the same cores
//!
//! Prints a table and writes `target/bench/summary.json`, an entry for each line.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use frostline::{
    backend::{Backbone, FeatureRow, HeadModel, Runtime, SessionOptions},
    client::{self, Client},
    engine::{Engine, EngineConfig, Request, Source},
    media::{self, Filter, Limits, Preprocess, ResizeMode},
    proto,
    repository::{HeadEntry, Repository},
    server::{self, ServerConfig},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::oneshot};

const HEAD: &str = "objects";
const ROUNDS: usize = 3;
const TURN: Duration = Duration::from_secs(3);
const CONCURRENCY: usize = 32;
const INPUT: [u32; 2] = [128, 128];

fn main() -> anyhow::Result<()> {
    let runtime = Runtime::load(None)?;
    let repository = Repository::embedded()?;
    let executor = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let mut bench = Bench {
        runtime,
        repository,
        lines: Vec::new(),
    };
    executor.block_on(async {
        bench.throughput(Kind::Raw).await?;
        bench.throughput(Kind::Jpeg).await?;
        bench.three_heads().await?;
        bench.equal_frames().await
    })?;
    bench.write()
}

#[derive(Clone, Copy)]
enum Kind {
    /// 128 x 128 pixels of RGB, which is the network's input.
    Raw,
    /// A 640 x 480 JPEG of quality 90, to be decoded and resized.
    Jpeg,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw 128x128",
            Self::Jpeg => "JPEG 640x480",
        }
    }

    /// Images that differ, so that nothing is shared.
    fn images(self) -> anyhow::Result<Vec<Bytes>> {
        let (width, height) = match self {
            Self::Raw => (INPUT[1], INPUT[0]),
            Self::Jpeg => (640, 480),
        };
        (0..CONCURRENCY as u32 * 4)
            .map(|seed| {
                let level =
                    |i: u32| ((i / 3 % width) * 3 + i / (3 * width) + i % 3 * 80 + seed * 7) as u8;
                let rgb: Vec<u8> = (0..width * height * 3).map(level).collect();
                Ok(match self {
                    Self::Raw => rgb.into(),
                    Self::Jpeg => {
                        media::encode_jpeg(&media::Image::from_raw(width, height, rgb)?, 90)?.into()
                    }
                })
            })
            .collect()
    }

    fn source(self, image: Bytes) -> Source {
        match self {
            Self::Raw => Source::Raw {
                width: INPUT[1],
                height: INPUT[0],
                rgb: image,
            },
            Self::Jpeg => Source::Encoded(image),
        }
    }

    fn message(self, image: Bytes) -> proto::Image {
        match self {
            Self::Raw => client::raw(INPUT[1], INPUT[0], image),
            Self::Jpeg => client::encoded(image),
        }
    }

    /// What a bare loop has to do before the backbone.
    fn fill(self, image: &[u8], out: &mut [u8]) -> anyhow::Result<()> {
        match self {
            Self::Raw => out.copy_from_slice(image),
            Self::Jpeg => {
                let how = Preprocess {
                    mode: ResizeMode::Letterbox,
                    filter: Filter::Bilinear,
                    pad: 114,
                    height: INPUT[0],
                    width: INPUT[1],
                };
                media::preprocess_into(
                    media::decode(image, &Limits::default())?.view(),
                    &how,
                    out,
                )?;
            }
        }
        Ok(())
    }
}

/// A line of the report; without a bar it is for information.
struct Line {
    name: String,
    value: f64,
    unit: &'static str,
    bar: Option<(&'static str, f64)>,
}

impl Line {
    fn holds(&self) -> Option<bool> {
        self.bar.map(|(sign, bar)| match sign {
            ">=" => self.value >= bar,
            "<=" => self.value <= bar,
            _ => (self.value - bar).abs() < f64::EPSILON,
        })
    }
}

/// Graphs without a server around them.
struct Bare {
    backbone: Backbone,
    heads: BTreeMap<String, HeadModel>,
}

impl Bare {
    fn head(&self, name: &str) -> &HeadModel {
        &self.heads[name]
    }
}

struct Bench {
    runtime: Runtime,
    repository: Repository,
    lines: Vec<Line>,
}

impl Bench {
    fn line(
        &mut self,
        name: String,
        value: f64,
        unit: &'static str,
        bar: Option<(&'static str, f64)>,
    ) {
        let line = Line {
            name,
            value,
            unit,
            bar,
        };
        let verdict = match (line.bar, line.holds()) {
            (Some((sign, bar)), Some(holds)) => {
                format!("{sign} {bar}  {}", if holds { "holds" } else { "MISSED" })
            }
            _ => String::new(),
        };
        println!(
            "{:58} {:>10.3} {:9} {verdict}",
            line.name, line.value, line.unit
        );
        self.lines.push(line);
    }

    /// Images per second of the three contenders.
    async fn throughput(&mut self, kind: Kind) -> anyhow::Result<()> {
        let images = Arc::new(kind.images()?);
        let cores = std::thread::available_parallelism()?.get();
        // The best bare loop, found first, then measured in turns with the others.
        let mut best = (0.0, 1, cores, 1);
        for (lanes, threads) in [(cores, 1), (1, cores)] {
            for batch in [1, 2, 4, 8] {
                let rate = self.bare(kind, &images, lanes, threads, batch, TURN / 3)?;
                if rate > best.0 {
                    best = (rate, lanes, threads, batch);
                }
            }
        }
        let (_, lanes, threads, batch) = best;
        let server = Server::start(&self.runtime, &self.repository).await?;
        let (mut bare, mut engine, mut grpc) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            bare.push(self.bare(kind, &images, lanes, threads, batch, TURN)?);
            engine.push(server.in_process(kind, &images).await?);
            grpc.push(server.over_grpc(kind, &images, CONCURRENCY).await?.0);
        }
        let (_, alone) = server.over_grpc(kind, &images, 1).await?;
        server.stop().await?;
        let (bare, engine, grpc) = (median(bare), median(engine), median(grpc));
        let what = kind.name();
        let how = format!("{lanes} lane(s) x {threads} thread(s), batch {batch}");
        self.line(format!("{what}: bare loop ({how})"), bare, "images/s", None);
        self.line(
            format!("{what}: engine, concurrency {CONCURRENCY}"),
            engine,
            "images/s",
            None,
        );
        self.line(
            format!("{what}: gRPC, concurrency {CONCURRENCY}"),
            grpc,
            "images/s",
            None,
        );
        self.line(
            format!("{what}: engine / bare"),
            engine / bare,
            "ratio",
            Some((">=", 0.9)),
        );
        self.line(
            format!("{what}: gRPC / bare"),
            grpc / bare,
            "ratio",
            Some((">=", 0.9)),
        );
        self.line(
            format!("{what}: gRPC, concurrency 1, median"),
            median(alone),
            "ms",
            None,
        );
        Ok(())
    }

    fn bare(
        &self,
        kind: Kind,
        images: &[Bytes],
        lanes: usize,
        threads: usize,
        batch: usize,
        turn: Duration,
    ) -> anyhow::Result<f64> {
        let bare = self.load(lanes, threads)?;
        let done = AtomicUsize::new(0);
        let started = Instant::now();
        std::thread::scope(|scope| {
            let loops: Vec<_> = (0..lanes)
                .map(|lane| {
                    let (done, bare) = (&done, &bare);
                    scope.spawn(move || -> anyhow::Result<()> {
                        let row = INPUT[0] as usize * INPUT[1] as usize * 3;
                        let mut input = vec![0; row * batch];
                        let mut at = 0;
                        while started.elapsed() < turn {
                            for out in input.chunks_exact_mut(row) {
                                kind.fill(&images[at % images.len()], out)?;
                                at += 1;
                            }
                            let features = Arc::new(bare.backbone.run(lane, INPUT, &input, batch)?);
                            let rows: Vec<_> =
                                (0..batch).map(|i| FeatureRow::new(&features, i)).collect();
                            bare.head(HEAD).run(lane, &rows, batch)?;
                            done.fetch_add(batch, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                })
                .collect();
            loops
                .into_iter()
                .try_for_each(|handle| handle.join().unwrap_or_else(|_| anyhow::bail!("panicked")))
        })?;
        Ok(done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
    }

    fn load(&self, lanes: usize, threads: usize) -> anyhow::Result<Bare> {
        let options = SessionOptions { lanes, threads };
        let Repository {
            backbone, graph, ..
        } = &self.repository;
        let backbone = Backbone::load(&self.runtime, backbone, graph, options)?;
        let load = |entry: &HeadEntry| {
            let model = HeadModel::load(&self.runtime, entry, &backbone, options)?;
            anyhow::Ok((entry.manifest.name.clone(), model))
        };
        let heads = self.repository.heads.iter().map(load);
        Ok(Bare {
            heads: heads.collect::<anyhow::Result<_>>()?,
            backbone,
        })
    }

    /// One clip, three heads: against the backbone and the three heads run one after another.
    async fn three_heads(&mut self) -> anyhow::Result<()> {
        let frames: Vec<Bytes> = Kind::Raw.images()?.into_iter().take(8).collect();
        let bare = self.load(1, 1)?;
        let input = frames.concat();
        let config = EngineConfig {
            lanes: 1,
            ..EngineConfig::default()
        };
        let engine = Engine::start(&self.runtime, &self.repository, config)?;
        let (mut own, mut served, mut rows) = (Vec::new(), Vec::new(), 0);
        for _ in 0..30 {
            let started = Instant::now();
            let features = Arc::new(bare.backbone.run(0, INPUT, &input, 8)?);
            let all: Vec<_> = (0..8)
                .map(|index| FeatureRow::new(&features, index))
                .collect();
            bare.head("motion").run(0, &all, 1)?;
            bare.head("objects").run(0, &all[7..], 1)?;
            bare.head("scene").run(0, &all[7..], 1)?;
            own.push(millis(started));
            let images = frames
                .iter()
                .map(|f| (Kind::Raw.source(f.clone()), "clip".to_owned()))
                .collect();
            let request = Request {
                images,
                heads: engine.heads(),
                ..Request::default()
            };
            let started = Instant::now();
            let answer = engine.run(request).await?;
            served.push(millis(started));
            rows += answer.provenance.backbone_rows;
        }
        engine.stop();
        let ratio = median(served) / median(own);
        self.line(
            "three heads on a clip of 8: backbone runs per frame".to_owned(),
            rows as f64 / 240.0,
            "runs",
            Some(("<=", 1.0)),
        );
        self.line(
            "three heads on a clip of 8: served / (backbone + heads)".to_owned(),
            ratio,
            "ratio",
            Some(("<=", 1.1)),
        );
        Ok(())
    }

    /// 32 callers ask different heads for the same 100 frames at once.
    async fn equal_frames(&mut self) -> anyhow::Result<()> {
        let config = EngineConfig {
            cache_bytes: 256 << 20,
            ..EngineConfig::default()
        };
        let engine = Arc::new(Engine::start(&self.runtime, &self.repository, config)?);
        let frames: Vec<Bytes> = Kind::Raw.images()?.into_iter().take(100).collect();
        let calls: Vec<_> = (0..CONCURRENCY)
            .map(|caller| {
                let (engine, frames) = (Arc::clone(&engine), frames.clone());
                tokio::spawn(async move {
                    let name = ["objects", "scene", "motion"][caller % 3];
                    for frame in frames {
                        let count = if name == "motion" { 8 } else { 1 };
                        let images = (0..count)
                            .map(|_| (Kind::Raw.source(frame.clone()), "image".to_owned()))
                            .collect();
                        let heads = engine.head(name).into_iter().collect();
                        engine
                            .run(Request {
                                images,
                                heads,
                                ..Request::default()
                            })
                            .await?;
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
        self.line(
            "32 callers, three heads, the same 100 frames".to_owned(),
            rows,
            "runs",
            Some(("=", 100.0)),
        );
        Ok(())
    }

    fn write(&self) -> anyhow::Result<()> {
        let entries: Vec<Value> = self
            .lines
            .iter()
            .map(|line| {
                let bar = line.bar.map(|(sign, bar)| format!("{sign} {bar}"));
                json!({ "name": line.name, "value": line.value, "unit": line.unit, "bar": bar, "holds": line.holds() })
            })
            .collect();
        std::fs::create_dir_all("target/bench")?;
        std::fs::write(
            "target/bench/summary.json",
            serde_json::to_string_pretty(&entries)?,
        )?;
        println!("target/bench/summary.json");
        Ok(())
    }
}

struct Server {
    engine: Arc<Engine>,
    client: Client,
    stop: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Server {
    async fn start(runtime: &Runtime, repository: &Repository) -> anyhow::Result<Self> {
        let engine = Arc::new(Engine::start(runtime, repository, EngineConfig::default())?);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = format!("http://{}", listener.local_addr()?);
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let serving = tokio::spawn(server::serve(
            listener,
            Arc::clone(&engine),
            ServerConfig::default(),
            shutdown,
        ));
        Ok(Self {
            engine,
            client: Client::connect(&address).await?,
            stop,
            serving,
        })
    }

    async fn stop(self) -> anyhow::Result<()> {
        drop((self.stop, self.client));
        self.serving.await?
    }

    async fn in_process(&self, kind: Kind, images: &Arc<Vec<Bytes>>) -> anyhow::Result<f64> {
        let (rate, _) = load(CONCURRENCY, images, |image| {
            let engine = Arc::clone(&self.engine);
            async move {
                let request = Request {
                    images: vec![(kind.source(image), "image".to_owned())],
                    heads: engine.head(HEAD).into_iter().collect(),
                    ..Request::default()
                };
                engine.run(request).await?;
                Ok(())
            }
        })
        .await?;
        Ok(rate)
    }

    async fn over_grpc(
        &self,
        kind: Kind,
        images: &Arc<Vec<Bytes>>,
        concurrency: usize,
    ) -> anyhow::Result<(f64, Vec<f64>)> {
        load(concurrency, images, |image| {
            let mut vision = self.client.vision.clone();
            async move {
                let image = Some(kind.message(image));
                vision
                    .detect(proto::DetectRequest {
                        image,
                        head: HEAD.to_owned(),
                        ..Default::default()
                    })
                    .await?;
                Ok(())
            }
        })
        .await
    }
}

/// A closed loop of `concurrency` callers for one turn: calls per second, and each call's milliseconds.
async fn load<F: Future<Output = anyhow::Result<()>> + Send + 'static>(
    concurrency: usize,
    images: &Arc<Vec<Bytes>>,
    call: impl Fn(Bytes) -> F + Clone,
) -> anyhow::Result<(f64, Vec<f64>)>
where
{
    let next = AtomicU32::new(0);
    let started = Instant::now();
    let mut calls = tokio::task::JoinSet::new();
    let begin = |calls: &mut tokio::task::JoinSet<anyhow::Result<f64>>| {
        let at = next.fetch_add(1, Ordering::Relaxed) as usize;
        let work = call(images[at % images.len()].clone());
        calls.spawn(async move {
            let begun = Instant::now();
            work.await?;
            Ok(millis(begun))
        });
    };
    (0..concurrency).for_each(|_| begin(&mut calls));
    let mut times = Vec::new();
    while let Some(done) = calls.join_next().await {
        times.push(done??);
        if started.elapsed() < TURN {
            begin(&mut calls);
        }
    }
    Ok((times.len() as f64 / started.elapsed().as_secs_f64(), times))
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
