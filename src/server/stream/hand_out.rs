//! Frames on their way to the engine: which heads each is for, and what the engine is asked.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    clips::{At, keep},
    frames::{Content, Given, MOST_ANSWERS, Under},
    session::{Event, Session},
    settings::Settings,
    words::{self, Said},
};
use crate::{
    engine::{self, Begun, Head, Parts},
    error::{Error, Kind, Result},
    repository::Task,
    server::{call::Call, convert},
    stream::{self, Frame, Policy, Reason},
};

/// Frames of a stream whose stages are recorded in a trace.
pub(super) const TRACED: u64 = 100;

impl Session {
    /// Hands out what may be handed out.
    pub(super) fn pump(&mut self) {
        let (now, mut said) = (self.now(), Vec::new());
        self.intake.expire(now, &mut said);
        self.tell(said, None);
        while self.outbox.len() < MOST_ANSWERS {
            if let Some(ordinal) = self.intake.outdated()
                && !self.withdraw(ordinal)
            {
                self.intake.begun(ordinal);
            }
            let Some(frame) = self.intake.next(now) else {
                break;
            };
            self.submit(frame);
        }
        // Less is never refused.
        let _ = self.hold(0);
    }

    /// Takes back a frame that is not begun; whether it was not.
    fn withdraw(&mut self, ordinal: u64) -> bool {
        if self.under.get(&ordinal).is_none_or(Under::has_begun) {
            return false;
        }
        self.works.withdraw(ordinal);
        self.end(ordinal, stream::Outcome::Dropped(Reason::Superseded));
        true
    }

    fn submit(&mut self, frame: Frame<Content>) {
        let ordinal = frame.ordinal;
        if !self.under.contains_key(&ordinal) && !self.begin(&frame) {
            return;
        }
        let begun: Arc<AtomicBool> = Arc::default();
        let Some(under) = self.under.get_mut(&ordinal) else {
            return;
        };
        under.begun = Arc::clone(&begun);
        if matches!(under.settings.rules.policy, Policy::Wait(_)) {
            under.content = Some(frame.content.clone());
        }
        let heads: Vec<_> = under
            .heads
            .iter()
            .map(|(head, _)| Arc::clone(head))
            .collect();
        let options = under
            .heads
            .iter()
            .map(|(_, index)| under.settings.heads[*index].options);
        let options: Vec<_> = options.collect();
        let keep = keep(under.clips.iter().map(|(head, _)| head));
        under.rows_missing = keep.len();
        under.rows.clear();
        let mut call = self.call.clone();
        call.priority = under.settings.priority;
        call.deadline = deadline(
            &call,
            self.began,
            frame.arrived,
            under.settings.rules.max_age,
        );
        if ordinal >= TRACED {
            call = call.without_trace();
        }
        let (tell, told) = (self.tell.clone(), self.tell.clone());
        let mut request = call.request(vec![frame.content], heads, engine::Options::default());
        request.live = engine::Live {
            flow: Some(Arc::clone(&self.flow)),
            begun: Some(Begun::new(move || {
                begun.store(true, Ordering::Release);
                // A stream that is gone hears nothing.
                let _ = tell.send((ordinal, Event::Begun));
            })),
            parts: Some(Parts::new(move |part| {
                let _ = told.send((ordinal, Event::Part(part)));
            })),
            options,
            keep,
        };
        let engine = Arc::clone(&self.engine);
        let run = async move { Given::Frame(engine.run(request).await) };
        self.works.begin(ordinal, true, run);
    }

    /// Finds out which heads a frame is for; whether it has to be run.
    fn begin(&mut self, frame: &Frame<Content>) -> bool {
        let (ordinal, settings) = (frame.ordinal, Arc::clone(&self.settings));
        let mut under = Under {
            at: At {
                ordinal,
                captured: frame.captured,
                arrived: frame.arrived,
                id: frame.id,
            },
            settings: Arc::clone(&settings),
            heads: Vec::new(),
            clips: Vec::new(),
            awaited: Vec::new(),
            ready: 0,
            open: 1,
            rows: Vec::new(),
            rows_missing: 0,
            content: None,
            begun: Arc::default(),
            said: Said::default(),
        };
        let mut without = Vec::new();
        for (index, wanted) in settings.heads.iter().enumerate() {
            if wanted.clips.is_none() {
                let due = self.due.entry(Arc::clone(&wanted.name)).or_default();
                if !due.is(ordinal, wanted.every) {
                    continue;
                }
                due.take(ordinal);
            }
            under.awaited.push(Arc::clone(&wanted.name));
            under.open += 1;
            let order = self.orders.entry(Arc::clone(&wanted.name)).or_default();
            order.expect(ordinal);
            match self.resolve(&settings, index) {
                Ok(head) if wanted.clips.is_some() => under.clips.push((head, index)),
                Ok(head) => under.heads.push((head, index)),
                Err(error) => without.push((Arc::clone(&wanted.name), error)),
            }
        }
        if under.awaited.is_empty() {
            let mut said = Vec::new();
            let skipped = stream::Outcome::Dropped(Reason::Skipped);
            self.intake.finished(ordinal, skipped, &mut said);
            self.tell(said, None);
            return false;
        }
        let runs = !under.heads.is_empty() || !under.clips.is_empty();
        if !under.clips.is_empty() {
            under.open += 1;
            self.rows.expect(ordinal);
        }
        let of = under.of();
        self.under.insert(ordinal, under);
        for (name, error) in without {
            self.rings.forget(&name);
            self.result(ordinal, &name, words::failed(&of, &name, &error), None);
        }
        if !runs {
            self.close(ordinal);
        }
        runs
    }

    /// The head as it is now, if it still is what was asked for.
    fn resolve(&self, settings: &Settings, index: usize) -> Result<Arc<Head>> {
        let wanted = &settings.heads[index];
        let field = format!("heads[{index}]");
        let head = self
            .call
            .identity
            .head(&self.engine, &wanted.name, &field)?;
        if (head.manifest.task == Task::Action) != wanted.clips.is_some() {
            let text = format!(
                "the head {:?} now does {}",
                &*wanted.name, head.manifest.task
            );
            return Err(Error::new(Kind::WrongTask, text).at(field));
        }
        let fields = [field.as_str(), field.as_str()];
        convert::check_bounds(&wanted.options, std::slice::from_ref(&head), fields)?;
        Ok(head)
    }
}

/// When a frame is of no use any more.
pub(super) fn deadline(
    call: &Call,
    began: Instant,
    arrived: Duration,
    max_age: Option<Duration>,
) -> Option<Instant> {
    let own = max_age.map(|age| began + arrived + age);
    own.into_iter().chain(call.deadline).min()
}
