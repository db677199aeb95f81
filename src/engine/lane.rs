//! The threads: lanes run graphs, workers decode and postprocess; on a CPU the lanes do both.

mod outcome;
mod pending;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use outcome::{device_died, extracted, fail, keep, land, lost, refuse};
use pending::{Answer, Call, Parts, Pending, Ran};

use super::{
    Shared,
    busy::Busy,
    decoding::decode,
    job::{Finish, Job},
    queue::{Batch, Ready, Work},
    request::Head,
    sched::decide::Role,
};
use crate::{
    backend::{BackendError, Fault, FeatureBatch, FeatureRow, HeadRow},
    error::{Error, Kind, Result},
    memory,
    metrics::Stage,
    trace::Context,
};

/// When to come again after the device had no memory for even one image.
const FULL: Duration = Duration::from_secs(1);

/// How long results wait for those of the same batch.
const TOGETHER: Duration = Duration::from_micros(500);

/// One thread of the engine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thread {
    pub(super) role: Role,
    /// Which sessions are its own.
    pub(super) lane: usize,
    /// Its place among all threads.
    pub(super) index: usize,
}

impl Thread {
    /// The thread's life. When one that runs graphs dies, the engine is over: everything that waits is told.
    pub(super) fn run(self, shared: &Shared) {
        let mut dropped = Vec::new();
        // Work on the CPU since the last batch: what a lane does for its images beside running graphs.
        let mut beside = Duration::ZERO;
        while let Some(work) = shared
            .queue
            .next(self.index, self.role, &shared.costs, &mut dropped)
        {
            shared.drop_flights(&mut dropped);
            memory::tidy();
            let begun = Instant::now();
            match work {
                Work::Nothing => {}
                Work::Finish(finish) => {
                    finish_together([finish]);
                    self.busy(shared).finished(begun.elapsed());
                }
                Work::Decode(flight) => {
                    let ready = decode(shared, &flight);
                    if ready.is_none() {
                        shared.flights.remove(&flight);
                    }
                    shared.queue.decoded(&flight, begun.elapsed(), ready);
                    drop(flight);
                    self.busy(shared).decoded(begun.elapsed());
                }
                Work::Jobs(jobs) => {
                    let (held, mut spent) = (jobs.clone(), Parts::default());
                    let run = || {
                        let mut pending = Pending::default();
                        self.run_jobs(shared, jobs, &mut pending);
                        spent = self.settle(shared, pending);
                    };
                    if !self.guarded(shared, run) {
                        let error = device_died();
                        held.iter().for_each(|job| job.finish(Err(error.clone())));
                        return;
                    }
                    let busy = self.busy(shared);
                    busy.computed(begun.elapsed(), spent.results);
                }
                Work::Batch(batch) => {
                    let (rows, mut spent) = (batch.images.len(), Parts::default());
                    let images = batch.images.iter();
                    // Not its own: whoever is answered has its place back.
                    let held: Vec<_> = images.map(|r| Arc::downgrade(&r.flight)).collect();
                    let run = || spent = self.run_batch(shared, batch);
                    if !self.guarded(shared, run) {
                        let error = device_died();
                        let waiting = held.iter().filter_map(Weak::upgrade);
                        waiting.for_each(|flight| flight.fail(&error));
                        return;
                    }
                    let took = begun.elapsed();
                    self.busy(shared).computed(took, spent.results);
                    let all = took + std::mem::take(&mut beside);
                    shared.costs.served(rows, all, spent.backbone);
                    continue;
                }
            }
            beside += begun.elapsed();
        }
    }

    /// Where its time is counted.
    fn busy(self, shared: &Shared) -> &Busy {
        match self.role.device {
            true => &shared.on_lanes,
            false => &shared.on_workers,
        }
    }

    /// Runs a step with the device; `false` if it panicked, everything that waits then being told.
    fn guarded(self, shared: &Shared, step: impl FnOnce()) -> bool {
        shared.steps.begin(self.lane);
        let done = catch_unwind(AssertUnwindSafe(step)).is_ok();
        shared.steps.end(self.lane);
        if done {
            return true;
        }
        shared.fail(&device_died());
        false
    }

    /// Runs a batch and what becomes complete with it; how long its parts took.
    fn run_batch(self, shared: &Shared, batch: Batch) -> Parts {
        let Batch {
            images: mut batch,
            plan,
            crowded,
        } = batch;
        // Rows of one head, and a clip's frames, next to each other: their heads then read them in place.
        if batch.len() > 2 {
            batch.sort_by_cached_key(|ready| ready.flight.order());
        }
        let mut pending = Pending {
            crowded,
            ..Pending::default()
        };
        let mut complete = Vec::new();
        self.attempt(shared, &batch, plan.bucket, &mut complete, &mut pending);
        drop(batch);
        self.run_jobs(shared, complete, &mut pending);
        self.settle(shared, pending)
    }

    /// Runs a batch; one that finds no memory is halved, one with a bad image is taken apart, so that each image is
    /// computed or fails by itself.
    fn attempt(
        self,
        shared: &Shared,
        batch: &[Ready],
        bucket: usize,
        complete: &mut Vec<Arc<Job>>,
        pending: &mut Pending,
    ) {
        let begun = Instant::now();
        let error = match self.compute(shared, batch, bucket, pending) {
            Ok(features) => return land(shared, batch, &features, begun, complete),
            Err(error) => error,
        };
        let (rows, fault) = (batch.len(), error.fault());
        match fault {
            Fault::DeviceLost => {
                fail(shared, batch, &error);
                lost(shared, &error);
            }
            Fault::OutOfMemory if bucket > 1 => {
                tracing::warn!(%error, rows, bucket, "out of memory; the batch is halved");
                self.make_room(shared);
                for half in batch.chunks(rows.div_ceil(2)) {
                    let fit = shared.costs.fit(size(half), half.len());
                    let bucket = if fit < bucket { fit } else { half.len() };
                    self.attempt(shared, half, bucket, complete, pending);
                }
            }
            Fault::Graph if rows > 1 => {
                tracing::warn!(%error, rows, "a batch failed; its rows are retried alone");
                for one in batch.chunks(1) {
                    let fit = shared.costs.fit(size(one), 1);
                    self.attempt(shared, one, fit, complete, pending);
                }
            }
            Fault::OutOfMemory | Fault::Graph => fail(shared, batch, &error),
        }
    }

    /// Frees what the device holds for later: memory of batch sizes that do not run, and cached features.
    fn make_room(self, shared: &Shared) {
        // Memory comes free in the stream's order. A device that is lost says so again at the next run.
        let _ = shared.backbone.device().synchronize();
        shared.backbone.release();
        shared.cache.leave_device();
    }

    fn compute(
        self,
        shared: &Shared,
        batch: &[Ready],
        bucket: usize,
        pending: &mut Pending,
    ) -> Result<Arc<FeatureBatch>, BackendError> {
        let size = size(batch);
        let begun = Instant::now();
        let images: Vec<&[u8]> = batch.iter().map(|ready| &ready.pixels[..]).collect();
        let features = shared
            .backbone
            .run_images(self.lane, size, &images, bucket)?;
        let features = Arc::new(features);
        if shared.backbone.device().is_resident() {
            let features = Arc::clone(&features);
            pending.runs.push(Ran {
                features,
                size,
                bucket,
                begun,
            });
        } else {
            let took = begun.elapsed();
            shared.costs.ran(size, bucket, took, pending.crowded);
            pending.spent.backbone += took;
        }
        let mut counters = shared.counters.lock();
        counters.backbone_rows += batch.len() as u64;
        counters.backbone_padding += (bucket - batch.len()) as u64;
        counters.backbone_batches += 1;
        drop(counters);
        shared.config.metrics.batch(batch.len());
        Ok(features)
    }

    /// Runs complete jobs: those without a head are done, the others batch by head.
    fn run_jobs(self, shared: &Shared, jobs: Vec<Arc<Job>>, pending: &mut Pending) {
        let now = Instant::now();
        let mut by_head: Vec<(Arc<Head>, Vec<Arc<Job>>)> = Vec::new();
        for job in jobs {
            if !job.wanted(now, Duration::ZERO) {
                continue;
            }
            let Some(head) = &job.head else {
                if let Some(maps) = &job.keep {
                    keep(&job, job.rows().pop(), maps);
                    continue;
                }
                match job.rows().pop() {
                    Some(row) if row.is_on_device() => match row.to_host() {
                        Ok(row) => pending.features.push((job, row)),
                        Err(error) => {
                            let message = format!("the features cannot be read: {error}");
                            job.finish(Err(Error::new(Kind::BackboneFailed, message)));
                        }
                    },
                    Some(row) => job.finish(Ok(extracted(row))),
                    // Finished meanwhile: its caller gave up.
                    None => {}
                }
                continue;
            };
            match by_head.iter_mut().find(|(h, _)| Arc::ptr_eq(h, head)) {
                Some((_, jobs)) => jobs.push(job),
                None => by_head.push((Arc::clone(head), vec![job])),
            }
        }
        for (head, jobs) in by_head {
            self.run_head(shared, &head, jobs, pending);
        }
    }

    /// Waits for what was enqueued, once for the batch and all its heads, and hands it on. Nothing on a CPU, where each
    /// head's answers left as they came. Returns how long the parts took.
    fn settle(self, shared: &Shared, pending: Pending) -> Parts {
        let mut spent = pending.spent;
        if pending.is_empty() {
            return spent;
        }
        if let Err(error) = shared.backbone.device().synchronize() {
            let failure = lost(shared, &error);
            let answered = pending.answers.iter().flat_map(|a| &a.calls);
            let jobs = answered.flat_map(|call| &call.jobs);
            jobs.chain(pending.features.iter().map(|(job, _)| job))
                .for_each(|job| job.finish(Err(failure.clone())));
            return spent;
        }
        for ran in &pending.runs {
            let took = ran.features.device_time();
            let took = took.unwrap_or_else(|| ran.begun.elapsed());
            let crowded = pending.crowded;
            shared.costs.ran(ran.size, ran.bucket, took, crowded);
            spent.backbone += took;
        }
        for (job, row) in pending.features {
            job.finish(Ok(extracted(row)));
        }
        for answer in pending.answers {
            spent.results += self.hand_on(shared, answer);
        }
        spent
    }

    /// Jobs of one head, each distinct set of rows computed once.
    fn run_head(
        self,
        shared: &Shared,
        head: &Arc<Head>,
        jobs: Vec<Arc<Job>>,
        pending: &mut Pending,
    ) {
        let mut calls: Vec<Call> = Vec::with_capacity(jobs.len());
        for job in jobs {
            let rows = job.rows();
            if rows.is_empty() {
                // Finished meanwhile: its caller gave up.
                continue;
            }
            let same = |call: &&mut Call| {
                let pairs = call.rows.iter().zip(&rows);
                pairs.clone().count() == rows.len() && pairs.clone().all(|(a, b)| a.id() == b.id())
            };
            match calls.iter_mut().find(same) {
                Some(call) => call.jobs.push(job),
                None => calls.push(Call {
                    rows,
                    jobs: vec![job],
                }),
            }
        }
        if calls.is_empty() {
            return;
        }
        let most = shared.config.max_batch.max(1);
        while !calls.is_empty() {
            let rest = calls.split_off(most.min(calls.len()));
            self.answer(shared, head, std::mem::replace(&mut calls, rest), pending);
        }
    }

    /// Runs the head on `calls`; those that fail together are retried apart.
    fn answer(
        self,
        shared: &Shared,
        head: &Arc<Head>,
        mut calls: Vec<Call>,
        pending: &mut Pending,
    ) {
        let begun = Instant::now();
        let rows: Vec<_> = calls.iter().flat_map(|c| c.rows.iter().cloned()).collect();
        let error = match head.model.run(self.lane, &rows, calls.len()) {
            Ok(batch) => {
                let head = Arc::clone(head);
                let answer = Answer {
                    head,
                    calls,
                    batch,
                    begun,
                };
                if shared.backbone.device().is_resident() {
                    pending.answers.push(answer);
                } else {
                    pending.spent.results += self.hand_on(shared, answer);
                }
                return;
            }
            Err(error) => error,
        };
        let (name, fault) = (&head.manifest.name, error.fault());
        match (fault, &calls[..]) {
            (Fault::DeviceLost, _) => {
                calls
                    .iter()
                    .for_each(|call| refuse(head, &call.jobs, &error));
                lost(shared, &error);
            }
            (_, [call]) => refuse(head, &call.jobs, &error),
            (Fault::OutOfMemory, _) => {
                tracing::warn!(%error, head = name, "out of memory; the head's batch is halved");
                self.make_room(shared);
                let half = calls.split_off(calls.len() / 2);
                self.answer(shared, head, calls, pending);
                self.answer(shared, head, half, pending);
            }
            (Fault::Graph, _) => {
                tracing::warn!(%error, head = name, "a head's batch failed; its calls are retried alone");
                for call in calls {
                    self.answer(shared, head, vec![call], pending);
                }
            }
        }
    }

    /// Gives a head's outputs to the jobs that want them; how long it took to make results of those that are made here.
    fn hand_on(self, shared: &Shared, answer: Answer) -> Duration {
        let (head_time, computed) = (answer.begun.elapsed(), Instant::now());
        answer.head.cost.add(head_time);
        let (head, calls) = (&answer.head, &answer.calls);
        let jobs = || calls.iter().flat_map(|call| &call.jobs);
        let each = head_time / u32::try_from(jobs().count()).unwrap_or(u32::MAX).max(1);
        answer.head.each.add(each);
        let (metrics, tracer) = (&shared.config.metrics, &shared.config.tracer);
        jobs().for_each(|job| metrics.device(Stage::Head, &head.name, &job.rank.flow.caller, each));
        let mut trace = Context::default();
        if tracer.is_on() {
            let served: Vec<_> = jobs().map(|job| job.trace.clone()).collect();
            let what = [("head", (&head.name).into()), ("calls", calls.len().into())];
            trace = tracer.batch("head batch", &served, answer.begun, computed, &what);
        }
        let batch = Arc::new(answer.batch);
        let mut finishes = Vec::with_capacity(answer.calls.len());
        for (index, call) in answer.calls.iter().enumerate() {
            let device_time = call.rows.last().and_then(FeatureRow::device_time);
            call.jobs.iter().for_each(|job| job.let_go());
            finishes.extend(call.jobs.iter().map(|job| Finish {
                job: Arc::clone(job),
                row: HeadRow::new(&batch, index),
                device_time,
                head_time,
                computed,
                batch: trace.clone(),
            }));
        }
        drop(answer.calls);
        let here = shared.queue.push_finishes(finishes, self.role.cpu);
        let begun = Instant::now();
        finish_together(here);
        begun.elapsed()
    }
}

/// Turns outputs into results. Quick ones leave together: each that leaves wakes a thread, for which a lane makes room.
fn finish_together(finishes: impl IntoIterator<Item = Finish>) {
    let mut begun = Instant::now();
    let mut done = Vec::new();
    for finish in finishes {
        done.extend(finish.run());
        if begun.elapsed() >= TOGETHER {
            done.drain(..).for_each(|(job, result)| job.finish(result));
            begun = Instant::now();
        }
    }
    done.into_iter()
        .for_each(|(job, result)| job.finish(result));
}

fn size(batch: &[Ready]) -> [u32; 2] {
    batch.first().map_or([0, 0], |ready| ready.flight.size())
}

#[cfg(all(test, feature = "demo-models"))]
mod tests;
