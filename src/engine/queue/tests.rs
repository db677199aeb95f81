//! What a queue says of itself.

use super::*;
use crate::engine::{
    cost::Curve,
    flight::{Key, tests::flight},
};

const SIZE: [u32; 2] = [8, 8];
const LANE: Role = Role {
    device: true,
    cpu: true,
};

/// An image that needs no decoding, somebody who waits for it, and where they hear of it.
fn image(level: u8) -> (Arc<Flight>, impl Sized) {
    let source = Source::Raw {
        width: SIZE[1],
        height: SIZE[0],
        rgb: vec![level; 8 * 8 * 3].into(),
    };
    let key = Key::new(&[1, 2, 3, 4], "", &source, SIZE);
    let flight = Arc::new(flight(key, source));
    let rank = flight.rank();
    let nothing = Default::default();
    let (job, reply) = Job::new(None, rank, 1, (nothing, 0), Default::default());
    flight.attach(vec![(Arc::new(job), 0)]);
    (flight, reply)
}

fn queue(max_delay: Duration) -> Queue {
    Queue::new(QueueOptions {
        lanes: 1,
        workers: 0,
        ready_limit: 64,
        max_batch: 8,
        max_delay,
    })
}

fn rank(caller: &str, deadline: Option<Instant>) -> Rank {
    let (flight, _reply) = image(0);
    let mut rank = flight.rank();
    rank.flow.caller = caller.into();
    rank.deadline = deadline;
    rank
}

/// How many images the lane takes next; none if nothing but what is gone is left.
fn next(queue: &Queue, costs: &Costs) -> usize {
    let mut dropped = Vec::new();
    match queue.next(0, LANE, costs, &mut dropped) {
        Some(Work::Batch(batch)) => batch.images.len(),
        _ => 0,
    }
}

#[test]
fn images_that_run_come_before_one_that_arrives() {
    let curve = Curve {
        size: SIZE,
        points: vec![(1, 10.0), (4, 12.0)],
    };
    let costs = Costs::new(&[curve], None);
    let queue = queue(Duration::ZERO);
    // Each takes 10 ms of a thread beside the batch.
    let (flights, replies): (Vec<_>, Vec<_>) = (0..7).map(image).unzip();
    let ahead = |caller| queue.ahead(&rank(caller, None));
    assert!(queue.push(flights, &costs).is_ok());
    assert_eq!((ahead("").images, ahead("").wait.as_millis()), (7, 70));
    // Another caller's turn comes after one of them.
    assert_eq!((ahead("b").images, ahead("b").wait.as_millis()), (1, 10));
    assert_eq!(queue.backlog().as_millis(), 70);
    assert_eq!(next(&queue, &costs), 4);
    // What is left of a batch of twelve seconds, and the three that wait.
    let (images, wait) = (ahead("").images, ahead("").wait);
    assert_eq!(images, 3);
    assert!(
        wait > Duration::from_secs(5) && wait <= Duration::from_millis(12_030),
        "{wait:?}"
    );
    assert_eq!(next(&queue, &costs), 3);
    assert_eq!(ahead("").images, 0);
    assert!(ahead("").wait > Duration::from_secs(5));
    drop(replies);
    queue.close();
    assert_eq!(next(&queue, &costs), 0);
    assert_eq!(ahead("").wait, Duration::ZERO);
}

/// Every image costs the same, whatever the batch.
fn flat() -> Costs {
    let curve = Curve {
        size: SIZE,
        points: [1, 2, 4, 8].map(|n| (n, 0.010 * n as f64)).to_vec(),
    };
    Costs::new(&[curve], Some(&[1, 2, 4, 8]))
}

#[test]
fn who_lets_a_batch_wait_gets_the_large_one() {
    let costs = flat();
    let queue = queue(Duration::from_secs(3600));
    let (flights, _replies): (Vec<_>, Vec<_>) = (0..11).map(image).unzip();
    assert!(queue.push(flights, &costs).is_ok());
    assert_eq!(next(&queue, &costs), 8);
    queue.close();
    let at_once = self::queue(Duration::ZERO);
    let (flights, _replies): (Vec<_>, Vec<_>) = (0..8).map(image).unzip();
    assert!(at_once.push(flights, &costs).is_ok());
    assert!(next(&at_once, &costs) < 8, "nobody asked for it");
    at_once.close();
}

#[test]
fn no_image_waits_for_others_until_it_is_too_late() {
    let costs = flat();
    let queue = queue(Duration::from_secs(3600));
    let (flight, _reply) = image(0);
    let due = Instant::now() + Duration::from_secs(2);
    assert!(flight.promote(rank("", Some(due))));
    assert!(queue.push(vec![flight], &costs).is_ok());
    assert_eq!(next(&queue, &costs), 1);
    assert!(Instant::now() < due);
    queue.close();
}
