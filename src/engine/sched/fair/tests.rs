use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// Every entry costs the same.
const ONE: Load = Load {
    decode: 0.0,
    rest: 1.0,
};

fn rank(
    caller: &str,
    head: &str,
    weights: (f64, f64),
    deadline: Option<Instant>,
    priority: Priority,
) -> Rank {
    let flow = Flow {
        caller: caller.into(),
        head: head.into(),
    };
    Rank {
        priority,
        flow,
        weights,
        deadline,
    }
}

fn pop<T>(schedule: &mut Schedule<T>) -> Option<T> {
    schedule.pop(None, |_| true, &mut Vec::new())
}

#[test]
fn a_flood_gets_no_more_than_its_weight_says() {
    let mut schedule = Schedule::default();
    for n in 0..400 {
        let flood = rank("a", "x", (1.0, 3.0), None, Priority::Normal);
        schedule.push(flood, 0, ONE, "flood");
        if n < 50 {
            let other = rank("a", "y", (1.0, 1.0), None, Priority::Normal);
            schedule.push(other, 0, ONE, "other");
        }
    }
    let served: Vec<_> = (0..80).filter_map(|_| pop(&mut schedule)).collect();
    let other = served.iter().filter(|&&name| name == "other").count();
    assert!((19..=21).contains(&other), "{other} of 80, by weight 20");
}

#[test]
fn callers_share_before_their_heads_do() {
    let mut schedule = Schedule::default();
    for _ in 0..100 {
        for head in ["x", "y", "z"] {
            schedule.push(
                rank("many", head, (1.0, 1.0), None, Priority::Normal),
                0,
                ONE,
                "many",
            );
        }
        schedule.push(
            rank("one", "x", (1.0, 1.0), None, Priority::Normal),
            0,
            ONE,
            "one",
        );
    }
    let served: Vec<_> = (0..100).filter_map(|_| pop(&mut schedule)).collect();
    let one = served.iter().filter(|&&name| name == "one").count();
    assert!((49..=51).contains(&one), "{one} of 100");
}

#[test]
fn one_who_was_away_does_not_catch_up() {
    let mut schedule = Schedule::default();
    let busy = || rank("a", "x", (1.0, 1.0), None, Priority::Normal);
    let late = || rank("a", "y", (1.0, 1.0), None, Priority::Normal);
    (0..300).for_each(|_| drop(schedule.push(busy(), 0, ONE, "busy")));
    (0..100).for_each(|_| assert!(pop(&mut schedule).is_some()));
    (0..100).for_each(|_| drop(schedule.push(late(), 0, ONE, "late")));
    let served: Vec<_> = (0..40).filter_map(|_| pop(&mut schedule)).collect();
    let late = served.iter().filter(|&&name| name == "late").count();
    assert!((19..=21).contains(&late), "{late} of 40");
}

#[test]
fn one_pays_for_what_it_takes() {
    let mut schedule = Schedule::default();
    for _ in 0..40 {
        let large = rank("a", "x", (1.0, 1.0), None, Priority::Normal);
        let small = rank("b", "x", (1.0, 1.0), None, Priority::Normal);
        schedule.push(large, 0, Load::rest(1.0), "large");
        (0..10).for_each(|_| drop(schedule.push(small.clone(), 0, Load::rest(0.1), "small")));
    }
    let served: Vec<_> = (0..110).filter_map(|_| pop(&mut schedule)).collect();
    let large = served.iter().filter(|&&name| name == "large").count();
    assert!(
        (9..=11).contains(&large),
        "{large} of 110 are half the work"
    );
}

#[test]
fn before_a_caller_goes_only_what_others_get_until_its_turn() {
    let mut schedule = Schedule::default();
    let start = Instant::now();
    let of = |caller, head, seconds: u64| {
        let deadline = Some(start + Duration::from_secs(seconds));
        rank(caller, head, (1.0, 1.0), deadline, Priority::Normal)
    };
    let ahead = |schedule: &Schedule<_>, rank: &Rank| schedule.ahead(rank).load.total();
    (0..400).for_each(|_| drop(schedule.push(of("flood", "x", 1), 0, ONE, ())));
    assert_eq!(
        ahead(&schedule, &of("other", "x", 9)),
        1.0,
        "whatever the deadline"
    );
    assert_eq!(ahead(&schedule, &of("flood", "x", 9)), 400.0);
    assert_eq!(ahead(&schedule, &of("flood", "x", 0)), 0.0, "it goes first");
    assert_eq!(
        ahead(&schedule, &of("flood", "y", 9)),
        1.0,
        "heads share as well"
    );
    // Of its own and of the flood's as many.
    (0..5).for_each(|_| drop(schedule.push(of("other", "x", 8), 0, ONE, ())));
    assert_eq!(ahead(&schedule, &of("other", "x", 9)), 11.0);
    assert_eq!(ahead(&schedule, &of("third", "x", 9)), 2.0);
    // Twice the weight, half of what goes before.
    let heavy = rank(
        "other",
        "x",
        (5.0, 1.0),
        Some(start + Duration::from_secs(9)),
        Priority::Normal,
    );
    assert_eq!(ahead(&schedule, &heavy), 7.0);
    let urgent = rank("third", "x", (1.0, 1.0), None, Priority::High);
    assert_eq!(ahead(&schedule, &urgent), 0.0);
    let last = rank("third", "x", (1.0, 1.0), None, Priority::Background);
    assert_eq!(ahead(&schedule, &last), 405.0);
}

/// The estimate is what then happens.
#[test]
fn as_much_goes_before_as_was_said() {
    let mut schedule = Schedule::default();
    let of = |caller| rank(caller, "x", (1.0, 1.0), None, Priority::Normal);
    (0..300).for_each(|_| drop(schedule.push(of("flood"), 0, ONE, 0)));
    (0..20).for_each(|_| assert!(pop(&mut schedule).is_some()));
    (0..30).for_each(|_| drop(schedule.push(of("second"), 0, ONE, 0)));
    (0..7).for_each(|_| drop(schedule.push(of("own"), 0, ONE, 0)));
    let said = schedule.ahead(&of("own")).images;
    schedule.push(of("own"), 0, ONE, 1);
    let before = std::iter::from_fn(|| pop(&mut schedule))
        .take_while(|n| *n == 0)
        .count();
    assert!(said.abs_diff(before) <= 3, "{said} said, {before} went");
}

/// What waits: number, class, flow, deadline, group.
type Entry = (usize, Priority, (u8, u8), Option<Instant>, u64);

#[derive(Debug, Clone)]
enum Step {
    Push(u8, u8, u8, Option<u8>, u8),
    Pop(Option<u8>),
    Remove(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let push = (
        0..3_u8,
        0..3_u8,
        0..3_u8,
        proptest::option::of(0..9_u8),
        0..2_u8,
    );
    let step = prop_oneof![
        3 => push.prop_map(|(p, c, h, d, g)| Step::Push(p, c, h, d, g)),
        2 => proptest::option::of(0..2_u8).prop_map(Step::Pop),
        1 => any::<u8>().prop_map(Step::Remove),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn every_entry_leaves_once_in_order_of_class_and_deadline(steps in steps()) {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        let mut model: Vec<Entry> = Vec::new();
        let mut places = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Push(p, c, h, d, g) => {
                    let priority = [Priority::Background, Priority::Normal, Priority::High][p as usize];
                    let deadline = d.map(|d| start + Duration::from_secs(d.into()));
                    let (caller, head) = (c.to_string(), h.to_string());
                    let rank = rank(&caller, &head, (1.0 + f64::from(c), 1.0), deadline, priority);
                    places.push((number, schedule.push(rank, g.into(), ONE, number)));
                    model.push((number, priority, (c, h), deadline, g.into()));
                }
                Step::Pop(group) => {
                    let group = group.map(u64::from);
                    let fits = |e: &&Entry| {
                        group.is_none_or(|g| g == e.4)
                    };
                    let got = schedule.pop(group, |_| true, &mut Vec::new());
                    prop_assert_eq!(got.is_some(), model.iter().any(|e| fits(&e)));
                    if let Some(got) = got {
                        let at = model.iter().position(|e| e.0 == got);
                        let taken = model.remove(at.expect("it was waiting"));
                        let best = model.iter().filter(fits).map(|e| e.1).max();
                        prop_assert!(best.is_none_or(|best| best <= taken.1), "a higher class waits");
                        let earlier = model.iter().filter(fits).any(|e| {
                            (e.1, e.2, e.4) == (taken.1, taken.2, taken.4)
                                && (order(e.3), e.0) < (order(taken.3), taken.0)
                        });
                        prop_assert!(!earlier, "the same flow has an earlier deadline");
                    }
                }
                Step::Remove(which) if !places.is_empty() => {
                    let (number, place) = &places[which as usize % places.len()];
                    let waits = model.iter().position(|e| e.0 == *number);
                    prop_assert_eq!(schedule.remove(place), waits.map(|_| *number));
                    waits.map(|at| model.remove(at));
                }
                Step::Remove(_) => {}
            }
            prop_assert_eq!(schedule.len(), model.len());
            prop_assert_eq!(schedule.is_empty(), model.is_empty());
            prop_assert_eq!(schedule.load().total(), model.len() as f64);
        }
        let mut rest = schedule.drain();
        rest.sort_unstable();
        let mut left: Vec<_> = model.iter().map(|e| e.0).collect();
        left.sort_unstable();
        prop_assert_eq!(rest, left);
    }
}
