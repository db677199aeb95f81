//! Images per second: a bare ONNX Runtime loop, the engine in this process, the server over gRPC, taking turns.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use frostline::{
    backend::{FeatureRow, Runtime},
    client,
    engine::{Engine, EngineConfig, Load, Request, Source},
    media::{self, Filter, Limits, Preprocess, ResizeMode},
    proto,
    repository::Repository,
};

use crate::{
    bare::{self, Bare},
    common::process::Process,
    load::{closed, median, quantile},
    report::{Bar, Report},
    wire::Wire,
};

const HEAD: &str = "objects";
/// Many short turns: the machine's speed changes from second to second, and only turns next to each other compare.
const ROUNDS: usize = 8;
const TURN: Duration = Duration::from_millis(1500);
/// A caller's turn alone.
const LONE: Duration = Duration::from_secs(4);
/// Turns of each way to run the bare loop, to find the best.
const HEATS: usize = 5;
const HEAT: Duration = Duration::from_millis(300);
const CONCURRENCY: usize = 32;
const INPUT: [u32; 2] = [128, 128];

#[derive(Clone, Copy)]
pub(crate) enum Kind {
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
        (0..256_u32)
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

/// One kind of images.
struct Contest<'a> {
    kind: Kind,
    images: Arc<Vec<Bytes>>,
    /// The ways to run the backbone that can be used here, by name.
    ways: &'a [(String, Runtime)],
    /// The one that a trial takes.
    placed: &'a Runtime,
    repository: &'a Repository,
}

/// How the bare loop uses the cores.
#[derive(Debug, Clone, Copy)]
struct How {
    /// Which of the ways to run the backbone.
    way: usize,
    lanes: usize,
    threads: usize,
    batch: usize,
}

/// Served images per second over the bare loop's.
pub(crate) async fn throughput(
    report: &mut Report,
    runtime: &Runtime,
    repository: &Repository,
) -> anyhow::Result<()> {
    let (ways, placed) = bare::ways(runtime, repository)?;
    println!("  the server's: {}", placed.device().summary());
    for kind in [Kind::Raw, Kind::Jpeg] {
        let contest = Contest {
            kind,
            images: Arc::new(kind.images()?),
            ways: &ways,
            placed: &placed,
            repository,
        };
        contest.run(report).await?;
    }
    Ok(())
}

impl Contest<'_> {
    async fn run(&self, report: &mut Report) -> anyhow::Result<()> {
        let (how, bare) = self.best()?;
        let config = EngineConfig::default();
        let engine = Arc::new(Engine::start(self.placed, self.repository, config)?);
        let device = self.placed.device();
        let precision = device.options().precision;
        let settings = [
            format!("device.device={}", device.name()),
            format!("device.precision={precision}"),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let server = Process::start(None, &settings)?;
        let client = Wire::connect(&server.address).await?;
        let (mut alone, mut within, mut served) = (Vec::new(), Vec::new(), Vec::new());
        let mut busy = Vec::new();
        for _ in 0..ROUNDS {
            alone.push(self.bare(&bare, how, TURN)?);
            let before = engine.load();
            within.push(self.in_process(&engine).await?);
            let spent = |load: &Load| load.lanes_busy.graphs + load.lanes_busy.results;
            let on_graphs = spent(&engine.load()) - spent(&before);
            busy.push(on_graphs.as_secs_f64() / (TURN.as_secs_f64() * before.lanes as f64));
            served.push(self.over_grpc(&client, CONCURRENCY, TURN).await?.rate);
        }
        let lone = self.over_grpc(&client, 1, LONE).await?;
        engine.stop();
        let rate = |name: &str| format!("{}: {name}", self.kind.name());
        let How {
            way,
            lanes,
            threads,
            batch,
        } = how;
        // Of each turn to the bare loop's beside it.
        let ratios = |rates: &[f64]| rates.iter().zip(&alone).map(|(r, bare)| r / bare).collect();
        let (within_bare, served_bare) = (median(ratios(&within)), median(ratios(&served)));
        let (alone, within, served) = (median(alone), median(within), median(served));
        report.note(
            rate(&format!(
                "bare loop, {}, {lanes} lanes x {threads} threads, batches of {batch}",
                self.ways[way].0
            )),
            alone,
            "images/s",
        );
        report.note(rate("engine, concurrency 32"), within, "images/s");
        report.note(
            rate("engine: lanes' share of the time on graphs"),
            median(busy),
            "ratio",
        );
        report.note(rate("gRPC, concurrency 32"), served, "images/s");
        report.note(
            rate("gRPC, concurrency 1, median"),
            quantile(&lone.times, 0.5),
            "ms",
        );
        report.held(
            rate("engine / bare loop"),
            within_bare,
            "ratio",
            Bar::AtLeast(0.9),
        );
        report.held(
            rate("gRPC / bare loop"),
            served_bare,
            "ratio",
            Bar::AtLeast(0.9),
        );
        Ok(())
    }

    /// The best way to run the bare loop: all take turns, so that none is judged by one good or bad second.
    fn best(&self) -> anyhow::Result<(How, Bare)> {
        let cores = std::thread::available_parallelism()?.get();
        const BATCHES: [usize; 4] = [1, 2, 4, 8];
        let mut loops = BTreeMap::new();
        for (way, (_, runtime)) in self.ways.iter().enumerate() {
            for (lanes, threads) in [(cores, 1), (1, cores)] {
                let bare = Bare::load(runtime, self.repository, lanes, threads, &BATCHES)?;
                loops.insert((way, lanes, threads), bare);
            }
        }
        let ways: Vec<_> = loops
            .keys()
            .flat_map(|&(way, lanes, threads)| {
                BATCHES.map(|batch| How {
                    way,
                    lanes,
                    threads,
                    batch,
                })
            })
            .collect();
        let mut rates = vec![Vec::new(); ways.len()];
        for _ in 0..HEATS {
            for (how, rates) in ways.iter().zip(&mut rates) {
                rates.push(self.bare(&loops[&(how.way, how.lanes, how.threads)], *how, HEAT)?);
            }
        }
        let rates = rates.into_iter().map(median);
        let (_, how) = rates
            .zip(ways)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .context("no way to run it")?;
        let best = loops.remove(&(how.way, how.lanes, how.threads));
        Ok((how, best.context("it was loaded")?))
    }

    /// Images per second of lanes that never wait, each by its own clock: none counts the time that another's last batch
    /// takes.
    fn bare(&self, bare: &Bare, how: How, turn: Duration) -> anyhow::Result<f64> {
        let started = Instant::now();
        let lane = |lane: usize| -> anyhow::Result<f64> {
            let row = INPUT[0] as usize * INPUT[1] as usize * 3;
            let mut input = vec![0; row * how.batch];
            let mut done = 0;
            while started.elapsed() < turn {
                for out in input.chunks_exact_mut(row) {
                    let at = done * how.lanes + lane;
                    self.kind.fill(&self.images[at % self.images.len()], out)?;
                    done += 1;
                }
                let features = bare.backbone.run(lane, INPUT, &input, how.batch)?;
                let features = Arc::new(features);
                let rows: Vec<_> = (0..how.batch)
                    .map(|index| FeatureRow::new(&features, index))
                    .collect();
                bare.head(HEAD).run(lane, &rows, how.batch)?;
            }
            Ok(done as f64 / started.elapsed().as_secs_f64())
        };
        std::thread::scope(|scope| {
            let loops: Vec<_> = (0..how.lanes)
                .map(|number| scope.spawn(move || lane(number)))
                .collect();
            let rates = loops
                .into_iter()
                .map(|handle| handle.join().unwrap_or_else(|_| anyhow::bail!("panicked")));
            rates.sum()
        })
    }

    async fn in_process(&self, engine: &Arc<Engine>) -> anyhow::Result<f64> {
        let (kind, engine, next) = (self.kind, Arc::clone(engine), self.images_in_turn());
        let done = closed(CONCURRENCY, TURN, move || {
            let request = Request {
                images: vec![(kind.source(next()), "image".to_owned())],
                heads: engine.head(HEAD).into_iter().collect(),
                ..Request::default()
            };
            let engine = Arc::clone(&engine);
            async move {
                engine.run(request).await?;
                Ok(())
            }
        });
        Ok(done.await?.rate)
    }

    async fn over_grpc(
        &self,
        client: &Wire,
        concurrency: usize,
        turn: Duration,
    ) -> anyhow::Result<crate::load::Closed> {
        let (kind, client, next) = (self.kind, client.clone(), self.images_in_turn());
        closed(concurrency, turn, move || {
            let request = proto::DetectRequest {
                image: Some(kind.message(next())),
                head: HEAD.to_owned(),
                ..Default::default()
            };
            let client = client.clone();
            async move { Ok(client.detect(&request).await?) }
        })
        .await
    }

    fn images_in_turn(&self) -> impl Fn() -> Bytes + Send + Sync + 'static {
        let (images, next) = (Arc::clone(&self.images), AtomicUsize::new(0));
        move || images[next.fetch_add(1, Ordering::Relaxed) % images.len()].clone()
    }
}
