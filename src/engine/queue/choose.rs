//! What a thread does next: the queue's state as [`decide`] sees it, and its decision carried out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Queue, group, size,
    state::State,
    work::{Batch, Ready, Work},
};
use crate::engine::{
    cost::Costs,
    flight::Flight,
    job::Job,
    sched::{
        batch::Plan,
        decide::{self, Decision, Role, View, decide},
        estimate::{Stage, Steps},
        fair::Verdict,
        tuning::WAKING,
        turns,
    },
};

/// A thread's look for work.
pub(super) struct Look<'a> {
    pub(super) role: Role,
    pub(super) costs: &'a Costs,
    /// Whether it takes long results and pictures too, or only the others.
    pub(super) long: bool,
    /// Entries that nobody wants, or that cannot be answered in time.
    pub(super) dropped: &'a mut Vec<Arc<Flight>>,
    /// When to look again although nothing came.
    pub(super) wait_until: Option<Instant>,
}

impl Look<'_> {
    /// The group of steps that it looks for.
    fn length(&self) -> Option<u64> {
        (!self.long).then_some(turns::SHORT)
    }
}

impl Queue {
    /// What there is to do for a thread of this role.
    pub(super) fn work(&self, state: &mut State, look: &mut Look<'_>) -> Option<Work> {
        let now = Instant::now();
        let view = self.view(state, look);
        match decide(&view, self.options.rules(), look.role, now) {
            Decision::Finish => {
                let finish = state.finishes.pop(look.length(), |_| true, &mut Vec::new());
                finish.map(Work::Finish)
            }
            Decision::Jobs { head } => {
                state.batch_next = true;
                Some(Work::Jobs(self.take_jobs(state, look.costs, head)))
            }
            Decision::Batch { size, plan } => {
                state.batch_next = false;
                if let Some(ready) = &view.ready {
                    let crowd = view.encoded + ready.waiting;
                    let fastest = ready.batching.fastest();
                    look.costs.waited(size, crowd, fastest);
                }
                self.take_batch(state, look, size, plan)
            }
            Decision::Decode => self.take_encoded(state, look).map(Work::Decode),
            Decision::Until(until) => {
                let earlier = look.wait_until.map_or(until, |other| other.min(until));
                look.wait_until = Some(earlier);
                None
            }
            Decision::Rest => None,
        }
    }

    /// What there is for this thread.
    fn view(&self, state: &State, look: &Look<'_>) -> View {
        let (role, length) = (look.role, look.length());
        let finish = role.cpu && state.finishes.peek(length).is_some();
        if finish || !role.device {
            return View {
                finish,
                decode: role.cpu && self.may_decode(state, length),
                ..View::default()
            };
        }
        View {
            finish,
            jobs: state.jobs.next_group(),
            batch_next: state.batch_next,
            ready: self.ready(state, look.costs),
            encoded: state.encoded.len(),
            decode: role.cpu && self.may_decode(state, length),
            decoded: state.decoded,
            busy: state.lanes_busy,
            closed: state.closed,
        }
    }

    /// The decoded images that are next.
    fn ready(&self, state: &State, costs: &Costs) -> Option<decide::Ready> {
        let group = state.ready.next_group()?;
        let size = size(group);
        let patient = !self.options.max_delay.is_zero();
        Some(decide::Ready {
            size,
            waiting: state.ready.count(group),
            since: state.ready_since.unwrap_or_else(Instant::now),
            due: patient.then(|| due(state, group, costs)).flatten(),
            batching: costs.batching(size),
        })
    }

    fn may_decode(&self, state: &State, length: Option<u64>) -> bool {
        if state.encoded.is_empty() || state.decoded + state.decoding >= self.options.ready_limit {
            return false;
        }
        let next = state.encoded.peek(length);
        next.is_some_and(|flight| self.has_room(state.decoding_bytes, flight))
    }

    /// Whether an image can be decoded beside those that hold so many bytes.
    fn has_room(&self, held: u64, flight: &Flight) -> bool {
        held == 0 || held + flight.cost.held <= self.options.decode_bytes
    }

    /// Complete jobs of one head.
    fn take_jobs(&self, state: &mut State, costs: &Costs, head: u64) -> Vec<Arc<Job>> {
        let (now, steps) = (Instant::now(), steps(costs).from(Stage::Features));
        let keep = |job: &Arc<Job>| job.wanted(now, steps);
        let jobs = std::iter::from_fn(|| state.jobs.pop(Some(head), keep, &mut Vec::new()));
        jobs.take(self.options.max_batch).collect()
    }

    /// An image to decode, if one is left that is wanted and can be answered in time.
    fn take_encoded(&self, state: &mut State, look: &mut Look<'_>) -> Option<Arc<Flight>> {
        let costs = look.costs;
        let (now, held) = (Instant::now(), state.decoding_bytes);
        let waiting = state.encoded.len() + state.ready.len();
        let keep = |flight: &Arc<Flight>| {
            if !self.has_room(held, flight) {
                return Verdict::Wait;
            }
            let work = flight.cost.work;
            let caller = flight.rank().flow.caller;
            let steps = Steps {
                decode: costs.decoding(work).most(&caller, work.size),
                batch: costs.joined(flight.size(), waiting, self.options.lanes),
                ..steps(costs)
            };
            flight.wanted(now, steps.from(Stage::Encoded)).into()
        };
        let before = look.dropped.len();
        let flight = state.encoded.pop(look.length(), keep, look.dropped);
        let gone = look.dropped.iter().skip(before).chain(&flight);
        for flight in gone {
            state.places.leave(flight);
        }
        let flight = flight?;
        flight.tell_begun();
        state.decoding += 1;
        state.decoding_bytes += flight.cost.held;
        Some(flight)
    }

    /// The decoded images of a batch; fewer than planned where some are not wanted or cannot be answered in time.
    fn take_batch(
        &self,
        state: &mut State,
        look: &mut Look<'_>,
        size: [u32; 2],
        mut plan: Plan,
    ) -> Option<Work> {
        let costs = look.costs;
        let steps = Steps {
            batch: costs.batch(size, plan.bucket),
            ..steps(costs)
        };
        let (now, ahead) = (Instant::now(), steps.from(Stage::Ready));
        let keep = |ready: &Ready| ready.flight.wanted(now, ahead);
        let mut left_out = Vec::new();
        let mut images = Vec::with_capacity(plan.rows);
        while images.len() < plan.rows
            && let Some(ready) = state.ready.pop(Some(group(size)), keep, &mut left_out)
        {
            images.push(ready);
        }
        let gone = images.iter().chain(&left_out);
        for ready in gone.clone() {
            state.places.leave(&ready.flight);
        }
        state.decoded -= gone.filter(|ready| ready.decoded).count();
        look.dropped
            .extend(left_out.into_iter().map(|ready| ready.flight));
        state.ready_since = (!state.ready.is_empty()).then_some(now);
        if images.is_empty() {
            return (!look.dropped.is_empty()).then_some(Work::Nothing);
        }
        images.iter().for_each(|ready| ready.flight.tell_begun());
        if images.len() < plan.rows {
            plan = Plan {
                rows: images.len(),
                bucket: costs.fit(size, images.len()),
            };
        }
        Some(Work::Batch(Batch {
            images,
            plan,
            crowded: state.lanes.idle == 0,
        }))
    }
}

/// When the batch of the most urgent image must begin at the latest.
fn due(state: &State, group: u64, costs: &Costs) -> Option<Instant> {
    let (due, ready) = state.ready.first_due(group)?;
    let size = size(group);
    let steps = Steps {
        batch: costs.batch(size, costs.batching(size).most_rows()),
        head: ready.flight.most(),
        ..steps(costs)
    };
    // With some time for the thread to wake, and for what varies.
    let needed: Duration = steps.from(Stage::Ready).mul_f64(1.5) + 20 * WAKING;
    Some(due.checked_sub(needed).unwrap_or(due))
}

/// The steps that are the same for everybody. The heads' are each job's own.
fn steps(costs: &Costs) -> Steps {
    Steps {
        delivery: costs.delivery.most(),
        ..Steps::default()
    }
}
