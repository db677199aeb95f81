//! Under more load than it can carry, the server shares by weight, class and deadline, and wastes nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use frostline::{client::raw, proto};
use tokio::task::JoinSet;
use tonic::{Request, Status};

use crate::{common::graphs::pixels, support::Running};

const SIZE: [u32; 2] = [64, 64];
/// Green of a first pixel that costs about ten milliseconds.
const SLOW: u8 = 40;
/// Calls that make up a flood.
const FLOOD: u8 = 60;

/// One lane that runs one image at a time, and two heads.
async fn serve() -> Running {
    Running::one_at_a_time(SIZE, ["flooded", "other"]).await
}

struct Call {
    head: &'static str,
    level: u8,
    priority: proto::Priority,
    deadline: Option<Duration>,
}

impl Call {
    fn new(head: &'static str, level: u8) -> Self {
        Self {
            head,
            level,
            priority: proto::Priority::Normal,
            deadline: None,
        }
    }
}

/// Sends a call; counts it in `done` when it is answered.
async fn send(
    calls: &mut JoinSet<Result<(), Status>>,
    server: &Running,
    done: &Arc<AtomicUsize>,
    call: Call,
) {
    let (client, done) = (server.client().await, Arc::clone(done));
    let image = raw(SIZE[1], SIZE[0], pixels(SIZE, [0, SLOW, 0], call.level));
    let mut request = Request::new(proto::AnalyzeRequest {
        input: Some(proto::analyze_request::Input::Image(image)),
        heads: vec![call.head.to_owned()],
        priority: call.priority.into(),
        ..Default::default()
    });
    if let Some(deadline) = call.deadline {
        request.set_timeout(deadline);
    }
    calls.spawn(async move {
        let answer = client.vision.clone().analyze(request).await.map(drop);
        done.fetch_add(1, Ordering::Relaxed);
        answer
    });
}

/// A server on which a flood waits, the flood, and how much of it is done.
async fn flooded() -> (Running, JoinSet<Result<(), Status>>, Arc<AtomicUsize>) {
    let server = serve().await;
    let (mut flood, done) = (JoinSet::new(), Arc::default());
    for level in 0..FLOOD {
        send(&mut flood, &server, &done, Call::new("flooded", level)).await;
    }
    while server.engine.load().queued + done.load(Ordering::Relaxed) < usize::from(FLOOD) - 2 {
        tokio::task::yield_now().await;
    }
    (server, flood, done)
}

/// Sends five calls beside the flood; how many of the flood were answered meanwhile.
async fn beside(server: &Running, done: &AtomicUsize, call: impl Fn(u8) -> Call) -> usize {
    let (mut own, own_done) = (JoinSet::new(), Arc::default());
    let before = done.load(Ordering::Relaxed);
    for level in 100..105 {
        send(&mut own, server, &own_done, call(level)).await;
    }
    while let Some(answer) = own.join_next().await {
        answer.unwrap().unwrap();
    }
    done.load(Ordering::Relaxed) - before
}

async fn all_answered(mut calls: JoinSet<Result<(), Status>>) {
    while let Some(answer) = calls.join_next().await {
        answer.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_on_one_head_does_not_starve_another() {
    let (server, flood, done) = flooded().await;
    let meanwhile = beside(&server, &done, |level| Call::new("other", level)).await;
    // Turn and turn about: five of each, and what was on its way while the five were sent.
    assert!(meanwhile <= 20, "{meanwhile} of the flood went first");
    all_answered(flood).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_higher_class_goes_before_a_flood() {
    let (server, flood, done) = flooded().await;
    let meanwhile = beside(&server, &done, |level| Call {
        priority: proto::Priority::High,
        ..Call::new("flooded", level)
    })
    .await;
    assert!(meanwhile <= 15, "{meanwhile} of the flood went first");
    all_answered(flood).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_deadline_goes_before_a_flood_without_one() {
    let (server, flood, done) = flooded().await;
    let meanwhile = beside(&server, &done, |level| Call {
        deadline: Some(Duration::from_secs(30)),
        ..Call::new("flooded", level)
    })
    .await;
    assert!(meanwhile <= 15, "{meanwhile} of the flood went first");
    all_answered(flood).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_leave_take_their_work_with_them() {
    let (server, mut flood, done) = flooded().await;
    flood.abort_all();
    while flood.join_next().await.is_some() {}
    server.settled().await;
    let counters = server.engine.counters();
    // Those that were answered, and a few that were on the lane or on their way to it.
    let most = done.load(Ordering::Relaxed) as u64 + 5;
    assert!(
        counters.backbone_rows <= most,
        "{counters:?}, at most {most}"
    );
    assert_eq!(server.engine.load().queued, 0);
    let mut own = JoinSet::new();
    send(&mut own, &server, &done, Call::new("other", 1)).await;
    all_answered(own).await;
    server.stop().await;
}

/// On one thread, so that a call is given up before the server has looked at it.
#[tokio::test]
async fn many_calls_given_up_at_once_do_not_cost_the_others_their_connection() {
    let server = serve().await;
    let client = server.client().await;
    let analyze = |level| {
        let mut vision = client.vision.clone();
        let image = raw(SIZE[1], SIZE[0], pixels(SIZE, [0, SLOW, 0], level));
        async move {
            let request = proto::AnalyzeRequest {
                input: Some(proto::analyze_request::Input::Image(image)),
                heads: vec!["other".to_owned()],
                ..Default::default()
            };
            vision.analyze(request).await.map(drop)
        }
    };
    let stays = tokio::spawn(analyze(0));
    let mut leaves = JoinSet::new();
    for level in 1..=200 {
        leaves.spawn(tokio::time::timeout(
            Duration::from_millis(1),
            analyze(level),
        ));
    }
    while leaves.join_next().await.is_some() {}
    stays.await.unwrap().unwrap();
    server.settled().await;
    server.stop().await;
}
