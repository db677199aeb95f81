//! What a thread does next: results first, then the device, then decoding.

use std::time::{Duration, Instant};

use super::batch::{Batching, Plan};

/// What a thread may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Role {
    /// Runs graphs.
    pub(crate) device: bool,
    /// Decodes and postprocesses.
    pub(crate) cpu: bool,
}

/// What the rules are about that never changes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Threads that run graphs.
    pub(crate) lanes: usize,
    /// How long a batch may wait to become larger; who sets it wants batches large.
    pub(crate) max_delay: Duration,
}

/// What there is, seen by a thread that looks for work. What it must not take now, such as a long step, is not in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// Whether a head's output waits to become a result.
    pub(crate) finish: bool,
    /// The head whose complete jobs are next.
    pub(crate) jobs: Option<u64>,
    /// Whether it is the turn of a batch where both jobs and images wait.
    pub(crate) batch_next: bool,
    /// The decoded images that are next.
    pub(crate) ready: Option<Ready>,
    /// Images that wait to be decoded.
    pub(crate) encoded: usize,
    /// Whether the next of them may be decoded now: there is room for it.
    pub(crate) decode: bool,
    /// Images that were decoded here and wait.
    pub(crate) decoded: usize,
    /// Lanes that run graphs.
    pub(crate) busy: usize,
    /// Whether nothing comes any more.
    pub(crate) closed: bool,
}

/// Decoded images of one input size.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    /// `[height, width]` in pixels.
    pub(crate) size: [u32; 2],
    /// How many wait.
    pub(crate) waiting: usize,
    /// Since when some do.
    pub(crate) since: Instant,
    /// When the batch of the most urgent must begin at the latest.
    pub(crate) due: Option<Instant>,
    /// What their batches take.
    pub(crate) batching: Batching,
}

/// What a thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Makes a result of a head's output.
    Finish,
    /// Runs a head on its complete jobs.
    Jobs {
        /// Which head.
        head: u64,
    },
    /// Runs the backbone.
    Batch {
        /// `[height, width]` in pixels.
        size: [u32; 2],
        /// How many images, and how they are padded.
        plan: Plan,
    },
    /// Decodes an image.
    Decode,
    /// Waits, and looks again then if nothing comes before.
    Until(Instant),
    /// Waits for something to come.
    Rest,
}

/// What a thread of this role does next.
pub(crate) fn decide(view: &View, rules: Rules, role: Role, now: Instant) -> Decision {
    // A caller waits for each result, and nothing else: it is the last step.
    if role.cpu && view.finish {
        return Decision::Finish;
    }
    let device = match role.device {
        true => on_device(view, rules, role, now),
        false => Decision::Rest,
    };
    match device {
        // Whoever waits for a batch to become larger decodes meanwhile.
        Decision::Rest | Decision::Until(_) if role.cpu && view.decode => Decision::Decode,
        device => device,
    }
}

fn on_device(view: &View, rules: Rules, role: Role, now: Instant) -> Decision {
    // Jobs and batches take turns where both wait.
    if let Some(head) = view.jobs
        && (!view.batch_next || view.ready.is_none())
    {
        return Decision::Jobs { head };
    }
    let Some(ready) = &view.ready else {
        return Decision::Rest;
    };
    let (batching, waiting) = (&ready.batching, ready.waiting);
    let patient = !rules.max_delay.is_zero();
    // A lane that decodes fills a batch before it runs one: whoever waits gains from the faster batch, where it is
    // faster. And it decodes although raw images would fill one: they must not keep encoded ones out.
    let more = role.cpu && view.decode;
    let fair = batching.fair(waiting + view.encoded, rules.lanes);
    let enough = match patient {
        true => batching.most_rows(),
        false => batching.plan(fair).bucket,
    };
    if more && view.decoded < enough {
        return Decision::Rest;
    }
    if patient && waiting < enough && !view.closed {
        let until = patience(ready, rules);
        if now < until {
            return Decision::Until(until);
        }
    }
    let free = match batching.quick {
        // To share it would take longer than to do it.
        true => 1,
        false => rules.lanes.saturating_sub(view.busy).max(1),
    };
    let share = match more {
        true => waiting,
        false => waiting.div_ceil(free),
    };
    Decision::Batch {
        size: ready.size,
        plan: match patient {
            true => batching.filled(waiting),
            false => batching.plan(share.min(fair)),
        },
    }
}

/// Until when decoded images may wait for others: for the whole delay, unless one of them would then come too late.
fn patience(ready: &Ready, rules: Rules) -> Instant {
    let until = ready.since + rules.max_delay;
    ready.due.map_or(until, |due| until.min(due))
}

#[cfg(test)]
mod tests;
