use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn rules(policy: Policy) -> Rules {
    Rules {
        policy,
        ..Rules::default()
    }
}

/// An intake with what it has said.
struct Told {
    intake: Intake<()>,
    words: Vec<Word>,
}

impl Told {
    fn new(rules: Rules) -> Self {
        Self {
            intake: Intake::new(rules),
            words: Vec::new(),
        }
    }

    fn offer(&mut self, id: u64, at: Duration) {
        self.intake.offer(id, None, Ok(()), at, &mut self.words);
    }

    fn next(&mut self, at: Duration) -> Option<u64> {
        self.intake.next(at).map(|frame| frame.id)
    }

    /// The last words since the last call.
    fn said(&mut self) -> Vec<(u64, Outcome)> {
        self.words.drain(..).map(|w| (w.id, w.outcome)).collect()
    }
}

const SUPERSEDED: Outcome = Outcome::Dropped(Reason::Superseded);
const DUPLICATE: Outcome = Outcome::Dropped(Reason::Duplicate);
const INVALID: Outcome = Outcome::Dropped(Reason::Invalid);
const SKIPPED: Outcome = Outcome::Dropped(Reason::Skipped);
const ENDED: Outcome = Outcome::Dropped(Reason::Ended);
const AGE: Outcome = Outcome::Dropped(Reason::Age);

#[test]
fn the_latest_waits_alone_and_replaces_one_that_is_not_begun() {
    let mut told = Told::new(rules(Policy::Latest));
    told.offer(1, ms(0));
    assert_eq!(told.next(ms(0)), Some(1));
    assert_eq!(told.intake.outdated(), None, "nothing newer is there");
    told.offer(2, ms(1));
    assert_eq!(told.next(ms(1)), None, "one row of a stream waits");
    assert_eq!(told.intake.outdated(), Some(0));
    told.intake.begun(0);
    assert_eq!(told.intake.outdated(), None);
    assert_eq!(told.next(ms(2)), Some(2));
    told.offer(3, ms(3));
    told.offer(4, ms(4));
    assert_eq!(told.said(), [(3, SUPERSEDED)]);
    // The second is taken back for the fourth.
    assert_eq!(told.intake.outdated(), Some(1));
    told.intake.finished(1, SUPERSEDED, &mut told.words);
    assert_eq!(told.next(ms(5)), Some(4));
    told.intake.finished(0, Outcome::Answered, &mut told.words);
    told.intake.finished(0, Outcome::Answered, &mut told.words);
    assert_eq!(told.said(), [(2, SUPERSEDED), (1, Outcome::Answered)]);
}

#[test]
fn a_queue_pushes_out_the_oldest_and_who_waits_is_not_pushed_out() {
    let mut told = Told::new(rules(Policy::Queue(2)));
    (1..=4).for_each(|id| told.offer(id, ms(id)));
    assert_eq!(told.said(), [(1, SUPERSEDED), (2, SUPERSEDED)]);
    assert!(told.intake.has_room() && told.next(ms(9)) == Some(3));
    let mut told = Told::new(rules(Policy::Wait(2)));
    (1..=2).for_each(|id| told.offer(id, ms(id)));
    assert!(!told.intake.has_room());
    assert_eq!(told.next(ms(3)), Some(1));
    assert!(told.intake.has_room() && told.said().is_empty());
}

#[test]
fn numbers_rise_and_times_do_not_run_backwards() {
    let table = [
        // id, captured, what becomes of it
        (5, Some(100), None),
        (5, Some(101), Some((DUPLICATE, Detail::IdNotRising(5)))),
        (4, Some(101), Some((DUPLICATE, Detail::IdNotRising(5)))),
        (6, Some(99), Some((INVALID, Detail::TimeBackwards(100)))),
        (6, Some(100), Some((DUPLICATE, Detail::IdNotRising(6)))),
        (7, Some(100), None),
        (8, None, None),
        (9, Some(99), Some((INVALID, Detail::TimeBackwards(100)))),
        (u64::MAX, Some(i64::MAX), None),
        (
            0,
            Some(i64::MIN),
            Some((DUPLICATE, Detail::IdNotRising(u64::MAX))),
        ),
    ];
    let mut intake = Intake::new(rules(Policy::Wait(64)));
    for (id, captured, becomes) in table {
        let mut words = Vec::new();
        intake.offer(id, captured, Ok(()), ms(1), &mut words);
        let said = words.iter().map(|w| (w.outcome, w.detail.unwrap()));
        assert_eq!(
            said.collect::<Vec<_>>(),
            Vec::from_iter(becomes),
            "{id} {captured:?}"
        );
    }
    assert_eq!(intake.waiting().len(), 4);
    assert_eq!(intake.account().under_way(), 4);
}

#[test]
fn frames_of_no_use_are_told_and_do_not_count_for_what_is_thinned() {
    let mut told = Told::new(Rules {
        every: 3,
        ..rules(Policy::Queue(64))
    });
    for id in 0..8 {
        let content = if id == 1 { Err(Reason::Image) } else { Ok(()) };
        told.intake
            .offer(id, None, content, ms(id), &mut told.words);
    }
    let image = Outcome::Dropped(Reason::Image);
    let said = told.said();
    assert_eq!(
        said,
        [
            (1, image),
            (2, SKIPPED),
            (3, SKIPPED),
            (5, SKIPPED),
            (6, SKIPPED)
        ]
    );
    let waiting: Vec<_> = told.intake.waiting().map(|f| (f.id, f.ordinal)).collect();
    assert_eq!(waiting, [(0, 0), (4, 3), (7, 6)]);
}

#[test]
fn frames_grow_old_and_are_tried_again_in_time() {
    let mut told = Told::new(Rules {
        max_age: Some(ms(100)),
        ..rules(Policy::Wait(4))
    });
    told.offer(1, ms(0));
    told.offer(2, ms(50));
    assert_eq!(told.intake.wakes(ms(50)), Some(ms(100)));
    let first = told.intake.next(ms(10)).unwrap();
    told.intake.put_back(first, ms(40), &mut told.words);
    assert_eq!(told.intake.wakes(ms(10)), Some(ms(40)));
    assert_eq!(told.next(ms(39)), None);
    told.intake.expire(ms(99), &mut told.words);
    assert!(told.said().is_empty());
    told.intake.expire(ms(100), &mut told.words);
    assert_eq!(told.said(), [(1, AGE)]);
    assert_eq!(told.next(ms(100)), Some(2));
    assert_eq!(told.intake.wakes(ms(100)), None);
}

#[test]
fn what_is_under_way_when_a_stream_ends_is_told() {
    let mut told = Told::new(rules(Policy::Wait(4)));
    (1..=3).for_each(|id| told.offer(id, ms(id)));
    assert_eq!(told.next(ms(4)), Some(1));
    told.intake.close();
    told.offer(4, ms(5));
    assert_eq!(told.said(), [(4, ENDED)]);
    assert!(!told.intake.is_over());
    told.intake.stop(Reason::Ended, &mut told.words);
    assert_eq!(told.said(), [(1, ENDED), (2, ENDED), (3, ENDED)]);
    assert!(told.intake.is_over() && told.intake.account().under_way() == 0);
}

/// What may happen to a stream.
#[derive(Debug, Clone)]
enum Step {
    /// A frame comes, its number so much above the last one, its time too.
    Offer(i64, i64, bool),
    Next,
    Begun(usize),
    Withdraw,
    Finish(usize, usize),
    PutBack(usize, u64),
    Update(usize, u64, u64),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        16 => (-1..4_i64, -1..5_i64, prop::bool::weighted(0.95)).prop_map(|(a, b, c)| Step::Offer(a, b, c)),
        8 => Just(Step::Next),
        4 => (0..8_usize).prop_map(Step::Begun),
        3 => Just(Step::Withdraw),
        6 => (0..8_usize, 0..12_usize).prop_map(|(a, b)| Step::Finish(a, b)),
        1 => (0..8_usize, 0..50_u64).prop_map(|(a, b)| Step::PutBack(a, b)),
        1 => (0..6_usize, 1..4_u64, 0..60_u64).prop_map(|(a, b, c)| Step::Update(a, b, c)),
        4 => (0..20_u64).prop_map(Step::Pass),
    ]
}

fn policy(kind: usize) -> Policy {
    match kind {
        0 | 1 => Policy::Latest,
        2 => Policy::Queue(1),
        3 => Policy::Queue(5),
        4 => Policy::Wait(1),
        _ => Policy::Wait(7),
    }
}

/// Runs `steps`, then a cut or an end with a drain; how many frames were offered.
fn run(steps: Vec<Step>, cut: bool) -> Result<u64, TestCaseError> {
    let mut intake: Intake<u64> = Intake::new(Rules::default());
    let (mut now, mut id, mut time, mut offered) = (Duration::ZERO, 100_i64, 0_i64, 0_u64);
    let mut words = Vec::new();
    let mut out: Vec<Frame<u64>> = Vec::new();
    for step in steps {
        match step {
            Step::Offer(by, later, good) if intake.has_room() => {
                (id, time, offered) = (id + by, time + later, offered + 1);
                let content = if good {
                    Ok(offered)
                } else {
                    Err(Reason::Invalid)
                };
                intake.offer(id as u64, Some(time), content, now, &mut words);
            }
            Step::Offer(..) => {}
            Step::Next => out.extend(intake.next(now)),
            Step::Begun(index) => {
                out.get(index)
                    .into_iter()
                    .for_each(|f| intake.begun(f.ordinal));
            }
            Step::Withdraw => {
                if let Some(ordinal) = intake.outdated() {
                    out.retain(|frame| frame.ordinal != ordinal);
                    intake.finished(ordinal, SUPERSEDED, &mut words);
                }
            }
            Step::Finish(index, how) if index < out.len() => {
                let reason = Reason::ALL.get(how).copied();
                let outcome = reason.map_or(Outcome::Answered, Outcome::Dropped);
                intake.finished(out.remove(index).ordinal, outcome, &mut words);
            }
            Step::PutBack(index, later) if index < out.len() => {
                intake.put_back(out.remove(index), now + ms(later), &mut words);
            }
            Step::Finish(..) | Step::PutBack(..) => {}
            Step::Update(kind, every, age) => {
                let rules = Rules {
                    policy: policy(kind),
                    every,
                    max_age: (age > 0).then_some(ms(age)),
                    ahead: 1 + kind % 3,
                    running: 4,
                };
                intake.set_rules(rules, &mut words);
            }
            Step::Pass(by) => {
                now += ms(by);
                intake.expire(now, &mut words);
            }
        }
        let held = (intake.waiting().len() + intake.running()) as u64;
        prop_assert_eq!(held, intake.account().under_way());
        prop_assert_eq!(intake.running(), out.len());
        prop_assert_eq!(words.len() as u64 + held, offered);
        if intake.rules.policy == Policy::Latest {
            prop_assert!(intake.waiting().len() <= 1);
        }
    }
    match cut {
        true => intake.stop(Reason::Ended, &mut words),
        false => {
            intake.close();
            now += ms(1000);
            intake.rules.max_age = None;
            while !intake.is_over() {
                out.extend(intake.next(now));
                let frame = out
                    .pop()
                    .ok_or_else(|| TestCaseError::fail("it stands still"))?;
                intake.finished(frame.ordinal, Outcome::Answered, &mut words);
            }
        }
    }
    // Each frame has had one last word, and the account is their sum.
    let account = intake.account();
    let mut counted: HashMap<Outcome, u64> = HashMap::new();
    words
        .iter()
        .for_each(|w| *counted.entry(w.outcome).or_default() += 1);
    let of = |outcome| counted.get(&outcome).copied().unwrap_or(0);
    prop_assert_eq!((account.offered(), account.under_way()), (offered, 0));
    prop_assert_eq!(account.answered(), of(Outcome::Answered));
    for reason in Reason::ALL {
        prop_assert_eq!(account.dropped(reason), of(Outcome::Dropped(reason)));
    }
    prop_assert_eq!(words.len() as u64, offered);
    Ok(offered)
}

/// Over 100,000 frames under random bad numbers, updates, errors, withdrawals, overload, cuts and drains.
#[test]
fn offered_is_answered_and_dropped_by_reason_exactly() {
    use proptest::test_runner::{Config, TestRunner};
    let config = Config {
        failure_persistence: None,
        ..Config::with_cases(700)
    };
    let frames = std::cell::Cell::new(0);
    let steps = (prop::collection::vec(step(), 600..1200), any::<bool>());
    let mut runner = TestRunner::new(config);
    let ran = runner.run(&steps, |(steps, cut)| {
        frames.set(frames.get() + run(steps, cut)?);
        Ok(())
    });
    ran.unwrap();
    assert!(frames.get() >= 100_000, "{}", frames.get());
}
