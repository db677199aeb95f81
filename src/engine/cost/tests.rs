use super::*;
use crate::engine::sched::batch::Plan;

const SIZE: [u32; 2] = [8, 8];

/// The batch to form of `waiting` images where `crowd` have been waiting of late.
fn plan(costs: &Costs, waiting: usize, crowd: usize) -> Plan {
    let known = costs.batching(SIZE);
    let lasting = crowd;
    Batching { lasting, ..known }.plan(waiting)
}

fn costs(points: &[(usize, f64)]) -> Costs {
    let curve = Curve {
        size: SIZE,
        points: points.to_vec(),
    };
    Costs::new(&[curve], None)
}

#[test]
fn a_batch_size_that_serves_no_more_is_left_out() {
    let flat = Curve {
        size: SIZE,
        points: vec![(1, 0.100), (2, 0.200), (4, 0.360), (8, 0.730)],
    };
    assert_eq!(flat.worthwhile(), [1, 4]);
}

#[test]
fn small_graphs_gain_from_batches_what_each_batch_costs_beside_them() {
    let curve = |unit: f64| Curve {
        size: SIZE,
        points: [(1, 23.0), (2, 39.0), (4, 72.0), (8, 143.0)]
            .map(|(rows, units)| (rows, units * unit))
            .to_vec(),
    };
    assert_eq!(curve(1e-4).worthwhile(), [1, 2, 4, 8]);
    assert_eq!(curve(1e-2).worthwhile(), [1, 2, 4]);
}

#[test]
fn pads_where_padding_is_faster_and_splits_where_it_is_not() {
    // A device on which a batch of 4 costs hardly more than one of 1.
    let wide = costs(&[(1, 0.010), (2, 0.011), (4, 0.012)]);
    assert_eq!(plan(&wide, 3, 3), Plan { rows: 3, bucket: 4 });
    assert_eq!(wide.batching(SIZE).fastest(), 4);
    // One on which every image costs the same, but for a small start.
    let narrow = costs(&[(1, 0.011), (2, 0.020), (4, 0.038)]);
    assert_eq!(plan(&narrow, 3, 9), Plan { rows: 2, bucket: 2 });
    assert_eq!(plan(&narrow, 9, 9), Plan { rows: 4, bucket: 4 });
    assert_eq!(plan(&narrow, 1, 9), Plan { rows: 1, bucket: 1 });
}

#[test]
fn few_images_do_not_wait_for_each_other_where_a_batch_gains_little() {
    // One core: a batch of 8 serves 6 % more than 8 batches of 1, and each of its images waits for all.
    let core = costs(&[(1, 0.0100), (8, 0.0755)]);
    assert_eq!(core.batching(SIZE).fastest(), 8);
    assert_eq!(plan(&core, 2, 3), Plan { rows: 1, bucket: 1 });
    assert_eq!(plan(&core, 8, 15), Plan { rows: 8, bucket: 8 });
    // The more wait, the more the better batch counts.
    let core = costs(&[(1, 0.0099), (2, 0.0194), (4, 0.0378), (8, 0.0740)]);
    let bucket = |crowd| plan(&core, 8, crowd).bucket;
    assert_eq!([bucket(1), bucket(6), bucket(11), bucket(16)], [1, 2, 4, 8]);
    // A device that gains much by batches gets them at once.
    let wide = costs(&[(1, 0.010), (8, 0.020)]);
    assert_eq!(plan(&wide, 8, 8), Plan { rows: 8, bucket: 8 });
}

#[test]
fn lanes_share_what_waits_until_that_is_two_of_the_best_batches() {
    let busy = costs(&[(1, 0.0023), (8, 0.0137)]);
    assert_eq!(busy.batching(SIZE).fastest(), 8);
    let fair = |crowd| busy.batching(SIZE).fair(crowd, 2);
    assert_eq!([fair(1), fair(3), fair(15), fair(16)], [1, 2, 8, 16]);
    assert_eq!(
        busy.batching(SIZE).fair(15, 1),
        15,
        "a lane alone takes all"
    );
    let toy = costs(&[(1, 7e-6), (8, 17e-6)]);
    assert_eq!(
        toy.batching(SIZE).fair(3, 2),
        3,
        "sharing costs more than the work"
    );
}

#[test]
fn an_image_takes_as_long_as_the_batch_that_it_joins() {
    let wide = costs(&[(1, 0.010), (8, 0.020)]);
    let joined = |waiting| wide.joined(SIZE, waiting, 2).as_millis();
    assert_eq!([joined(1), joined(16), joined(300)], [10, 20, 20]);
    (0..50).for_each(|_| wide.ran(SIZE, 8, Duration::from_millis(30), true));
    assert!(joined(300) >= 29, "{} ms", joined(300));
}

#[test]
fn a_batch_size_that_gains_less_while_serving_than_at_warm_up_is_left() {
    let costs = costs(&[(1, 0.0023), (2, 0.0040), (4, 0.0066), (8, 0.0125)]);
    let plan = |crowd| plan(&costs, 8, crowd).bucket;
    assert_eq!([plan(3), plan(16)], [4, 8]);
    let run = |rows: usize, each: f64, crowded| {
        let took = Duration::from_secs_f64(rows as f64 * each);
        costs.ran(SIZE, rows, took, crowded);
    };
    (0..200).for_each(|_| run(4, 0.0030, false));
    assert_eq!(plan(3), 4, "what ran beside idle lanes is no measure");
    // Every image costs the same.
    for _ in 0..100 {
        [1, 2, 4, 8]
            .iter()
            .for_each(|rows| run(*rows, 0.0019, true));
    }
    assert_eq!(plan(3), 2);
    // Much later the others have another chance, as far as all of them have become slower or faster.
    (0..40_000).for_each(|_| run(2, 0.0019, true));
    assert_eq!(plan(3), 4);
}

#[test]
fn a_crowd_counts_where_it_lasts() {
    let core = costs(&[(1, 0.0099), (2, 0.0194), (4, 0.0378), (8, 0.0740)]);
    let plan = || core.batching(SIZE).plan(8).bucket;
    (0..10).for_each(|_| core.waited(SIZE, 30, core.batching(SIZE).fastest()));
    assert_eq!(plan(), 2, "a stall");
    (0..100).for_each(|_| core.waited(SIZE, 30, core.batching(SIZE).fastest()));
    assert_eq!(plan(), 8, "more than can be served");
    (0..200).for_each(|_| core.waited(SIZE, 0, core.batching(SIZE).fastest()));
    assert_eq!(plan(), 1);
    (0..1000).for_each(|_| core.waited(SIZE, 1_000_000, core.batching(SIZE).fastest()));
    (0..200).for_each(|_| core.waited(SIZE, 0, core.batching(SIZE).fastest()));
    assert_eq!(plan(), 1, "a flood is forgotten as soon");
}

#[test]
fn one_batch_that_is_held_up_changes_little() {
    let costs = costs(&[(1, 0.0023), (2, 0.0040), (4, 0.0066), (8, 0.0125)]);
    costs.ran(SIZE, 8, Duration::from_secs(1), true);
    assert_eq!(plan(&costs, 8, 16).bucket, 8);
}

#[test]
fn a_graph_is_quick_while_its_largest_batch_takes_less_than_waking_a_thread() {
    let toy = costs(&[(1, 7e-6), (8, 17e-6)]);
    assert!(toy.is_quick(SIZE));
    assert!(!toy.is_quick([9, 9]), "a size that is not served");
    (0..100).for_each(|_| toy.row.add(Duration::from_millis(1)));
    assert!(!toy.is_quick(SIZE), "a slow head");
    assert!(!costs(&[(1, 7e-3), (8, 5e-2)]).is_quick(SIZE));
}

#[test]
fn images_that_have_waited_for_each_other_go_together() {
    // Every image costs the same, whatever the batch.
    let curve = Curve {
        size: SIZE,
        points: [1, 2, 4, 8].map(|n| (n, 0.010 * n as f64)).to_vec(),
    };
    let flat = Costs::new(&[curve], Some(&[1, 2, 4, 8]));
    assert_eq!(flat.batching(SIZE).most_rows(), 8);
    let filled = |waiting| flat.batching(SIZE).filled(waiting);
    assert_eq!(filled(8), Plan { rows: 8, bucket: 8 });
    assert_eq!(filled(20), Plan { rows: 8, bucket: 8 });
    // Four and one, where three rows of padding would cost as much as three images; on a device they cost little.
    assert_eq!(filled(5), Plan { rows: 4, bucket: 4 });
    let wide = costs(&[(1, 0.010), (4, 0.012), (8, 0.013)]);
    assert_eq!(wide.batching(SIZE).filled(5), Plan { rows: 5, bucket: 8 });
    assert_eq!(wide.batching(SIZE).filled(1), Plan { rows: 1, bucket: 1 });
    assert_eq!(wide.batching([9, 9]).filled(3), Plan { rows: 1, bucket: 1 });
}

#[test]
fn a_picture_of_another_kind_or_size_is_no_measure() {
    let costs = costs(&[(1, 0.010)]);
    let photo = Work {
        kind: 0,
        size: 640 * 480,
    };
    let poster = Work {
        kind: 0,
        size: 8000 * 6000,
    };
    let decode = |work: Work| costs.decoding(work).most("", work.size);
    let add = |work: Work, took| costs.decoding(work).add(&"".into(), work.size, took);
    add(photo, Duration::from_millis(4));
    (0..20).for_each(|_| add(poster, Duration::from_secs(1)));
    assert!(decode(photo) < Duration::from_millis(5));
    assert!(decode(poster) > Duration::from_millis(900));
    let other = Work { kind: 1, ..poster };
    assert_eq!(decode(other), Duration::ZERO);
}
