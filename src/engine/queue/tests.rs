//! What a queue says of itself.

use super::*;
use crate::engine::{
    cost::Curve,
    flight::{
        Key,
        tests::{flight, flight_of},
    },
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
    let (job, reply) = Job::new(None, rank, 1, (nothing, 0, None), Default::default());
    flight.attach(vec![(Arc::new(job), 0)]);
    (flight, reply)
}

fn queue(max_delay: Duration) -> Queue {
    Queue::new(QueueOptions {
        lanes: 1,
        workers: 0,
        ready_limit: 64,
        decode_bytes: 1 << 20,
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

/// An image to decode that holds so many bytes and takes so many seconds, and who waits for it.
fn encoded(number: u8, caller: &str, held: u64, seconds: f64) -> (Arc<Flight>, impl Sized) {
    let source = Source::Encoded(vec![number; 4].into());
    let key = Key::new(&[1, 2, 3, 4], "", &source, SIZE);
    let load = Load {
        decode: seconds,
        rest: 0.001,
    };
    let flight = flight_of(key, source, caller, held, load);
    let (nothing, rank) = (Default::default(), flight.rank());
    let (job, reply) = Job::new(None, rank, 1, (nothing, 0, None), Default::default());
    flight.attach(vec![(Arc::new(job), 0)]);
    (Arc::new(flight), reply)
}

fn with_lanes(lanes: usize, decode_bytes: u64) -> Queue {
    Queue::new(QueueOptions {
        lanes,
        workers: 0,
        ready_limit: 64,
        decode_bytes,
        max_batch: 8,
        max_delay: Duration::ZERO,
    })
}

/// What thread `index` decodes next; none if there is nothing that it may.
fn decodes(queue: &Queue, index: usize) -> Option<Arc<Flight>> {
    match queue.next(index, LANE, &flat(), &mut Vec::new()) {
        Some(Work::Decode(flight)) => Some(flight),
        _ => None,
    }
}

#[test]
fn images_are_decoded_beside_each_other_as_far_as_their_bytes_go() {
    let queue = with_lanes(3, 100);
    let held = [60, 30, 50, 200, 10];
    let images = (0..).zip(held).map(|(n, held)| encoded(n, "", held, 0.001));
    let (flights, _replies): (Vec<_>, Vec<_>) = images.unzip();
    assert!(queue.push(flights, &flat()).is_ok());
    let first = decodes(&queue, 0).unwrap();
    let second = decodes(&queue, 1).unwrap();
    assert_eq!((first.cost.held, second.cost.held), (60, 30));
    // Nor does a small one pass the one that waits.
    assert!(decodes(&queue, 2).is_none());
    queue.decoded(&first, Duration::ZERO, None);
    assert_eq!(decodes(&queue, 0).unwrap().cost.held, 50);
    queue.decoded(&second, Duration::ZERO, None);
    assert!(
        decodes(&queue, 1).is_none(),
        "the largest waits to be alone"
    );
    queue.close();
}

#[test]
fn long_ones_leave_a_thread_while_others_are_there() {
    let queue = with_lanes(2, 1 << 20);
    let mut replies = Vec::new();
    let mut push = |number, caller, seconds| {
        let (flight, reply) = encoded(number, caller, 1, seconds);
        replies.push(reply);
        assert!(queue.push(vec![flight], &flat()).is_ok());
    };
    (0..4).for_each(|number| push(number, "flood", 1.0));
    let first = decodes(&queue, 0).unwrap();
    // A caller alone has both.
    let second = decodes(&queue, 1).unwrap();
    queue.decoded(&second, Duration::ZERO, None);
    push(9, "other", 0.001);
    let small = decodes(&queue, 1).unwrap();
    assert_eq!(&*small.rank().flow.caller, "other");
    queue.decoded(&small, Duration::ZERO, None);
    assert!(
        decodes(&queue, 1).is_none(),
        "the other one is long as well"
    );
    push(10, "other", 0.001);
    assert_eq!(&*decodes(&queue, 1).unwrap().rank().flow.caller, "other");
    queue.decoded(&first, Duration::ZERO, None);
    assert_eq!(&*decodes(&queue, 0).unwrap().rank().flow.caller, "flood");
    queue.close();
}

#[test]
fn who_takes_longer_than_was_thought_pays_for_it() {
    let queue = with_lanes(1, 1 << 20);
    let images = (0..12).map(|n| encoded(n, if n < 6 { "a" } else { "b" }, 1, 0.010));
    let (flights, _replies): (Vec<_>, Vec<_>) = images.unzip();
    assert!(queue.push(flights, &flat()).is_ok());
    let mut served = Vec::new();
    for _ in 0..7 {
        let flight = decodes(&queue, 0).unwrap();
        let caller = flight.rank().flow.caller;
        // Each of a's is five times as long.
        let took = if &*caller == "a" { 50 } else { 10 };
        queue.decoded(&flight, Duration::from_millis(took), None);
        served.push(caller);
    }
    let a = served.iter().filter(|caller| &***caller == "a").count();
    assert!(a <= 2, "{served:?}");
    queue.close();
}
