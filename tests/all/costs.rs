//! What a call costs is known before it is spent: what costs more than its bytes let expect, or needs more than there is,
//! is refused, and nobody's costly images hold up another's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use frostline::{
    engine::{AdmissionLimits, Engine, EngineConfig, Head, Request, Source},
    error::{Error, Kind, Result},
    media::{self, Image},
    proto::inference::{
        ModelInferRequest, grpc_inference_service_client::GrpcInferenceServiceClient,
        model_infer_request::InferInputTensor,
    },
};
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt;

use crate::support::{Running, one_lane, png, reason};

/// A lossless WebP of `side` x `side` pixels of one colour, in 34 bytes whatever its size.
fn flat_webp(side: u32) -> Bytes {
    let mut bits: Vec<bool> = Vec::new();
    let mut put =
        |value: u32, count: u32| (0..count).for_each(|bit| bits.push(value >> bit & 1 == 1));
    put(side - 1, 14);
    put(side - 1, 14);
    // No alpha, version 0, no transform, no cache of colours, one group of codes.
    put(0, 4);
    put(0, 3);
    for level in [10, 200, 30, 255, 0] {
        // A code of one symbol of eight bits.
        put(0b101, 3);
        put(level, 8);
    }
    let mut data = vec![0x2f];
    data.extend(bits.chunks(8).map(|byte| {
        byte.iter()
            .rev()
            .fold(0, |all, bit| all << 1 | u8::from(*bit))
    }));
    data.resize(data.len().next_multiple_of(2), 0);
    let length = data.len() as u32;
    let head = [
        b"RIFF",
        &(length + 12).to_le_bytes()[..],
        b"WEBPVP8L",
        &length.to_le_bytes(),
    ];
    [head.concat(), data].concat().into()
}

/// A picture with much detail.
pub(crate) fn jpeg(width: u32, height: u32) -> Bytes {
    let pixel = |at: u32| [(at % 251) as u8, (at / width) as u8, (at % width) as u8];
    let image = Image::from_raw(width, height, (0..width * height).flat_map(pixel).collect());
    media::encode_jpeg(&image.unwrap(), 85).unwrap().into()
}

/// As `file`, a progressive JPEG, with its last scan again and again: so many in all.
pub(crate) fn with_scans(file: &[u8], count: usize) -> Bytes {
    let starts: Vec<_> = file
        .windows(2)
        .enumerate()
        .filter(|(_, pair)| pair == &[0xff, 0xda])
        .collect();
    let (last, end) = (starts[starts.len() - 1].0, file.len() - 2);
    let again = file[last..end].repeat(count - starts.len());
    [&file[..end], &again, &file[end..]].concat().into()
}

fn request(caller: &str, head: &Arc<Head>, image: Source) -> Request {
    Request {
        images: vec![(image, "image.encoded".to_owned())],
        heads: vec![Arc::clone(head)],
        caller: caller.into(),
        ..Request::default()
    }
}

async fn ask(engine: &Engine, caller: &str, head: &Arc<Head>, image: Bytes) -> Result<()> {
    let request = request(caller, head, Source::Encoded(image));
    engine.run(request).await.map(drop)
}

async fn inference(server: &Running) -> GrpcInferenceServiceClient<Channel> {
    let address = format!("http://{}", server.address);
    GrpcInferenceServiceClient::connect(address).await.unwrap()
}

fn infer(files: &[Bytes], model: &str) -> ModelInferRequest {
    let rows = files.iter().flat_map(|file| {
        let length = (file.len() as u32).to_le_bytes();
        [length.to_vec(), file.to_vec()].concat()
    });
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![InferInputTensor {
            name: "image".to_owned(),
            datatype: "BYTES".to_owned(),
            shape: vec![files.len() as i64, 1],
            ..InferInputTensor::default()
        }],
        raw_input_contents: vec![rows.collect::<Vec<u8>>().into()],
        ..ModelInferRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn few_bytes_are_not_taken_for_many_pixels() {
    let server = Running::start(one_lane()).await;
    let mut client = server.client().await;
    let bomb = flat_webp(7071);
    assert!(bomb.len() < 48);
    // As it came: within every other limit.
    assert!(media::probe(&bomb, &media::Limits::default()).is_ok());
    let refused = client.segment(bomb.clone()).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::InvalidArgument, "LIMIT_EXCEEDED")
    );
    assert!(
        refused.message().contains("limits.pixels_per_byte"),
        "{refused:?}"
    );
    let details = refused.get_error_details();
    assert_eq!(
        details.bad_request().unwrap().field_violations[0].field,
        "image.encoded"
    );
    // Of one call together, though each alone is let in: 64 of a million pixels in 34 bytes.
    let small = flat_webp(1000);
    client.segment(small.clone()).await.unwrap();
    let mut inference = inference(&server).await;
    let many = infer(&vec![small; 64], "scene");
    let refused = inference.model_infer(many).await.unwrap_err();
    assert_eq!(reason(&refused), "LIMIT_EXCEEDED", "{refused:?}");
    let rows = server.engine.counters().backbone_rows;
    assert_eq!(rows, 1, "nothing of it was computed");
    // What people have is far from it.
    let limits = AdmissionLimits::default();
    let photo = Source::Encoded(jpeg(1200, 900));
    let scene = server.engine.head("scene").unwrap();
    server
        .engine
        .run(request("", &scene, photo.clone()))
        .await
        .unwrap();
    assert!((1200 * 900) < limits.most_pixels(photo.len() as u64) / 10);
    server.settled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_times_pixels_are_bounded() {
    let server = Running::start(one_lane()).await;
    let engine = &server.engine;
    let objects = engine.head("objects").unwrap();
    let large = include_bytes!("../reference/cases/large-99-scans.jpg");
    let refused = ask(engine, "", &objects, Bytes::from_static(large))
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), Kind::LimitExceeded);
    assert!(refused.to_string().contains("more scans"), "{refused}");
    let told = [("value", "99".to_owned()), ("limit", "20".to_owned())];
    assert_eq!(refused.values(), told);
    // A small one may have as many, and a large one as many as programs write.
    let small = with_scans(&jpeg(300, 200), 99);
    ask(engine, "", &objects, small).await.unwrap();
    let limits = media::Limits::default();
    assert!(limits.check_scans(8064, 6048, 14).is_ok());
    server.stop().await;
}

/// Whoever gives up, or whose time is up, holds no thread until its picture is decoded.
#[tokio::test(flavor = "multi_thread")]
async fn a_picture_that_nobody_waits_for_is_not_decoded_to_its_end() {
    let server = Running::start(EngineConfig {
        lanes: 1,
        step_limit: Duration::ZERO,
        ..EngineConfig::default()
    })
    .await;
    let engine = &server.engine;
    let objects = engine.head("objects").unwrap();
    let picture = with_scans(&jpeg(2400, 1800), 99);
    let decoding = || engine.load().lanes_busy.by_kind()[0].1;
    ask(engine, "", &objects, picture.clone()).await.unwrap();
    let whole = decoding();
    // Another file, so that nothing is shared.
    let other = |index: u8| Bytes::from([&picture[..], &[index]].concat());
    let late = Request {
        deadline: Some(Instant::now() + whole / 10),
        ..request("late", &objects, Source::Encoded(other(1)))
    };
    let error = engine.run(late).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded, "{error}");
    server.settled().await;
    let spent = decoding() - whole;
    assert!(spent < whole / 2, "{spent:?} of {whole:?}");
    // Given up once it is being decoded.
    let before = decoding();
    let gone = request("gone", &objects, Source::Encoded(other(2)));
    let gave_up = tokio::time::timeout(whole / 10, engine.run(gone)).await;
    assert!(gave_up.is_err());
    server.settled().await;
    let spent = decoding() - before;
    assert!(spent < whole / 2, "{spent:?} of {whole:?}");
    ask(engine, "", &objects, png(64, 64, 1)).await.unwrap();
    server.stop().await;
}

/// Large pictures of one caller leave a thread to others.
#[tokio::test(flavor = "multi_thread")]
async fn one_callers_large_pictures_do_not_hold_up_another() {
    const LARGE: usize = 16;
    const SMALL: u32 = 8;
    let server = Running::start(EngineConfig {
        lanes: 2,
        ..EngineConfig::default()
    })
    .await;
    let engine = &server.engine;
    let objects = engine.head("objects").unwrap();
    let small = |seed| png(64, 64, seed);
    let picture = with_scans(&jpeg(1600, 1200), 60);
    // Both are there, and what their images take is known.
    ask(engine, "flood", &objects, picture.clone())
        .await
        .unwrap();
    ask(engine, "other", &objects, small(0)).await.unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    let mut flood = tokio::task::JoinSet::new();
    for index in 0..LARGE {
        let file = Bytes::from([&picture[..], &[index as u8]].concat());
        let (engine, objects, done) = (Arc::clone(engine), Arc::clone(&objects), Arc::clone(&done));
        flood.spawn(async move {
            ask(&engine, "flood", &objects, file).await.unwrap();
            done.fetch_add(1, Ordering::SeqCst);
        });
    }
    while engine.load().queued < LARGE - 2 && done.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let before = done.load(Ordering::SeqCst);
    for seed in 1..=SMALL {
        ask(engine, "other", &objects, small(seed)).await.unwrap();
    }
    // Where every thread decodes large ones, each small one waits for one of them.
    let came_first = done.load(Ordering::SeqCst) - before;
    assert!(
        came_first < SMALL as usize / 2,
        "{came_first} large pictures came before {SMALL} small ones"
    );
    flood.join_all().await;
    server.stop().await;
}

/// Small calls of one identity, as many as it may have inside, are no reason to refuse another's.
#[tokio::test(flavor = "multi_thread")]
async fn four_hundred_small_calls_make_nobody_else_late() {
    const FLOOD: usize = 400;
    const CALLS: u32 = 40;
    let server = Running::start(EngineConfig::default()).await;
    let engine = &server.engine;
    let objects = engine.head("objects").unwrap();
    let begun = Instant::now();
    for seed in 0..20 {
        ask(engine, "other", &objects, png(64, 64, seed))
            .await
            .unwrap();
    }
    // A hundred times what a call takes by itself; what all of the flood takes is four times that.
    let deadline = Duration::from_secs(1).max(5 * begun.elapsed());
    let stop = Arc::new(AtomicUsize::new(0));
    let mut flood = tokio::task::JoinSet::new();
    for index in 0..FLOOD {
        let (engine, objects, stop) = (Arc::clone(engine), Arc::clone(&objects), Arc::clone(&stop));
        let image = png(48, 48, index as u32);
        flood.spawn(async move {
            for number in 0_u32.. {
                if stop.load(Ordering::Relaxed) > 0 {
                    break;
                }
                // What follows the picture makes it another file.
                let file = [&image[..], &number.to_le_bytes()].concat().into();
                let answer = ask(&engine, "flood", &objects, file).await;
                if let Some(delay) = answer.err().and_then(|error| error.retry_delay()) {
                    tokio::time::sleep(delay).await;
                }
            }
        });
    }
    while engine.in_flight() < FLOOD / 2 {
        tokio::task::yield_now().await;
    }
    let mut refused = Vec::new();
    for seed in 100..100 + CALLS {
        let image = Source::Encoded(png(64, 64, seed));
        let call = Request {
            deadline: Some(Instant::now() + deadline),
            ..request("other", &objects, image)
        };
        let error = engine.run(call).await.err().map(|error| error.to_string());
        // What came late is no estimate: a busy machine may take as long as it likes.
        refused.extend(error.filter(|error| error.contains("cannot be met")));
    }
    stop.store(1, Ordering::Relaxed);
    flood.join_all().await;
    assert!(
        refused.is_empty(),
        "{} of {CALLS}: {:?}",
        refused.len(),
        refused.first()
    );
    server.stop().await;
}

fn kind_and_wait(error: &Error) -> (Kind, bool) {
    (error.kind(), error.retry_delay().is_some())
}

#[tokio::test(flavor = "multi_thread")]
async fn results_have_room_or_are_refused() {
    const PIXELS: u64 = 800 * 600;
    let server = Running::start(EngineConfig {
        lanes: 1,
        admission: AdmissionLimits {
            // Of two label maps of this size, not of three.
            result_bytes: 6 * PIXELS * 5 / 2,
            decode_bytes: 3 * PIXELS * 2,
            ..AdmissionLimits::default()
        },
        ..EngineConfig::default()
    })
    .await;
    let engine = &server.engine;
    let scene = engine.head("scene").unwrap();
    let image = |seed| Source::Encoded(png(800, 600, seed));
    // Held as long as the answer is.
    let held = engine.run(request("a", &scene, image(1))).await.unwrap();
    assert!(engine.load().result_bytes >= 6 * PIXELS);
    let own = engine
        .run(request("a", &scene, image(2)))
        .await
        .unwrap_err();
    assert_eq!(kind_and_wait(&own), (Kind::Overloaded, true), "{own}");
    let other = engine.run(request("b", &scene, image(3))).await.unwrap();
    let full = engine
        .run(request("c", &scene, image(4)))
        .await
        .unwrap_err();
    assert_eq!(kind_and_wait(&full), (Kind::Overloaded, true), "{full}");
    assert!(full.to_string().contains("limits.result_bytes"), "{full}");
    drop(other);
    drop(held);
    server.settled().await;
    assert_eq!(engine.load().result_bytes, 0);
    // What never fits is told so: by its results, and by what decoding it takes.
    let large = ask(engine, "", &scene, png(1500, 1000, 5))
        .await
        .unwrap_err();
    assert_eq!(large.kind(), Kind::LimitExceeded);
    assert!(large.to_string().contains("limits.decode_bytes"), "{large}");
    let raw = Source::Raw {
        width: 1500,
        height: 1000,
        rgb: vec![9; 1500 * 1000 * 3].into(),
    };
    let large = engine.run(request("", &scene, raw)).await.unwrap_err();
    assert_eq!(large.kind(), Kind::LimitExceeded);
    assert!(large.to_string().contains("limits.result_bytes"), "{large}");
    // A batch is let in as a whole or not at all.
    let mut inference = inference(&server).await;
    let files: Vec<_> = (0..3).map(|seed| png(800, 600, seed)).collect();
    let refused = inference
        .model_infer(infer(&files, "scene"))
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::InvalidArgument, "LIMIT_EXCEEDED")
    );
    inference
        .model_infer(infer(&files[..2], "scene"))
        .await
        .unwrap();
    server.settled().await;
    assert_eq!(engine.load().result_bytes, 0);
    server.stop().await;
}

/// Images that do not fit beside each other are decoded one after another, and all are answered.
#[tokio::test(flavor = "multi_thread")]
async fn decoding_keeps_to_its_bytes() {
    let server = Running::start(EngineConfig {
        lanes: 4,
        admission: AdmissionLimits {
            decode_bytes: 3 * 400 * 300,
            ..AdmissionLimits::default()
        },
        ..EngineConfig::default()
    })
    .await;
    let objects = server.engine.head("objects").unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for seed in 0..40 {
        let (engine, objects) = (Arc::clone(&server.engine), Arc::clone(&objects));
        // Small ones among them.
        let side = if seed % 3 == 0 { 30 } else { 400 };
        let caller = ["a", "b", ""][seed as usize % 3];
        calls.spawn(async move { ask(&engine, caller, &objects, png(side, 300, seed)).await });
    }
    while let Some(answer) = calls.join_next().await {
        answer.unwrap().unwrap();
    }
    server.settled().await;
    server.stop().await;
}

#[test]
fn the_worst_case_follows_from_the_settings() {
    let config = EngineConfig {
        max_batch: 8,
        cache_bytes: 5,
        ..EngineConfig::default()
    };
    let worst = config.worst_case(2, [100, 200]);
    assert_eq!(worst.ready, 8 * 3 * 100 * 200 * 3);
    let parts = worst.images + worst.decoding + worst.ready + worst.results + 5;
    assert_eq!(worst.total(), parts);
}
