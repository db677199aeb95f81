//! What a thread does next: results first, then the device, then decoding.

use std::{sync::Arc, time::Instant};

use super::{Batch, Queue, Ready, Role, Work, size, state::State};
use crate::engine::{
    cost::{Costs, Plan, WAKING},
    estimate::{Stage, Steps},
    flight::Flight,
    job::Job,
    schedule::Verdict,
    turns,
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

impl Queue {
    /// What there is to do for a thread of this role: results first, then the device, then decoding.
    pub(super) fn work(&self, state: &mut State, look: &mut Look<'_>) -> Option<Work> {
        let (role, length) = (look.role, of_length(look.long));
        if role.cpu
            && let Some(finish) = state.finishes.pop(length, |_| true, &mut Vec::new())
        {
            return Some(Work::Finish(finish));
        }
        if role.device {
            let work = self.device_work(state, look);
            if work.is_some() {
                return work;
            }
        }
        if !role.cpu || !self.may_decode(state, look.long) {
            return None;
        }
        let flight = self.next_encoded(state, look)?;
        flight.set_waiting(None);
        state.decoding += 1;
        state.decoding_bytes += flight.cost.held;
        Some(Work::Decode(flight))
    }

    fn may_decode(&self, state: &State, long: bool) -> bool {
        if state.encoded.is_empty() || state.decoded + state.decoding >= self.options.ready_limit {
            return false;
        }
        let next = state.encoded.peek(of_length(long));
        next.is_some_and(|flight| self.has_room(state.decoding_bytes, flight))
    }

    /// Whether an image can be decoded beside those that hold so many bytes.
    fn has_room(&self, held: u64, flight: &Flight) -> bool {
        held == 0 || held + flight.cost.held <= self.options.decode_bytes
    }

    fn next_encoded(&self, state: &mut State, look: &mut Look<'_>) -> Option<Arc<Flight>> {
        let costs = look.costs;
        let (now, held) = (Instant::now(), state.decoding_bytes);
        let waiting = state.encoded.len() + state.ready.len();
        let keep = |flight: &Arc<Flight>| {
            if !self.has_room(held, flight) {
                return Verdict::Wait;
            }
            let (work, preprocess) = (flight.cost.work, &flight.preprocess);
            let size = [preprocess.height, preprocess.width];
            let caller = flight.rank().flow.caller;
            let steps = Steps {
                decode: costs.decoding(work).most(&caller, work.size),
                batch: costs.joined(size, waiting, self.options.lanes),
                ..steps(costs)
            };
            flight.wanted(now, steps.from(Stage::Encoded)).into()
        };
        state.encoded.pop(of_length(look.long), keep, look.dropped)
    }

    fn device_work(&self, state: &mut State, look: &mut Look<'_>) -> Option<Work> {
        let (role, costs) = (look.role, look.costs);
        let jobs_first = !state.batch_next || state.ready.is_empty();
        if jobs_first && let Some(group) = state.jobs.next_group() {
            state.batch_next = true;
            let (now, steps) = (Instant::now(), steps(costs).from(Stage::Features));
            let keep = |job: &Arc<Job>| job.wanted(now, steps);
            let most = self.options.max_batch;
            let jobs = std::iter::from_fn(|| state.jobs.pop(Some(group), keep, &mut Vec::new()));
            return Some(Work::Jobs(jobs.take(most).collect()));
        }
        state.batch_next = false;
        let group = state.ready.next_group()?;
        let (size, waiting) = (size(group), state.ready.count(group));
        // Who lets a batch wait wants it large.
        let patient = !self.options.max_delay.is_zero();
        // A lane that decodes fills a batch before it runs one: whoever waits gains from the faster batch, where it is
        // faster. And it decodes although raw images would fill one: they must not keep encoded ones out.
        let more = role.cpu && self.may_decode(state, look.long);
        let crowd = waiting + state.encoded.len();
        let fair = costs.fair(size, crowd, self.options.lanes);
        let lasting = costs.lasting(size);
        let enough = match patient {
            true => costs.most_rows(size),
            false => costs.plan(size, fair, lasting).bucket,
        };
        if more && state.decoded < enough {
            return None;
        }
        if patient && waiting < enough && !state.closed {
            let until = self.patience(state, group, costs);
            if Instant::now() < until {
                look.wait_until = Some(until);
                return None;
            }
        }
        let free = match costs.is_quick(size) {
            // To share it would take longer than to do it.
            true => 1,
            false => self.options.lanes.saturating_sub(state.lanes_busy).max(1),
        };
        let share = if more {
            waiting
        } else {
            waiting.div_ceil(free)
        };
        costs.waited(size, crowd);
        let mut plan = match patient {
            true => costs.filled(size, waiting),
            false => costs.plan(size, share.min(fair), lasting),
        };
        let steps = Steps {
            batch: costs.batch(size, plan.bucket),
            ..steps(costs)
        };
        let (now, ahead) = (Instant::now(), steps.from(Stage::Ready));
        let mut left_out = Vec::new();
        let mut batch = Vec::with_capacity(plan.rows);
        while batch.len() < plan.rows
            && let Some(ready) = state.ready.pop(
                Some(group),
                |ready: &Ready| ready.flight.wanted(now, ahead),
                &mut left_out,
            )
        {
            ready.flight.set_waiting(None);
            batch.push(ready);
        }
        let gone = batch.iter().chain(&left_out);
        state.decoded -= gone.filter(|ready| ready.decoded).count();
        look.dropped
            .extend(left_out.into_iter().map(|ready| ready.flight));
        state.ready_since = (!state.ready.is_empty()).then_some(now);
        if batch.is_empty() {
            return (!look.dropped.is_empty()).then_some(Work::Nothing);
        }
        if batch.len() < plan.rows {
            plan = Plan {
                rows: batch.len(),
                bucket: costs.fit(size, batch.len()),
            };
        }
        Some(Work::Batch(Batch {
            images: batch,
            plan,
            crowded: state.lanes.idle == 0,
        }))
    }

    /// Until when decoded images may wait for others: for the whole delay, unless one of them would then come too late.
    fn patience(&self, state: &mut State, group: u64, costs: &Costs) -> Instant {
        let since = *state.ready_since.get_or_insert_with(Instant::now);
        let until = since + self.options.max_delay;
        let Some((due, ready)) = state.ready.first_due(group) else {
            return until;
        };
        let size = size(group);
        let steps = Steps {
            batch: costs.batch(size, costs.most_rows(size)),
            head: ready.flight.most(),
            ..steps(costs)
        };
        // With some time for the thread to wake, and for what varies.
        let needed = steps.from(Stage::Ready).mul_f64(1.5) + 20 * WAKING;
        until.min(due.checked_sub(needed).unwrap_or(since))
    }
}

/// The group of steps that a thread looks for.
fn of_length(long: bool) -> Option<u64> {
    (!long).then_some(turns::SHORT)
}

/// The steps that are the same for everybody. The heads' are each job's own.
fn steps(costs: &Costs) -> Steps {
    Steps {
        delivery: costs.delivery.most(),
        ..Steps::default()
    }
}
