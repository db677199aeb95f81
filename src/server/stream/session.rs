//! The task of a stream.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::{
    Drain, Outgoing, Place,
    clips::Rings,
    frames::{Content, Given, MOST_ANSWERS, Ready, Under, Works},
    settings::Settings,
    status::Pace,
    words,
};
use crate::{
    engine::{self, Engine, Part, Room},
    error::{Error, Kind, Result},
    proto::{
        self, AnalyzeStreamRequest, AnalyzeStreamResponse, StreamState,
        analyze_stream_request::Message as Asked, analyze_stream_response::Message as Answer,
    },
    server::{
        budget::Account,
        call::Call,
        convert,
        life::Phase,
        status::{part, status},
    },
    stream::{Due, Intake, Order, Reason, Rules},
    track::Tracker,
};

/// Longest name of a stream, bytes.
const MOST_NAME: usize = 128;

/// What happens beside the work itself.
pub(super) enum Event {
    Begun,
    Part(Part),
}

/// Why a stream's task goes on.
enum Wake {
    /// Nobody reads the answers any more.
    Gone,
    /// An answer has left.
    Sent,
    Event(u64, Event),
    Given(u64, Given),
    Message(Result<Option<AnalyzeStreamRequest>, Status>),
    Draining,
    Time,
}

/// A stream.
pub(super) struct Session {
    pub(super) engine: Arc<Engine>,
    pub(super) place: Place,
    pub(super) call: Call,
    pub(super) account: Option<Account>,
    pub(super) out: mpsc::Sender<Result<Outgoing, Status>>,
    pub(super) tell: mpsc::UnboundedSender<(u64, Event)>,
    pub(super) events: mpsc::UnboundedReceiver<(u64, Event)>,
    pub(super) began: Instant,
    pub(super) flow: Arc<str>,
    pub(super) settings: Arc<Settings>,
    pub(super) intake: Intake<Content>,
    pub(super) under: BTreeMap<u64, Under>,
    pub(super) works: Works,
    /// Results of each head that wait for those of frames before theirs.
    pub(super) orders: BTreeMap<Arc<str>, Order<Ready>>,
    /// The same of rows.
    pub(super) rows: Order<()>,
    pub(super) rings: Rings,
    pub(super) trackers: BTreeMap<Arc<str>, Tracker>,
    pub(super) due: BTreeMap<Arc<str>, Due>,
    pub(super) outbox: VecDeque<Outgoing>,
    pub(super) pace: Pace,
    pub(super) drain: Option<Drain>,
    pub(super) failed: Option<Status>,
}

impl Session {
    pub(super) fn new(
        engine: Arc<Engine>,
        place: Place,
        call: Call,
        account: Option<Account>,
        out: mpsc::Sender<Result<Outgoing, Status>>,
    ) -> Self {
        let (tell, events) = mpsc::unbounded_channel();
        Self {
            engine,
            place,
            call,
            account,
            out,
            tell,
            events,
            began: Instant::now(),
            flow: "".into(),
            settings: Arc::new(Settings::none()),
            intake: Intake::new(Rules::default()),
            under: BTreeMap::new(),
            works: Works::default(),
            orders: BTreeMap::new(),
            rows: Order::default(),
            rings: Rings::default(),
            trackers: BTreeMap::new(),
            due: BTreeMap::new(),
            outbox: VecDeque::new(),
            pace: Pace::default(),
            drain: None,
            failed: None,
        }
    }

    /// The stream from its first message to its end.
    pub(super) async fn run(mut self, mut inbound: Streaming<AnalyzeStreamRequest>) {
        let mut life = self.place.life();
        let first = tokio::select! {
            biased;
            () = self.out.closed() => return,
            _ = life.wait_for(|phase| *phase >= Phase::Leaving) => Err(status(&stopping())),
            first = inbound.message() => first,
        };
        let started = match first {
            Ok(Some(message)) => self.start(message).map_err(|error| status(&error)),
            Ok(None) => return,
            Err(status) => Err(status),
        };
        if let Err(status) = started {
            // Nobody reads it if this fails.
            let _ = self.out.send(Err(status)).await;
            return;
        }
        while !self.is_over() {
            self.pump();
            if self.is_over() {
                break;
            }
            match self.wait(&mut inbound).await {
                Wake::Gone => return,
                Wake::Sent => {}
                Wake::Event(ordinal, event) => self.happened(ordinal, event),
                Wake::Given(ordinal, given) => self.given(ordinal, given),
                Wake::Message(message) => self.message(message),
                Wake::Draining => self.drain(),
                Wake::Time => self.time(),
            }
        }
        self.finish().await;
    }

    fn is_over(&self) -> bool {
        self.intake.is_over() && self.under.is_empty()
    }

    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn start(&mut self, message: AnalyzeStreamRequest) -> Result<()> {
        let start = match message.message {
            Some(Asked::Start(start)) => start,
            _ => {
                return Err(Error::invalid("start", "must be the first message"));
            }
        };
        if start.name.len() > MOST_NAME {
            let text = format!(
                "has {} bytes, but the limit is {MOST_NAME}",
                start.name.len()
            );
            return Err(Error::invalid("start.name", text));
        }
        self.flow = match start.name.is_empty() {
            true => engine::flow(&format!("#{}", self.place.streams.number())),
            false => engine::flow(&start.name),
        };
        self.take(start.settings)
            .map_err(|error| below(error, "start.settings"))?;
        self.pace.begin(self.now(), self.settings.status);
        let started = proto::StreamStarted {
            settings: Some(self.settings.message.clone()),
            backbone: self.engine.backbone().sha256.clone(),
        };
        self.push(words::answer(Answer::Started(started)), None);
        Ok(())
    }

    /// Takes over other settings if they hold.
    fn take(&mut self, settings: Option<proto::StreamSettings>) -> Result<()> {
        let settings = Settings::read(settings, &self.call, &self.engine)?;
        self.place.promise(&self.engine, settings.load)?;
        self.rings.retain(&settings);
        self.due
            .retain(|name, _| settings.heads.iter().any(|wanted| wanted.name == *name));
        self.orders.retain(|_, order| !order.is_empty());
        self.trackers.retain(|name, _| {
            let mut heads = settings.heads.iter();
            heads.any(|wanted| wanted.name == *name && wanted.track.is_some())
        });
        self.pace.set_interval(settings.status);
        self.settings = Arc::new(settings);
        let mut said = Vec::new();
        self.intake.set_rules(self.settings.rules, &mut said);
        self.tell(said, None);
        Ok(())
    }

    fn message(&mut self, message: Result<Option<AnalyzeStreamRequest>, Status>) {
        match message {
            Err(status) => self.fail(status),
            Ok(None) => self.intake.close(),
            Ok(Some(message)) => match message.message {
                Some(Asked::Frame(frame)) => self.frame(frame),
                Some(Asked::Update(update)) => self.update(update),
                Some(Asked::End(_)) => self.intake.close(),
                Some(Asked::Start(_)) => {
                    let error = Error::invalid("start", "comes twice: a stream begins once");
                    self.fail(status(&error));
                }
                None => {
                    let text = "is missing: set start, frame, update or end";
                    self.fail(status(&Error::invalid("message", text)));
                }
            },
        }
    }

    fn update(&mut self, update: proto::StreamUpdate) {
        let taken = self.take(update.settings);
        let refused = taken.err().map(|error| below(error, "update.settings"));
        let updated = proto::StreamUpdated {
            settings: Some(self.settings.message.clone()),
            error: refused.as_ref().map(part),
        };
        self.push(words::answer(Answer::Updated(updated)), None);
    }

    fn frame(&mut self, frame: proto::StreamFrame) {
        let mut wrong = None;
        let captured = words::captured(frame.capture_time);
        let (captured, content) = match captured {
            Ok(captured) => (captured, convert::image(frame.image, "frame.image")),
            Err(error) => (None, Err(error)),
        };
        let content = content.and_then(|content| {
            self.hold(content.0.len())?;
            Ok(content)
        });
        let content = content.map_err(|error| {
            let reason = words::reason(&error);
            wrong = Some(error);
            reason
        });
        let (now, mut said) = (self.now(), Vec::new());
        self.intake
            .offer(frame.id.into(), captured, content, now, &mut said);
        self.tell(said, wrong);
    }

    /// Accounts for the frames that wait here, and `more` bytes.
    pub(super) fn hold(&mut self, more: usize) -> Result<()> {
        let waiting = self.intake.waiting().map(|frame| frame.content.0.len());
        let bytes = waiting.sum::<usize>() + more;
        let account = self.account.as_mut();
        account.map_or(Ok(()), |account| account.hold(bytes, "frames that wait"))
    }

    pub(super) fn push(&mut self, message: AnalyzeStreamResponse, room: Option<Arc<Room>>) {
        self.outbox.push_back(Outgoing {
            message,
            _room: room,
        });
    }

    fn reads(&self) -> bool {
        let open = self.failed.is_none() && !self.intake.is_closed();
        open && self.outbox.len() < MOST_ANSWERS && self.intake.has_room()
    }

    /// Waits for whatever comes next.
    async fn wait(&mut self, inbound: &mut Streaming<AnalyzeStreamRequest>) -> Wake {
        let reads = self.reads();
        let until = self.wakes();
        let life = &mut self.place.life();
        let Self {
            out,
            events,
            works,
            outbox,
            drain,
            ..
        } = self;
        tokio::select! {
            biased;
            () = out.closed() => Wake::Gone,
            permit = out.reserve(), if !outbox.is_empty() => match (permit, outbox.pop_front()) {
                (Ok(permit), Some(outgoing)) => {
                    permit.send(Ok(outgoing));
                    Wake::Sent
                }
                _ => Wake::Gone,
            },
            Some((ordinal, event)) = events.recv() => Wake::Event(ordinal, event),
            (ordinal, given) = works.next(), if !works.is_empty() => Wake::Given(ordinal, given),
            _ = life.wait_for(|phase| *phase >= Phase::Leaving), if drain.is_none() => Wake::Draining,
            () = tokio::time::sleep_until(until.into()) => Wake::Time,
            message = inbound.message(), if reads => Wake::Message(message),
        }
    }

    /// When there is something to do though nothing comes.
    fn wakes(&self) -> Instant {
        let frames = self.intake.wakes(self.now());
        let beats = frames.into_iter().chain([self.pace.next()]).min();
        let beat = self.began + beats.unwrap_or_default();
        let drain = self.drain.map(|drain| match self.intake.is_closed() {
            false => drain.last_frame,
            true => drain.end,
        });
        let all = [Some(beat), self.call.deadline, drain];
        all.into_iter().flatten().min().unwrap_or(beat)
    }

    fn time(&mut self) {
        let (now, at) = (self.now(), Instant::now());
        if self.call.deadline.is_some_and(|deadline| deadline <= at) {
            let error = Error::new(Kind::DeadlineExceeded, "the deadline of the stream passed");
            return self.fail(status(&error));
        }
        if let Some(drain) = self.drain {
            if drain.last_frame <= at {
                self.intake.close();
            }
            if drain.end <= at {
                self.stop();
            }
        }
        if self.pace.next() <= now {
            match self.outbox.len() < MOST_ANSWERS {
                true => self.status(),
                // One who does not read what there is has enough of it.
                false => self.pace.put_off(now),
            }
        }
    }

    fn drain(&mut self) {
        self.drain = Some(self.place.drain());
        self.status();
    }

    fn status(&mut self) {
        let (now, at) = (self.now(), Instant::now());
        let grace = self
            .drain
            .map(|drain| drain.last_frame.saturating_duration_since(at));
        let state = match (self.drain, self.intake.is_closed()) {
            (_, true) => StreamState::Ending,
            (Some(_), false) => StreamState::Draining,
            (None, false) => StreamState::Active,
        };
        let mut message = self.pace.status(&self.intake.account(), now);
        message.state = state.into();
        message.grace = grace.and_then(|grace| grace.try_into().ok());
        message.ring_bytes = words::narrow(self.rings.bytes());
        self.push(words::answer(Answer::Status(message)), None);
    }

    /// Gives up whatever is under way.
    fn stop(&mut self) {
        self.works.clear();
        self.orders.clear();
        self.rows = Order::default();
        let mut said = Vec::new();
        self.intake.stop(Reason::Ended, &mut said);
        self.tell(said, None);
    }

    fn fail(&mut self, status: Status) {
        self.stop();
        self.failed = Some(status);
    }

    /// All has been said but for what has not left.
    async fn finish(mut self) {
        self.works.clear();
        self.status();
        let end = self.drain.map(|drain| drain.end);
        let last = self.failed.take().map(Err);
        let out = self.out;
        let leave = async {
            for outgoing in self.outbox.drain(..).map(Ok).chain(last) {
                if out.send(outgoing).await.is_err() {
                    return;
                }
            }
        };
        match end {
            // One who does not read does not hold up the server's end.
            Some(end) => {
                let _ = tokio::time::timeout_at(end.into(), leave).await;
            }
            None => leave.await,
        }
    }
}

fn stopping() -> Error {
    Error::new(Kind::Unavailable, "the server is stopping")
}

/// An error of settings, where they stand.
fn below(error: Error, field: &str) -> Error {
    match error.field().map(str::to_owned) {
        Some(own) => error.at(format!("{field}.{own}")),
        None => error.at(field),
    }
}
