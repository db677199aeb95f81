//! A deadline is judged by what the call itself takes, whatever else was served.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use frostline::{
    engine::{Engine, EngineConfig, Head, Request, Source},
    error::{Kind, Result},
    media::{self, Image},
    repository::Repository,
};

use crate::{
    common::graphs::{HeadGraph, TOUCHY, pixels, write_head},
    support::Running,
};

/// Small calls after the large ones, and how many of them may be refused.
const CALLS: usize = 250;
const REFUSED: usize = 10;
/// How often they are made anew where more are: a machine may be ten times slower for a moment, and what judges by large
/// work refuses nearly all of them for as long as one likes.
const ROUNDS: usize = 5;
/// Where every call that is served moved the estimate by a tenth, this was longer.
const LIMIT: Duration = Duration::from_secs(30);

/// A picture with some detail, as JPEG.
fn jpeg(width: u32, height: u32) -> Bytes {
    let pixel = |at: u32| {
        let (x, y) = (at % width, at / width);
        [(x / 9) as u8, (y / 7) as u8, ((x ^ y) >> 4) as u8]
    };
    let pixels = (0..width * height).flat_map(pixel).collect();
    let image = Image::from_raw(width, height, pixels).unwrap();
    media::encode_jpeg(&image, 85).unwrap().into()
}

async fn ask(
    engine: &Engine,
    head: &Arc<Head>,
    image: Source,
    deadline: Option<Duration>,
) -> Result<()> {
    let request = Request {
        images: vec![(image, "image".to_owned())],
        heads: vec![Arc::clone(head)],
        deadline: deadline.map(|time| Instant::now() + time),
        ..Request::default()
    };
    engine.run(request).await.map(drop)
}

/// Ten times what a call takes, and `least` at least: no busy machine makes that too short.
async fn deadline(engine: &Engine, head: &Arc<Head>, image: &Source, least: Duration) -> Duration {
    let mut took = Vec::new();
    for _ in 0..9 {
        let begun = Instant::now();
        ask(engine, head, image.clone(), None).await.unwrap();
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    least.max(10 * took[took.len() / 2])
}

/// Whether a call was refused for what it was thought to take.
fn is_refused(answer: &Result<()>) -> bool {
    let Err(error) = answer else {
        return false;
    };
    let late = matches!(error.kind(), Kind::DeadlineExceeded | Kind::Overloaded);
    assert!(late, "{error}");
    error.to_string().contains("cannot be met")
}

/// Asks for objects in a small picture before and after some large work, the later ones with deadlines.
async fn small_after(large: Bytes, head: &str, times: usize, least: Duration) {
    let config = EngineConfig {
        // A slow machine may take as long as it likes.
        step_limit: Duration::ZERO,
        ..EngineConfig::default()
    };
    let server = Running::start(config).await;
    let engine = &server.engine;
    let objects = engine.head("objects").unwrap();
    let small = Source::Encoded(jpeg(640, 480));
    let deadline = deadline(engine, &objects, &small, least).await;
    let large_head = engine.head(head).unwrap();
    for _ in 0..times {
        let large = Source::Encoded(large.clone());
        ask(engine, &large_head, large, None).await.unwrap();
    }
    let (mut rounds, mut first) = (Vec::new(), None);
    while rounds.last().is_none_or(|refused| *refused > REFUSED) && rounds.len() < ROUNDS {
        let mut refused = 0;
        for _ in 0..CALLS {
            let answer = ask(engine, &objects, small.clone(), Some(deadline)).await;
            refused += usize::from(is_refused(&answer));
            first = first.or(answer.err().map(|error| error.to_string()));
        }
        rounds.push(refused);
    }
    let fewest = rounds.iter().min().copied();
    let said = format!("{rounds:?} of {CALLS} were refused, deadline {deadline:?}: {first:?}");
    assert!(fewest.is_some_and(|refused| refused <= REFUSED), "{said}");
    // What is large is still known to be: a deadline that it cannot meet refuses it at the door.
    let large = Source::Encoded(large);
    let hopeless = ask(engine, &large_head, large, Some(Duration::from_millis(1))).await;
    assert!(hopeless.is_err());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_calls_are_served_after_large_label_maps() {
    small_after(jpeg(2400, 1800), "scene", 3, Duration::from_millis(100)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_calls_are_served_after_pictures_of_99_scans() {
    let many = crate::costs::with_scans(&crate::costs::jpeg(2000, 1500), 99);
    small_after(many, "objects", 4, Duration::from_millis(50)).await;
}

/// What no estimate can tell: an image of the same kind, size and head that takes a hundred times as long.
#[tokio::test(flavor = "multi_thread")]
async fn an_estimate_that_refuses_everybody_is_measured_anew() {
    const SIZE: [u32; 2] = [64, 64];
    let folder = tempfile::tempdir().unwrap();
    let backbone = TOUCHY.write(folder.path());
    let mean = HeadGraph::Mean(1.0);
    write_head(folder.path(), "mean", "1", &backbone, SIZE, &mean);
    let config = EngineConfig {
        lanes: 1,
        buckets: Some(vec![1]),
        ..EngineConfig::default()
    };
    let server = Running::start_of(&Repository::open(folder.path()).unwrap(), config).await;
    let engine = &server.engine;
    let head = engine.head("mean").unwrap();
    let image = |green, level| Source::Raw {
        width: SIZE[1],
        height: SIZE[0],
        rgb: pixels(SIZE, [0, green, 0], level),
    };
    let deadline = deadline(engine, &head, &image(0, 0), Duration::from_millis(20)).await;
    // Slow enough that the deadline is out of reach: the slower the machine, the longer both take.
    let mut green = 60;
    for level in 0..20 {
        let begun = Instant::now();
        ask(engine, &head, image(green, level), None).await.unwrap();
        if begun.elapsed() < 2 * deadline {
            green = green.saturating_add(15);
        }
    }
    let (begun, mut refused, mut in_a_row) = (Instant::now(), 0, 0);
    while in_a_row < 20 {
        let answer = ask(engine, &head, image(0, 0), Some(deadline)).await;
        refused += usize::from(is_refused(&answer));
        in_a_row = match answer {
            Ok(()) => in_a_row + 1,
            Err(_) => 0,
        };
        assert!(begun.elapsed() < LIMIT, "refused {refused} times");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(refused > 0, "nothing was learnt from the slow ones");
    println!(
        "{refused} were refused in {:?}, deadline {deadline:?}",
        begun.elapsed()
    );
    server.stop().await;
}

/// Everything is counted that lanes do: a server full of large pictures is full, though its graphs hardly run.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_jpegs_keeps_the_lanes_busy_in_their_own_count() {
    const FLOOD: usize = 120;
    let server = Running::start(EngineConfig::default()).await;
    let engine = &server.engine;
    let objects = engine.head("objects").unwrap();
    let picture = jpeg(2400, 1800);
    let mut calls = tokio::task::JoinSet::new();
    for index in 0..FLOOD {
        // What follows the picture makes it another file.
        let mut file = picture.to_vec();
        file.extend([index as u8; 16]);
        let (engine, objects) = (Arc::clone(engine), Arc::clone(&objects));
        calls
            .spawn(async move { ask(&engine, &objects, Source::Encoded(file.into()), None).await });
    }
    let mut done = async |count: usize| {
        for _ in 0..count {
            calls.join_next().await.unwrap().unwrap().unwrap();
        }
        (engine.load(), Instant::now())
    };
    // Between the two there is always more to do.
    let (before, begun) = done(FLOOD / 10).await;
    let (after, ended) = done(FLOOD * 6 / 10).await;
    let spent = |kind: usize| {
        let [from, to] = [before, after].map(|load| load.lanes_busy.by_kind()[kind].1);
        (to - from).as_secs_f64()
    };
    let [decode, graphs, results] = [0, 1, 2].map(spent);
    let lanes = (ended - begun).as_secs_f64() * before.lanes as f64;
    let busy = (decode + graphs + results) / lanes;
    assert!((0.9..1.1).contains(&busy), "{busy} of the time");
    assert!(
        decode > graphs,
        "{decode} s of decoding, {graphs} s of graphs"
    );
    assert_eq!(before.workers, 0);
    done(FLOOD - FLOOD / 10 - FLOOD * 6 / 10).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lets_batches_wait_gets_one_of_all_who_come_at_once() {
    const CALLS: u8 = 8;
    let config = EngineConfig {
        buckets: Some(vec![1, 2, 4, 8]),
        max_queue_delay: Duration::from_secs(10),
        ..EngineConfig::default()
    };
    let server = Running::start(config).await;
    let engine = &server.engine;
    let objects = engine.head("objects").unwrap();
    let [height, width] = objects.manifest.input_size;
    let at_once = |source: fn([u32; 2], u8) -> Source| {
        let calls = (0..CALLS).map(|level| {
            let (engine, objects) = (Arc::clone(engine), Arc::clone(&objects));
            let image = source([height, width], level);
            tokio::spawn(async move { ask(&engine, &objects, image, None).await })
        });
        calls.collect::<Vec<_>>()
    };
    let raw = |[height, width]: [u32; 2], level| Source::Raw {
        width,
        height,
        rgb: vec![level; (height * width * 3) as usize].into(),
    };
    let encoded = |_, level: u8| Source::Encoded(crate::support::png(80, 60, level.into()));
    // Pixels as the backbone takes them, and files that lanes decode first.
    for (batches, source) in [(1, raw as fn(_, _) -> _), (2, encoded)] {
        for call in at_once(source) {
            call.await.unwrap().unwrap();
        }
        assert_eq!(engine.counters().backbone_batches, batches);
    }
    assert_eq!(engine.counters().backbone_rows, 2 * u64::from(CALLS));
    server.stop().await;
}
