//! What comes of frames: results in their order, rows for clips, last words.

use std::{collections::btree_map::Entry, sync::Arc, time::Duration};

use super::{
    Outgoing,
    clips::At,
    frames::{ClipRun, Found, Given, Ready, Under},
    hand_out::{TRACED, deadline},
    session::{Event, Session},
    settings::Settings,
    words::{self, Of},
};
use crate::{
    engine::{self, Analysis, Head, KeptRequest, Outcome, Part, Room},
    error::{Error, Kind},
    proto::AnalyzeStreamResponse,
    stream::{self, Frame, Word},
    track::{self, Tracker},
};

/// When a frame is tried again that the server was too full for, where it does not say.
const AGAIN: Duration = Duration::from_millis(20);

impl Session {
    pub(super) fn happened(&mut self, ordinal: u64, event: Event) {
        let part = match event {
            Event::Begun => {
                self.intake.begun(ordinal);
                if let Some(under) = self.under.get_mut(&ordinal) {
                    under.content = None;
                }
                return;
            }
            Event::Part(part) => part,
        };
        let Some(under) = self.under.get_mut(&ordinal) else {
            return;
        };
        match part {
            Part::Head(index, outcome, room) => {
                let Some((head, at)) = under.heads.get(index) else {
                    return;
                };
                let wanted = &under.settings.heads[*at];
                let (name, shown) = (Arc::clone(&wanted.name), wanted.track);
                let ready = match (outcome, shown) {
                    (Outcome::Detection(detections), Some(shown)) => {
                        Ready::Found(Box::new(Found {
                            head: Arc::clone(head),
                            at: under.at,
                            shown,
                            detections,
                            room,
                        }))
                    }
                    (outcome, _) => {
                        let most = self.place.streams.most_bytes;
                        let message = words::result(under.of(), head, Ok(outcome), most);
                        Ready::Message(Outgoing {
                            message,
                            _room: Some(room),
                        })
                    }
                };
                self.ready(ordinal, &name, ready);
            }
            Part::Row(size, row) => {
                under.rows_missing = under.rows_missing.saturating_sub(1);
                match row {
                    Ok(row) => under.rows.push((size, row)),
                    Err(error) => under.said.error = Some(error),
                }
                if under.rows_missing == 0 {
                    self.rows_are_there(ordinal);
                }
            }
        }
    }

    /// The rows of a frame are there, or will not come: those whose turn it is are entered.
    fn rows_are_there(&mut self, ordinal: u64) {
        let mut turn = Vec::new();
        self.rows.ready(ordinal, (), &mut turn);
        turn.into_iter()
            .for_each(|(ordinal, ())| self.enter(ordinal));
    }

    fn enter(&mut self, ordinal: u64) {
        let Some(under) = self.under.get_mut(&ordinal) else {
            return;
        };
        let (rows, clips) = (
            std::mem::take(&mut under.rows),
            std::mem::take(&mut under.clips),
        );
        let (settings, at, of) = (Arc::clone(&under.settings), under.at, under.of());
        let lost = under.said.error.take();
        let mut restarted = false;
        for (head, index) in clips {
            let wanted = &settings.heads[index];
            let row = rows
                .iter()
                .find(|(size, _)| *size == head.manifest.input_size);
            let (Some((_, row)), Some(clips)) = (row, wanted.clips) else {
                self.rings.forget(&wanted.name);
                match &lost {
                    Some(error) => {
                        let message = words::failed(&of, &wanted.name, error);
                        self.result(ordinal, &wanted.name, message, None);
                    }
                    None => self.no_result(ordinal, &wanted.name),
                }
                continue;
            };
            let (emptied, clip) = self
                .rings
                .enter(&wanted.name, (&head, clips), at, row.clone());
            restarted |= emptied;
            match clip {
                Some(clip) => self.run_clip(at, &settings, index, head, clip),
                None => self.no_result(ordinal, &wanted.name),
            }
        }
        if let Some(under) = self.under.get_mut(&ordinal) {
            under.said.restarted |= restarted;
        }
        self.close(ordinal);
    }

    fn run_clip(
        &mut self,
        at: At,
        settings: &Settings,
        index: usize,
        head: Arc<Head>,
        clip: Vec<(u64, engine::Kept)>,
    ) {
        let wanted = &settings.heads[index];
        let (ids, rows): (Vec<_>, Vec<_>) = clip.into_iter().unzip();
        let mut call = self.call.clone();
        call.priority = settings.priority;
        call.deadline = deadline(&call, self.began, at.arrived, settings.rules.max_age);
        if at.ordinal >= TRACED {
            call = call.without_trace();
        }
        let request: KeptRequest = call.kept(Arc::clone(&head), rows, wanted.options);
        let run = ClipRun {
            name: Arc::clone(&wanted.name),
            head,
            of: Of {
                id: at.id,
                captured: at.captured,
                clip: ids,
            },
        };
        let engine = Arc::clone(&self.engine);
        let work = async move { Given::Clip(Box::new(run), engine.run_kept(request).await) };
        self.works.begin(at.ordinal, false, work);
    }

    pub(super) fn given(&mut self, ordinal: u64, given: Given) {
        // What it has told before it ended comes first.
        while let Ok((ordinal, event)) = self.events.try_recv() {
            self.happened(ordinal, event);
        }
        match given {
            Given::Frame(Ok(analysis)) => self.ran(ordinal, analysis),
            Given::Frame(Err(error)) => self.did_not_run(ordinal, error),
            Given::Clip(run, answer) => {
                let most = self.place.streams.most_bytes;
                let (message, room) = match answer {
                    Ok((outcome, room)) => {
                        let message = words::result(run.of, &run.head, Ok(outcome), most);
                        (message, Some(room))
                    }
                    Err(error) => (words::result(run.of, &run.head, Err(error), most), None),
                };
                self.result(ordinal, &run.name, message, room);
            }
        }
    }

    fn ran(&mut self, ordinal: u64, analysis: Analysis) {
        let Some(under) = self.under.get_mut(&ordinal) else {
            return;
        };
        under.said.provenance = Some(analysis.provenance);
        under.content = None;
        let (of, most) = (under.of(), self.place.streams.most_bytes);
        let heads = under.heads.iter().map(|(_, index)| *index);
        let names = heads.map(|index| Arc::clone(&under.settings.heads[index].name));
        let names: Vec<_> = names.collect();
        for ((head, outcome), name) in analysis.heads.into_iter().zip(names) {
            // Those that went well have left before.
            if let Err(error) = outcome {
                let message = words::result(of.clone(), &head, Err(error), most);
                self.result(ordinal, &name, message, None);
            }
        }
        self.rows_will_not_come(ordinal);
        self.close(ordinal);
    }

    /// A frame's run has ended: rows that are still missing do not come.
    fn rows_will_not_come(&mut self, ordinal: u64) {
        let missing = self.under.get_mut(&ordinal).is_some_and(|under| {
            let missing = under.rows_missing > 0;
            under.rows_missing = 0;
            missing
        });
        if missing {
            self.rows_are_there(ordinal);
        }
    }

    fn did_not_run(&mut self, ordinal: u64, error: Error) {
        let Some(under) = self.under.get_mut(&ordinal) else {
            return;
        };
        let full = matches!(error.kind(), Kind::Overloaded | Kind::RateLimited);
        if full && let Some(content) = under.content.take() {
            // It waits, as was asked for.
            let frame = Frame {
                ordinal,
                id: under.at.id,
                captured: under.at.captured,
                arrived: under.at.arrived,
                not_before: Duration::ZERO,
                content,
            };
            let again = self.began.elapsed() + error.retry_delay().unwrap_or(AGAIN);
            let mut said = Vec::new();
            self.intake.put_back(frame, again, &mut said);
            return self.tell(said, None);
        }
        if under.ready == 0 {
            let reason = words::reason(&error);
            under.said.error = Some(error);
            return self.end(ordinal, stream::Outcome::Dropped(reason));
        }
        // Some of it came in time.
        let (of, awaited) = (under.of(), under.awaited.clone());
        for name in awaited {
            self.result(ordinal, &name, words::failed(&of, &name, &error), None);
        }
        self.rows_will_not_come(ordinal);
        self.close(ordinal);
    }

    /// The result of a head, which leaves when those of frames before it have.
    pub(super) fn result(
        &mut self,
        ordinal: u64,
        name: &Arc<str>,
        message: AnalyzeStreamResponse,
        room: Option<Arc<Room>>,
    ) {
        let outgoing = Outgoing {
            message,
            _room: room,
        };
        self.ready(ordinal, name, Ready::Message(outgoing));
    }

    fn ready(&mut self, ordinal: u64, name: &Arc<str>, ready: Ready) {
        let under = self.under.get_mut(&ordinal);
        let Some(under) = under.filter(|under| under.awaits(name)) else {
            return;
        };
        under.settle(name);
        under.ready += 1;
        let mut turn = Vec::new();
        if let Some(order) = self.orders.get_mut(name) {
            order.ready(ordinal, ready, &mut turn);
        }
        self.leave(turn);
    }

    /// A head has no result for a frame.
    pub(super) fn no_result(&mut self, ordinal: u64, name: &Arc<str>) {
        let awaited = self.under.get_mut(&ordinal).is_some_and(|u| u.settle(name));
        if !awaited {
            return;
        }
        let mut turn = Vec::new();
        if let Some(order) = self.orders.get_mut(name) {
            order.gone(ordinal, &mut turn);
        }
        self.close(ordinal);
        self.leave(turn);
    }

    fn leave(&mut self, turn: Vec<(u64, Ready)>) {
        for (ordinal, ready) in turn {
            let outgoing = match ready {
                Ready::Message(outgoing) => outgoing,
                Ready::Found(found) => self.track(*found),
            };
            self.outbox.push_back(outgoing);
            if let Some(under) = self.under.get_mut(&ordinal) {
                under.said.results += 1;
            }
            self.close(ordinal);
        }
    }

    /// Finds out which objects these are, and leaves out what is too doubtful to be shown.
    fn track(&mut self, found: Found) -> Outgoing {
        let Found {
            head,
            at,
            shown,
            detections,
            room,
        } = found;
        let tracker = match self.trackers.entry(head.manifest.name.as_str().into()) {
            Entry::Occupied(entry) => Some(entry.into_mut()),
            // The defaults are within their ranges.
            Entry::Vacant(entry) => Tracker::new(track::Options::default())
                .ok()
                .map(|tracker| entry.insert(tracker)),
        };
        let time = at.micros();
        // A frame of the same moment as the one before has no objects of its own.
        let ids = tracker.and_then(|tracker| tracker.update(time, &detections).ok());
        let ids = ids.unwrap_or_else(|| vec![None; detections.len()]);
        let all = detections.into_iter().zip(ids);
        let shows = all.filter(|(detection, _)| detection.score >= shown.score);
        let (detections, ids): (Vec<_>, Vec<_>) = shows.take(shown.most).unzip();
        let of = Of {
            id: at.id,
            captured: at.captured,
            clip: Vec::new(),
        };
        let (found, most) = (
            Outcome::Detection(detections),
            self.place.streams.most_bytes,
        );
        let mut message = words::result(of, &head, Ok(found), most);
        words::set_tracks(&mut message, ids);
        Outgoing {
            message,
            _room: Some(room),
        }
    }

    /// One thing less that a frame waits for; with the last it is answered.
    pub(super) fn close(&mut self, ordinal: u64) {
        let Some(under) = self.under.get_mut(&ordinal) else {
            return;
        };
        under.open = under.open.saturating_sub(1);
        if under.open == 0 {
            self.end(ordinal, stream::Outcome::Answered);
        }
    }

    /// A frame that was handed out has ended.
    pub(super) fn end(&mut self, ordinal: u64, outcome: stream::Outcome) {
        let mut said = Vec::new();
        self.intake.finished(ordinal, outcome, &mut said);
        self.tell(said, None);
    }

    /// Tells last words; `wrong` is what was wrong with the frame that has just come.
    pub(super) fn tell(&mut self, said: Vec<Word>, mut wrong: Option<Error>) {
        for word in said {
            let under = word.ordinal.and_then(|ordinal| self.under.remove(&ordinal));
            if let (Some(ordinal), Some(under)) = (word.ordinal, &under)
                && word.outcome != stream::Outcome::Answered
            {
                self.let_go(ordinal, under);
            }
            let mut beside = under.map(|under| under.said).unwrap_or_default();
            beside.took = self.now().saturating_sub(word.arrived);
            if word.ordinal.is_none() && word.detail.is_none() {
                beside.error = wrong.take();
            }
            if word.outcome == stream::Outcome::Answered {
                self.pace.answered(word.arrived);
            }
            self.push(words::done(&word, &beside), None);
        }
    }

    /// A frame was dropped: what waits for its results and rows goes on without them.
    fn let_go(&mut self, ordinal: u64, under: &Under) {
        for wanted in &under.settings.heads {
            let mut turn = Vec::new();
            if let Some(order) = self.orders.get_mut(&wanted.name) {
                order.gone(ordinal, &mut turn);
            }
            if let Some(due) = self.due.get_mut(&wanted.name) {
                due.undo(ordinal);
            }
            self.leave(turn);
        }
        let mut turn = Vec::new();
        self.rows.gone(ordinal, &mut turn);
        turn.into_iter()
            .for_each(|(ordinal, ())| self.enter(ordinal));
    }
}
