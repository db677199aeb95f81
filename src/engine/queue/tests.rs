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
    let (job, reply) = Job::new(None, rank, 1, Default::default(), Default::default());
    flight.attach(vec![(Arc::new(job), 0)]);
    (flight, reply)
}

#[test]
fn images_that_run_come_before_one_that_arrives() {
    let curve = Curve {
        size: SIZE,
        points: vec![(1, 0.010), (4, 0.012)],
    };
    let costs = Costs::new(&[curve], None);
    let queue = Queue::new(QueueOptions {
        lanes: 1,
        ready_limit: 64,
        max_batch: 8,
        max_delay: Duration::ZERO,
    });
    let (flights, replies): (Vec<_>, Vec<_>) = (0..7).map(image).unzip();
    let ahead = || queue.ahead(Priority::Normal, None);
    assert!(queue.push(flights, &costs).is_ok());
    assert_eq!([ahead().waiting, ahead().running], [7, 0]);
    let (mut busy, mut dropped) = (None, Vec::new());
    let mut next = || match queue.next(LANE, &mut busy, &costs, &mut dropped) {
        Some(Work::Batch(batch)) => batch.images.len(),
        _ => 0,
    };
    assert_eq!(next(), 4);
    // Half of a batch that runs is done, as it comes.
    assert_eq!([ahead().waiting, ahead().running], [3, 4]);
    assert_eq!(ahead().images(), 5);
    assert_eq!(next(), 3);
    assert_eq!([ahead().waiting, ahead().running], [0, 3]);
    drop(replies);
    queue.close();
    assert_eq!(next(), 0);
    assert_eq!(ahead().images(), 0);
    assert!(dropped.is_empty());
}
