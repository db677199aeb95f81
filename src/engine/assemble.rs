//! A request's answer, put together of its jobs'.

use std::{sync::Arc, time::Instant};

use super::{
    Analysis, Engine, Head, Outcome, Request,
    board::{Boarded, Position},
    job::{Done, stopped},
    request::Looked,
};
use crate::error::{Error, Kind, Result};

/// The answers of a request's jobs.
pub(super) type Answers = Vec<(Position, Result<Done>)>;

impl Engine {
    /// The answer of a request all of whose jobs are done.
    pub(super) fn assemble(
        &self,
        request: Request,
        looked: Looked,
        boarded: &Boarded,
        answers: Answers,
        started: Instant,
    ) -> Result<Analysis> {
        let shared = &self.shared;
        if let Some((error, index)) = boarded.failure() {
            let kind = error.kind();
            let of_image = kind == Kind::InvalidImage || kind == Kind::LimitExceeded;
            return Err(match request.images.get(index) {
                Some((_, field)) if of_image => error.at(field),
                _ => error,
            });
        }
        let mut provenance = boarded.provenance();
        let mut features = None;
        let mut results: Vec<Option<Result<Outcome>>> = Vec::new();
        results.resize_with(request.heads.len(), || None);
        for (position, answer) in answers {
            // Of an image that came from the cache there is none.
            if provenance.batch_size > 0
                && let Ok(Some(took)) = answer.as_ref().map(Done::device_time)
            {
                provenance.timing.backbone = took;
            }
            let (index, computed) = match (position, answer) {
                (Position::Features, Ok(Done::Features(extracted))) => {
                    features = Some(extracted.row);
                    continue;
                }
                (Position::Features, Err(error)) => return Err(error),
                (Position::Head(index), Ok(Done::Head(computed))) => (index, Ok(computed)),
                (Position::Head(index), Err(error)) => (index, Err(error)),
                // What was kept went its own way. No job answers what another was asked.
                _ => continue,
            };
            if let Ok(computed) = &computed {
                let timing = &mut provenance.timing;
                timing.head = timing.head.max(computed.head_time);
                timing.postprocess = timing.postprocess.max(computed.postprocess_time);
                let finished = computed.postprocess_begun + computed.postprocess_time;
                shared.costs.delivery.add(finished.elapsed());
                shared.note_head(&request.heads[index].name, computed, &request.trace);
            }
            results[index] = Some(computed.map(|computed| computed.outcome));
        }
        provenance.timing.total = started.elapsed();
        boarded.spans(started, &request.trace);
        let heads = request.heads.into_iter().zip(results);
        let heads: Vec<_> = heads
            .map(|(head, result)| (head, result.unwrap_or_else(|| Err(stopped()))))
            .collect();
        // A deadline that nothing could meet is the call's, not one head's.
        if !heads.is_empty()
            && features.is_none()
            && let Some(error) = late(&heads)
        {
            return Err(error);
        }
        let last = looked.images.last();
        Ok(Analysis {
            heads,
            features,
            provenance,
            image_size: last.map_or([0; 2], |last| [last.height, last.width]),
            room: Some(looked.room),
        })
    }
}

/// The error of a request whose every head was too late or was given up.
fn late(heads: &[(Arc<Head>, Result<Outcome>)]) -> Option<Error> {
    let of_call = |kind| matches!(kind, Kind::DeadlineExceeded | Kind::Unavailable);
    let errors: Option<Vec<_>> = heads
        .iter()
        .map(|(_, result)| result.as_ref().err().filter(|e| of_call(e.kind())))
        .collect();
    errors?.first().copied().cloned()
}
