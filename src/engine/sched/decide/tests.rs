//! One rule a test. The clock is invented.

use super::*;
use crate::engine::sched::batch::Bucket;

const SIZE: [u32; 2] = [8, 8];
/// A lane that does everything, as on a CPU.
const BOTH: Role = Role {
    device: true,
    cpu: true,
};
/// A lane of a device, beside which others decode.
const DEVICE: Role = Role {
    device: true,
    cpu: false,
};
/// A thread that decodes and makes results.
const WORKER: Role = Role {
    device: false,
    cpu: true,
};
/// Two lanes, and batches that do not wait.
const AT_ONCE: Rules = Rules {
    lanes: 2,
    max_delay: Duration::ZERO,
};
const PATIENT: Rules = Rules {
    lanes: 2,
    max_delay: ms(10),
};

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Batch sizes and the milliseconds that they take.
fn batching(points: &[(usize, f64)]) -> Batching {
    let bucket = |&(rows, millis): &(usize, f64)| Bucket {
        rows,
        seconds: millis / 1e3,
    };
    Batching {
        buckets: points.iter().map(bucket).collect(),
        ..Batching::default()
    }
}

/// A device that gains much by batches.
fn wide() -> Batching {
    batching(&[(1, 10.0), (2, 11.0), (4, 12.0), (8, 14.0)])
}

/// One on which every image costs the same.
fn flat() -> Batching {
    batching(&[(1, 10.0), (2, 20.0), (4, 40.0), (8, 80.0)])
}

/// So many decoded images since `since`.
fn ready(waiting: usize, since: Instant, batching: Batching) -> Option<Ready> {
    Some(Ready {
        size: SIZE,
        waiting,
        since,
        due: None,
        batching,
    })
}

fn batch(rows: usize, bucket: usize) -> Decision {
    let plan = Plan { rows, bucket };
    Decision::Batch { size: SIZE, plan }
}

#[test]
fn a_thread_with_nothing_to_do_rests() {
    let now = Instant::now();
    for role in [BOTH, DEVICE, WORKER] {
        let decision = decide(&View::default(), AT_ONCE, role, now);
        assert_eq!(decision, Decision::Rest, "{role:?}");
    }
}

#[test]
fn results_come_first_where_the_thread_makes_them() {
    let now = Instant::now();
    let view = View {
        finish: true,
        jobs: Some(7),
        ready: ready(8, now, wide()),
        encoded: 3,
        decode: true,
        ..View::default()
    };
    assert_eq!(decide(&view, AT_ONCE, BOTH, now), Decision::Finish);
    assert_eq!(decide(&view, AT_ONCE, WORKER, now), Decision::Finish);
    let head = 7;
    assert_eq!(decide(&view, AT_ONCE, DEVICE, now), Decision::Jobs { head });
}

#[test]
fn a_worker_decodes_and_runs_no_graph() {
    let now = Instant::now();
    let view = View {
        jobs: Some(1),
        ready: ready(8, now, wide()),
        encoded: 1,
        decode: true,
        ..View::default()
    };
    assert_eq!(decide(&view, AT_ONCE, WORKER, now), Decision::Decode);
    let full = View {
        decode: false,
        ..view
    };
    assert_eq!(decide(&full, AT_ONCE, WORKER, now), Decision::Rest);
}

#[test]
fn jobs_and_batches_take_turns() {
    let now = Instant::now();
    let of = |jobs, batch_next, waiting| {
        let view = View {
            jobs,
            batch_next,
            ready: (waiting > 0).then(|| ready(waiting, now, wide())).flatten(),
            busy: 1,
            ..View::default()
        };
        decide(&view, AT_ONCE, DEVICE, now)
    };
    let jobs = |head| Decision::Jobs { head };
    assert_eq!(of(Some(5), false, 8), jobs(5));
    assert_eq!(of(Some(5), true, 8), batch(4, 4), "half, of two lanes");
    assert_eq!(of(Some(5), true, 0), jobs(5), "no batch is there");
    assert_eq!(of(None, false, 8), batch(4, 4), "no jobs are there");
}

#[test]
fn a_lane_fills_a_batch_before_it_starts_one() {
    let now = Instant::now();
    let of = |batching, decoded, encoded| {
        let view = View {
            ready: ready(decoded, now, batching),
            encoded,
            decode: encoded > 0,
            decoded,
            busy: 1,
            ..View::default()
        };
        decide(&view, AT_ONCE, BOTH, now)
    };
    // Of ten images five are its share, for which the batch of four is nearly as good as that of eight.
    assert_eq!(of(wide(), 2, 8), Decision::Decode);
    assert_eq!(of(wide(), 8, 2), batch(4, 4));
    // Where a batch is no faster nobody waits for one.
    assert_eq!(of(flat(), 1, 9), batch(1, 1));
    assert_eq!(of(wide(), 2, 0), batch(1, 1), "there is no more to come");
}

#[test]
fn pixels_that_came_raw_keep_no_encoded_image_out() {
    let now = Instant::now();
    let view = View {
        ready: ready(50, now, wide()),
        encoded: 1,
        decode: true,
        // None of the fifty was decoded here.
        decoded: 0,
        ..View::default()
    };
    assert_eq!(decide(&view, AT_ONCE, BOTH, now), Decision::Decode);
}

#[test]
fn little_is_shared_among_idle_lanes() {
    let now = Instant::now();
    let of = |waiting, busy| {
        let view = View {
            ready: ready(waiting, now, wide()),
            busy,
            ..View::default()
        };
        decide(&view, AT_ONCE, DEVICE, now)
    };
    assert_eq!(of(6, 0), batch(3, 4));
    assert_eq!(
        of(6, 1),
        batch(3, 4),
        "the busy one comes back for its share"
    );
    assert_eq!(of(40, 1), batch(8, 8), "there is enough for both");
}

#[test]
fn graphs_of_microseconds_are_shared_with_nobody() {
    let now = Instant::now();
    let quick = Batching {
        quick: true,
        ..batching(&[(1, 0.007), (8, 0.017)])
    };
    let view = View {
        ready: ready(6, now, quick),
        ..View::default()
    };
    assert_eq!(decide(&view, AT_ONCE, BOTH, now), batch(6, 8));
}

#[test]
fn the_more_have_been_waiting_the_more_the_fastest_batch_counts() {
    let now = Instant::now();
    let of = |lasting| {
        let core = batching(&[(1, 9.9), (2, 19.4), (4, 37.8), (8, 74.0)]);
        let core = Batching { lasting, ..core };
        let view = View {
            ready: ready(40, now, core),
            busy: 1,
            ..View::default()
        };
        decide(&view, AT_ONCE, DEVICE, now)
    };
    assert_eq!(of(0), batch(1, 1));
    assert_eq!(of(6), batch(2, 2));
    assert_eq!(of(16), batch(8, 8));
}

#[test]
fn who_lets_a_batch_wait_gets_the_large_one_or_the_delay() {
    let start = Instant::now();
    let of = |waiting, after: Duration| {
        let view = View {
            ready: ready(waiting, start, flat()),
            ..View::default()
        };
        decide(&view, PATIENT, DEVICE, start + after)
    };
    assert_eq!(of(3, ms(0)), Decision::Until(start + ms(10)));
    assert_eq!(of(3, ms(9)), Decision::Until(start + ms(10)));
    assert_eq!(of(3, ms(10)), batch(2, 2));
    assert_eq!(of(8, ms(0)), batch(8, 8));
}

#[test]
fn no_image_waits_for_others_until_it_is_too_late() {
    let start = Instant::now();
    let of = |due| {
        let mut view = View {
            ready: ready(1, start, flat()),
            ..View::default()
        };
        if let Some(ready) = &mut view.ready {
            ready.due = due;
        }
        decide(&view, PATIENT, DEVICE, start + ms(2))
    };
    assert_eq!(of(None), Decision::Until(start + ms(10)));
    assert_eq!(of(Some(start + ms(5))), Decision::Until(start + ms(5)));
    assert_eq!(of(Some(start + ms(1))), batch(1, 1));
    assert_eq!(of(Some(start + ms(50))), Decision::Until(start + ms(10)));
}

#[test]
fn whoever_waits_for_a_larger_batch_decodes_meanwhile() {
    let start = Instant::now();
    let view = View {
        ready: ready(8, start, flat()),
        encoded: 1,
        decode: true,
        decoded: 1,
        ..View::default()
    };
    assert_eq!(decide(&view, PATIENT, BOTH, start), Decision::Decode);
}

#[test]
fn a_queue_that_is_closed_waits_for_nobody() {
    let start = Instant::now();
    let view = View {
        ready: ready(3, start, flat()),
        closed: true,
        ..View::default()
    };
    assert_eq!(decide(&view, PATIENT, DEVICE, start), batch(2, 2));
}
