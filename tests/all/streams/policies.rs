//! What becomes of frames when more come than can be computed.

use std::time::Duration;

use frostline::{
    client::raw,
    proto::{self, FrameOutcome, FramePolicy, StreamSettings},
};

use super::camera::{Camera, head, settings};
use crate::{common::graphs::pixels, support::Running};

pub(super) const SIZE: [u32; 2] = [64, 64];
/// Green of a first pixel that costs some tens of milliseconds.
pub(super) const SLOW: u8 = 60;

/// One lane that runs one image at a time, and two heads.
pub(super) async fn serve() -> Running {
    Running::one_at_a_time(SIZE, ["mean", "other"]).await
}

/// An image of which no other is equal, that costs so much.
pub(super) fn image(level: u32, green: u8) -> proto::Image {
    let blue = (level / 200) as u8;
    raw(
        SIZE[1],
        SIZE[0],
        pixels(SIZE, [0, green, blue], (level % 200) as u8),
    )
}

pub(super) fn with(policy: FramePolicy, queue_length: u32) -> StreamSettings {
    StreamSettings {
        policy: policy.into(),
        queue_length,
        ..settings(vec![head("mean")])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_latest_frame_is_the_one_that_is_computed() {
    let server = serve().await;
    let client = server.client().await;
    let mut camera = Camera::open(&client, with(FramePolicy::Latest, 0))
        .await
        .unwrap();
    const FRAMES: u32 = 200;
    for id in 1..=FRAMES {
        camera.show(id, image(id, SLOW)).await;
    }
    let outcomes = camera.outcomes(FRAMES as usize).await;
    assert_eq!(outcomes.len(), FRAMES as usize);
    assert_eq!(outcomes[&FRAMES], FrameOutcome::Answered);
    let answered = outcomes
        .values()
        .filter(|o| **o == FrameOutcome::Answered)
        .count();
    let superseded = outcomes
        .values()
        .filter(|o| **o == FrameOutcome::Superseded)
        .count();
    assert_eq!(answered + superseded, FRAMES as usize, "{outcomes:?}");
    assert!(superseded > 0, "all were computed: it was no overload");
    // None was computed for nothing.
    let rows = server.engine.counters().backbone_rows;
    assert_eq!(rows, answered as u64);
    let done = camera.done.iter();
    let ids = done.filter(|done| done.outcome() == FrameOutcome::Answered);
    let ids: Vec<_> = ids.map(|done| done.frame_id).collect();
    assert!(ids.is_sorted(), "{ids:?}");
    camera.end().await.unwrap();
    server.settled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_loses_no_frame_and_a_queue_loses_the_oldest() {
    let server = serve().await;
    let client = server.client().await;
    let mut camera = Camera::open(&client, with(FramePolicy::Wait, 2))
        .await
        .unwrap();
    for id in 1..=40 {
        camera.show(id, image(id, 1)).await;
    }
    let outcomes = camera.outcomes(40).await;
    assert!(
        outcomes.values().all(|o| *o == FrameOutcome::Answered),
        "{outcomes:?}"
    );
    camera.end().await.unwrap();

    let mut camera = Camera::open(&client, with(FramePolicy::Queue, 3))
        .await
        .unwrap();
    for id in 1..=100 {
        camera.show(id, image(100 + id, SLOW)).await;
    }
    let outcomes = camera.outcomes(100).await;
    let superseded = |(id, outcome): (&u32, &FrameOutcome)| {
        (*outcome == FrameOutcome::Superseded).then_some(*id)
    };
    let lost: Vec<_> = outcomes.iter().filter_map(superseded).collect();
    assert!(
        !lost.is_empty() && lost.iter().all(|id| *id <= 97),
        "{lost:?}"
    );
    for id in 98..=100 {
        assert_eq!(outcomes[&id], FrameOutcome::Answered);
    }
    camera.end().await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_are_thinned_and_grow_old() {
    let server = serve().await;
    let client = server.client().await;
    let thin = StreamSettings {
        every: 3,
        ..with(FramePolicy::Wait, 0)
    };
    let mut camera = Camera::open(&client, thin).await.unwrap();
    for id in 1..=7 {
        camera.show(id, image(id, 1)).await;
    }
    let outcomes = camera.outcomes(7).await;
    let answered =
        |(id, outcome): (&u32, &FrameOutcome)| (*outcome == FrameOutcome::Answered).then_some(*id);
    let answered: Vec<_> = outcomes.iter().filter_map(answered).collect();
    assert_eq!(answered, [1, 4, 7]);
    assert_eq!(outcomes[&2], FrameOutcome::Skipped);

    // Frames behind one that takes long are too old when it is done.
    let updated = camera.update(StreamSettings {
        max_age: Some(Duration::from_millis(1).try_into().unwrap()),
        ..with(FramePolicy::Wait, 16)
    });
    assert!(updated.await.error.is_none());
    let mut other = Camera::open(&client, with(FramePolicy::Wait, 0))
        .await
        .unwrap();
    other.show(1, image(50, 255)).await;
    while server.engine.load().queued > 0 || server.engine.in_flight() == 0 {
        tokio::task::yield_now().await;
    }
    for id in 10..20 {
        camera.show(id, image(id, 1)).await;
    }
    let outcomes = camera.outcomes(17).await;
    let old = (10..20).filter(|id| outcomes[id] == FrameOutcome::TooOld);
    assert!(old.count() > 0, "{outcomes:?}");
    assert_eq!(other.frame(1).await.done.outcome(), FrameOutcome::Answered);
    camera.end().await.unwrap();
    other.end().await.unwrap();
    server.settled().await;
    server.stop().await;
}
