//! Every request gets exactly one answer, and every place and row is given back, whatever callers do.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use frostline::{
    client::raw,
    engine::{self, EngineConfig, Source},
    proto::{self, head_result::Outcome as Answer},
    repository::Repository,
};
use tonic::{Code, Request};

use crate::{
    common::graphs::{BAD_FOR_BACKBONE, HeadGraph, TOUCHY, pixels, write_head},
    support::{Running, touchy},
};

const SIZE: [u32; 2] = [64, 64];
const CALLERS: u64 = 16;
const CALLS: u64 = 150;

fn dice(seed: (u64, u64, &str), sides: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    seed.hash(&mut hasher);
    hasher.finish() % sides
}

#[tokio::test(flavor = "multi_thread")]
async fn under_cancellations_deadlines_refusals_failures_and_reloads_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    touchy(folder.path(), SIZE, ["a", "b"]);
    let mut config = EngineConfig::default();
    config.admission.images = 12;
    let repository = Repository::open(folder.path()).unwrap();
    let server = Running::start_of(&repository, config).await;
    let client = server.client().await;
    let over = Arc::new(AtomicBool::new(false));
    let reloads = {
        let (mut model, over) = (client.model.clone(), Arc::clone(&over));
        tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                for name in ["a", "b"] {
                    let name = name.to_owned();
                    model
                        .load_head(proto::LoadHeadRequest { name })
                        .await
                        .unwrap();
                }
            }
        })
    };
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut tally: BTreeMap<&str, u64> = BTreeMap::new();
                for call in 0..CALLS {
                    let roll = |what, sides| dice((caller, call, what), sides);
                    let red = match roll("red", 16) {
                        0 => BAD_FOR_BACKBONE,
                        _ => 0,
                    };
                    // Few levels: equal images meet in flight.
                    let (green, level) = (roll("green", 24) as u8, roll("level", 20) as u8);
                    let image = raw(SIZE[1], SIZE[0], pixels(SIZE, [red, green, 0], level));
                    let names = [&["a"][..], &["b"], &["a", "b"]][roll("heads", 3) as usize];
                    let mut request = Request::new(proto::AnalyzeRequest {
                        input: Some(proto::analyze_request::Input::Image(image)),
                        heads: names.iter().map(|name| (*name).to_owned()).collect(),
                        priority: roll("priority", 4) as i32,
                        ..Default::default()
                    });
                    let micros = Duration::from_micros(roll("time", 8000));
                    let (hurried, leaves) = (roll("deadline", 5) == 0, roll("leaves", 5) == 0);
                    if hurried {
                        request.set_timeout(micros);
                    }
                    let patience = match leaves {
                        true => micros,
                        false => Duration::from_secs(30),
                    };
                    let mut vision = client.vision.clone();
                    let answer = tokio::time::timeout(patience, vision.analyze(request)).await;
                    let outcome = match answer {
                        Ok(Ok(answer)) => {
                            let results = answer.into_inner().results;
                            assert_eq!(results.len(), names.len());
                            let whole = |r: &proto::HeadResult| {
                                matches!(r.outcome, Some(Answer::Tensor(_) | Answer::Error(_)))
                            };
                            assert!(results.iter().all(whole), "{results:?}");
                            "answered"
                        }
                        Ok(Err(status)) => match status.code() {
                            Code::ResourceExhausted => "refused",
                            Code::DeadlineExceeded | Code::Cancelled if hurried => "late",
                            Code::Internal if red == BAD_FOR_BACKBONE => "poisoned",
                            _ => panic!("{status:?}"),
                        },
                        Err(_) if leaves => "left",
                        Err(_) => panic!("no answer"),
                    };
                    *tally.entry(outcome).or_default() += 1;
                }
                tally
            })
        })
        .collect();
    let mut all: BTreeMap<&str, u64> = BTreeMap::new();
    for caller in callers {
        for (outcome, count) in caller.await.unwrap() {
            *all.entry(outcome).or_default() += count;
        }
    }
    over.store(true, Ordering::Relaxed);
    reloads.await.unwrap();
    assert_eq!(all.values().sum::<u64>(), CALLERS * CALLS);
    for outcome in ["answered", "refused", "late", "left"] {
        assert!(
            all.contains_key(outcome),
            "the test met no call {outcome}: {all:?}"
        );
    }
    server.settled().await;
    assert_eq!(server.engine.load().queued, 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_an_answer_has_its_place_back() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = TOUCHY.write(folder.path());
    let graph = HeadGraph::Mean(1.0);
    write_head(folder.path(), "a", "1", &backbone, SIZE, &graph);
    let mut config = EngineConfig::default();
    config.admission.images = 1;
    let repository = Repository::open(folder.path()).unwrap();
    let server = Running::start_of(&repository, config).await;
    for call in 0..3000_u32 {
        let source = Source::Raw {
            width: SIZE[1],
            height: SIZE[0],
            rgb: pixels(SIZE, [0, 0, 0], call as u8),
        };
        let request = engine::Request {
            images: vec![(source, "image".to_owned())],
            heads: server.engine.head("a").into_iter().collect(),
            ..engine::Request::default()
        };
        let answer = server.engine.run(request).await;
        assert!(answer.is_ok(), "call {call}: {:?}", answer.err());
    }
    server.stop().await;
}
