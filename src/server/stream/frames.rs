//! A stream's frames that are under way, and the work on them.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use super::{
    Outgoing,
    clips::At,
    settings::{Settings, Shown},
    words::{Of, Said},
};
use crate::{
    engine::{Analysis, Head, Kept, Outcome, Room, Source},
    error::Result,
    task::Detection,
};

/// Answers that wait for their reader beyond which no more is read or begun.
pub(super) const MOST_ANSWERS: usize = 64;

/// What a frame shows, and the name of its field.
pub(super) type Content = (Source, String);

/// A head's result that waits for its turn.
#[derive(Debug)]
pub(super) enum Ready {
    Message(Outgoing),
    /// What is to be tracked first, which goes by the order of the frames.
    Found(Box<Found>),
}

/// Detections that are to be tracked.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) head: Arc<Head>,
    pub(super) at: At,
    pub(super) shown: Shown,
    pub(super) detections: Vec<Detection>,
    pub(super) room: Arc<Room>,
}

/// A frame under way.
#[derive(Debug)]
pub(super) struct Under {
    pub(super) at: At,
    /// As they were when it was handed out.
    pub(super) settings: Arc<Settings>,
    /// Heads that read it alone, each with its place in the settings.
    pub(super) heads: Vec<(Arc<Head>, usize)>,
    /// Heads that read it among others.
    pub(super) clips: Vec<(Arc<Head>, usize)>,
    /// Names of heads whose result is yet to come, or not to come.
    pub(super) awaited: Vec<Arc<str>>,
    /// Results that are known, whether or not they have left.
    pub(super) ready: u32,
    /// What it waits for: its results to leave, its run, and its rows to be entered.
    pub(super) open: usize,
    /// Rows that are kept, and how many are still to come.
    pub(super) rows: Vec<([u32; 2], Kept)>,
    pub(super) rows_missing: usize,
    /// Where it may have to be tried again, what it shows.
    pub(super) content: Option<Content>,
    pub(super) begun: Arc<AtomicBool>,
    pub(super) said: Said,
}

impl Under {
    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    pub(super) fn of(&self) -> Of {
        Of {
            id: self.at.id,
            captured: self.at.captured,
            clip: Vec::new(),
        }
    }

    /// Whether the result of the head of this name is yet to come.
    pub(super) fn awaits(&self, name: &str) -> bool {
        self.awaited.iter().any(|own| &**own == name)
    }

    /// The result of the head of this name is known; whether it was awaited.
    pub(super) fn settle(&mut self, name: &str) -> bool {
        let at = self.awaited.iter().position(|own| &**own == name);
        at.map(|at| self.awaited.swap_remove(at)).is_some()
    }
}

/// What work has given.
pub(super) enum Given {
    /// A frame has been run.
    Frame(Result<Analysis>),
    /// So has a head on a clip.
    Clip(Box<ClipRun>, Result<(Outcome, Arc<Room>)>),
}

/// A head's run on a clip.
pub(super) struct ClipRun {
    pub(super) name: Arc<str>,
    pub(super) head: Arc<Head>,
    pub(super) of: Of,
}

/// Work under way. Dropping it gives it up.
#[derive(Default)]
pub(super) struct Works(Vec<Work>);

struct Work {
    ordinal: u64,
    /// Whether it is the frame's own run.
    run: bool,
    future: Pin<Box<dyn Future<Output = Given> + Send>>,
}

impl Works {
    /// Begins the run of the frame `ordinal`, or with `run` false of a clip that ends with it.
    pub(super) fn begin(
        &mut self,
        ordinal: u64,
        run: bool,
        future: impl Future<Output = Given> + Send + 'static,
    ) {
        self.0.push(Work {
            ordinal,
            run,
            future: Box::pin(future),
        });
    }

    /// Gives up the run of a frame.
    pub(super) fn withdraw(&mut self, ordinal: u64) {
        self.0.retain(|work| work.ordinal != ordinal || !work.run);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The next that is done.
    pub(super) async fn next(&mut self) -> (u64, Given) {
        poll_fn(|context| {
            for index in 0..self.0.len() {
                let work = &mut self.0[index];
                if let Poll::Ready(given) = work.future.as_mut().poll(context) {
                    let ordinal = work.ordinal;
                    self.0.swap_remove(index);
                    return Poll::Ready((ordinal, given));
                }
            }
            Poll::Pending
        })
        .await
    }
}
