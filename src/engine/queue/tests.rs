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

/// A queue whose batches of 4 take hardly longer than those of 1, and its costs.
fn queue(lanes: usize) -> (Queue, Costs) {
    let curve = Curve {
        size: SIZE,
        points: vec![(1, 0.010), (4, 0.012)],
    };
    let queue = Queue::new(QueueOptions {
        lanes,
        ready_limit: 64,
        max_batch: 8,
        max_delay: Duration::ZERO,
    });
    (queue, Costs::new(&[curve], None))
}

#[test]
fn images_that_run_come_before_one_that_arrives() {
    let (queue, costs) = queue(1);
    let (flights, replies): (Vec<_>, Vec<_>) = (0..7).map(image).unzip();
    let ahead = || queue.ahead(Priority::Normal, None);
    assert!(queue.push(flights, &costs).is_ok());
    assert_eq!([ahead().waiting, ahead().running], [7, 0]);
    let (mut hand, mut dropped) = (Hand::new(LANE), Vec::new());
    let mut next = || match queue.next(&mut hand, &costs, &mut dropped) {
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

/// Its core is warm, and those of the others may sleep on.
#[test]
fn of_lanes_that_rest_the_last_one_to_rest_gets_the_work() {
    let (queue, costs) = queue(2);
    std::thread::scope(|scope| {
        let (sender, took) = std::sync::mpsc::channel();
        for _ in 0..2 {
            let (queue, costs, sender) = (&queue, &costs, sender.clone());
            scope.spawn(move || {
                let mut hand = Hand::new(LANE);
                while let Some(work) = queue.next(&mut hand, costs, &mut Vec::new()) {
                    if let Work::Batch(_) = work {
                        sender.send(Arc::clone(&hand.bell)).expect("the test waits");
                    }
                }
            });
        }
        for level in 0..20 {
            // Now and then one wakes to tidy up, and rests anew.
            let last = loop {
                let state = queue.state.lock();
                match &state.lanes.idle[..] {
                    [_, last] => break Arc::clone(last),
                    _ => drop(state),
                }
                std::thread::yield_now();
            };
            let (flight, _reply) = image(level);
            assert!(queue.push(vec![flight], &costs).is_ok());
            let bell = took.recv().expect("a lane took it");
            assert!(Arc::ptr_eq(&bell, &last), "image {level}");
        }
        queue.close();
    });
}
