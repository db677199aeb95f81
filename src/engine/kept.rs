//! Heads that read rows which were kept: several frames of a stream, each computed when it came.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    Engine, Head, Options, Outcome, Priority, Shared,
    board::{Position, Reply},
    job::{Done, Extracted, Job, stopped},
    landed::{How, Landed},
    live::{Kept, Part, Parts},
    request::Looks,
    room::Room,
    sched::rank::{Flow, Rank},
};
use crate::{
    error::{Error, Kind, Result},
    media::Work,
    trace::Context,
};

/// The kind of work that decoding a plain JPEG is.
const JPEG: usize = 0;

/// A head to run on rows that are kept.
#[derive(Debug)]
pub struct KeptRequest {
    /// The head, and one row for each frame that it reads.
    pub head: Arc<Head>,
    /// The rows in the order of their frames.
    pub rows: Vec<Kept>,
    /// How its output becomes a result.
    pub options: Options,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    /// How urgent it is.
    pub priority: Priority,
    /// Who asks.
    pub caller: Arc<str>,
    /// The call's place in a trace.
    pub trace: Context,
}

/// Seconds of the engine's threads.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seconds {
    /// Of threads that run graphs.
    pub lanes: f64,
    /// Of those that decode and make results beside them.
    pub workers: f64,
}

impl Engine {
    /// About what an image of `pixels` as a JPEG takes of the threads for these heads, the backbone once for each of their
    /// input sizes among it. Where there are no workers all of it is the lanes'.
    #[must_use]
    pub fn frame_seconds(&self, caller: &str, heads: &[Arc<Head>], pixels: u64) -> Seconds {
        let (shared, work) = (
            &self.shared,
            Work {
                kind: JPEG,
                size: pixels,
            },
        );
        let mut sizes: Vec<_> = heads.iter().map(|head| head.manifest.input_size).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let rows: f64 = sizes.iter().map(|size| shared.costs.share(*size)).sum();
        let decode = shared.costs.decodes(caller, work).as_secs_f64();
        let decode = decode * sizes.len() as f64;
        let mut all = match shared.config.workers {
            0 => Seconds {
                lanes: rows + decode,
                workers: 0.0,
            },
            _ => Seconds {
                lanes: rows,
                workers: decode,
            },
        };
        for head in heads {
            let own = self.head_seconds(caller, head, pixels);
            all.lanes += own.lanes;
            all.workers += own.workers;
        }
        all
    }

    /// The part of that which is the head's alone.
    #[must_use]
    pub fn head_seconds(&self, caller: &str, head: &Head, pixels: u64) -> Seconds {
        let size = head.output_size(pixels, &Options::default());
        let results = head.finishing(caller, size).as_secs_f64();
        let all = head.takes(caller, size);
        match self.shared.config.workers {
            0 => Seconds {
                lanes: all,
                workers: 0.0,
            },
            _ => Seconds {
                lanes: all - results,
                workers: results,
            },
        }
    }

    /// Seconds of the threads that there are in a second.
    #[must_use]
    pub fn seconds(&self) -> Seconds {
        Seconds {
            lanes: self.shared.lanes as f64,
            workers: self.shared.config.workers as f64,
        }
    }

    /// Runs a head on kept rows: nothing is decoded and the backbone does not run. Dropping the future gives up.
    ///
    /// # Errors
    /// A number of rows that the head does not read, a full server, a missed deadline, a head that fails.
    pub async fn run_kept(&self, request: KeptRequest) -> Result<(Outcome, Arc<Room>)> {
        let (shared, started) = (&self.shared, Instant::now());
        let result = self.on_kept(&request).await;
        let (name, took) = (&request.head.name, started.elapsed());
        let code = result.as_ref().err().map(|error| error.kind().reason());
        shared
            .config
            .metrics
            .stage(crate::metrics::Stage::Total, name, code, took);
        result
    }

    async fn on_kept(&self, request: &KeptRequest) -> Result<(Outcome, Arc<Room>)> {
        let (shared, head) = (&self.shared, &request.head);
        let frames = head.manifest.frames();
        let Some(last) = request.rows.last().filter(|_| request.rows.len() == frames) else {
            let message = format!("{} rows for {frames} frames", request.rows.len());
            return Err(Error::new(Kind::Internal, message));
        };
        let flow = Flow {
            caller: Arc::clone(&request.caller),
            head: Arc::clone(&head.name),
        };
        let weights = shared.config.weights(&flow.caller, &flow.head);
        let wait = || shared.queue.backlog();
        let permit = shared
            .admission
            .admit(&flow, weights.0 * weights.1, 1, 0, wait)
            .inspect_err(|_| shared.turned_away("full"))?;
        let (width, height) = last.image_size();
        let looks = Looks {
            width,
            height,
            work: Work::raw(width, height),
            held: 0,
        };
        let bytes = head.result_bytes(&looks, &request.options);
        let room = shared
            .rooms
            .take(&flow.caller, weights.0, bytes, wait)
            .inspect_err(|_| shared.turned_away("full"))?;
        let rank = Rank {
            priority: request.priority,
            flow,
            weights,
            deadline: request.deadline,
        };
        let how = (request.options, looks.pixels(), Some(Arc::clone(&room)));
        let trace = request.trace.clone();
        let (job, reply) = Job::new(Some(Arc::clone(head)), rank, frames, how, trace);
        let job = Arc::new(job);
        for (slot, kept) in request.rows.iter().enumerate() {
            job.fill(slot, &kept.landed());
        }
        shared.queue.push_jobs(vec![job]);
        let done = self.reply(reply, request.deadline).await?;
        let Done::Head(computed) = done else {
            return Err(Error::new(Kind::Internal, "the head gave no output"));
        };
        shared.note_head(&head.name, &computed, &request.trace);
        let outcome = computed.outcome;
        drop(permit);
        Ok((outcome, room))
    }

    /// A job's answer, unless the deadline passes or the engine dies.
    async fn reply(
        &self,
        reply: oneshot::Receiver<Result<Done>>,
        deadline: Option<Instant>,
    ) -> Result<Done> {
        let answer = async {
            tokio::select! {
                biased;
                answer = reply => answer.unwrap_or_else(|_| Err(stopped())),
                error = self.failed() => Err(error),
            }
        };
        match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline.into(), answer)
                .await
                .map_err(|_| Error::new(Kind::DeadlineExceeded, "the deadline passed"))?,
            None => answer.await,
        }
    }
}

impl Kept {
    fn landed(&self) -> Landed {
        Landed {
            row: self.row.clone(),
            geometry: self.geometry,
            how: How {
                timing: super::Timing::default(),
                batch_size: 0,
                begun: None,
                batch: Context::default(),
            },
        }
    }
}

impl Shared {
    /// Awaits the answers of a request's jobs. With `parts` each result goes there as it comes, and leaves
    /// [`Outcome::Sent`] behind.
    pub(super) async fn gather(
        &self,
        mut replies: Vec<Reply>,
        parts: Option<&Parts>,
        (caller, room): (&Arc<str>, &Arc<Room>),
    ) -> Vec<(Position, Result<Done>)> {
        let mut answers = Vec::with_capacity(replies.len());
        poll_fn(|context| {
            replies.retain_mut(|(position, reply)| {
                let Poll::Ready(answer) = Pin::new(reply).poll(context) else {
                    return true;
                };
                let mut answer = answer.unwrap_or_else(|_| Err(stopped()));
                if let (Some(parts), Ok(done)) = (parts, &mut answer) {
                    self.hand_over(*position, done, parts, (caller, room));
                    if let Position::Row(_) = position {
                        return false;
                    }
                }
                answers.push((*position, answer));
                false
            });
            match replies.is_empty() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
        answers
    }

    fn hand_over(
        &self,
        position: Position,
        done: &mut Done,
        parts: &Parts,
        (caller, room): (&Arc<str>, &Arc<Room>),
    ) {
        match (position, done) {
            (Position::Head(index), Done::Head(computed)) => {
                let outcome = std::mem::replace(&mut computed.outcome, Outcome::Sent);
                parts.give(Part::Head(index, outcome, Arc::clone(room)));
            }
            (Position::Row(size), Done::Features(extracted)) => {
                parts.give(Part::Row(size, self.keep(extracted, caller)));
            }
            _ => {}
        }
    }

    /// Takes the room that a kept row needs.
    fn keep(&self, extracted: &Extracted, caller: &Arc<str>) -> Result<Kept> {
        let Some(geometry) = extracted.geometry else {
            return Err(Error::new(Kind::Internal, "a row was not kept"));
        };
        let row = extracted.row.clone();
        let (weight, _) = self.config.weights(caller, "");
        let bytes = row.bytes() as u64;
        let room = self
            .rooms
            .take(caller, weight, bytes, || Duration::from_millis(100))?;
        Ok(Kept {
            row,
            geometry,
            _room: room,
        })
    }
}
